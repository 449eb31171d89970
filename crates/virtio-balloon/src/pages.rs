//! Giving guest memory back to the host.

use std::io;

use kindling_virtio_device::GuestMemory;
use libc::{c_int, c_void, iovec};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bits of an address within a page of the balloon (VIRTIO 1.2, 5.5.6: always 4096 bytes).
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Bytes of such a page.
pub(crate) const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// Tells the host that it can have the memory of `run` pages from page `first` on, which read as zeroes from then on.
/// Returns how many of them are pages of the guest.
pub(crate) fn discard_run(memory: &GuestMemory, first: u32, run: u32) -> io::Result<u32> {
    let mut discarded: u32 = 0;
    while discarded < run {
        let start = GuestAddress(u64::from(first).saturating_add(discarded.into()) << PAGE_SHIFT);
        let wanted = (run.saturating_sub(discarded) as usize) << PAGE_SHIFT;
        let Some((region, offset)) = memory.to_region_addr(start) else { break };
        let rest = usize::try_from(region.len().saturating_sub(offset.0)).unwrap_or(usize::MAX);
        let len = wanted.min(rest) & !(PAGE_SIZE - 1);
        let Ok(slice) = memory.get_slice(start, len) else { break };
        if len == 0 {
            break;
        }
        discard(memory, slice.ptr_guard_mut().as_ptr().cast(), len)?;
        discarded = discarded.saturating_add((len >> PAGE_SHIFT) as u32);
    }
    Ok(discarded)
}

/// The same for the whole pages in a buffer of the guest. Returns their bytes.
pub(crate) fn discard_buffer(memory: &GuestMemory, buffer: &iovec) -> io::Result<usize> {
    let start = buffer.iov_base as usize;
    let end = start.saturating_add(buffer.iov_len) & !(PAGE_SIZE - 1);
    let Some(first) = start.checked_next_multiple_of(PAGE_SIZE) else { return Ok(0) };
    match end.checked_sub(first) {
        None | Some(0) => Ok(0),
        Some(len) => {
            let skipped = first.saturating_sub(start);
            discard(memory, buffer.iov_base.cast::<u8>().wrapping_add(skipped).cast(), len)?;
            Ok(len)
        }
    }
}

/// `len` bytes from `base` on are memory of the guest, in this process.
fn discard(memory: &GuestMemory, base: *mut c_void, len: usize) -> io::Result<()> {
    // SAFETY: the range is whole pages of guest memory, of which nobody here expects anything: it may read as zeroes.
    let result = unsafe { libc::madvise(base, len, advice(memory)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Shared memory is its file's, and must be taken out of that.
fn advice(memory: &GuestMemory) -> c_int {
    let is_shared = memory.iter().any(|region| region.file_offset().is_some());
    if is_shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED }
}
