//! Mapping guest memory at a host address that is a multiple of 2 MiB, so that a huge page of the host backs a huge
//! page of the guest.
//!
//! [`MmapRegion`] unmaps what it mapped itself, and only at an address of the kernel's choice. So the choice is
//! narrowed instead: a larger piece of address space is set aside without access, and out of its middle an aligned
//! hole of the right size is cut, with a neighbour left standing on either side. The kernel takes the first gap that is
//! large enough, and that is the hole, unless a gap before it is large enough as well; then the misplaced mapping stays
//! there until another attempt has succeeded. Another thread that maps memory just then may take the hole; that costs
//! an attempt too, and when all attempts are used up, only the huge pages, never correctness.
//!
//! Often the kernel aligns without help: always for hugetlbfs, and since Linux 6.7 for most anonymous memory.

use std::{io, ptr::null_mut};

use libc::c_void;
use vm_memory::{
    bitmap::Bitmap,
    mmap::{MmapRegion, MmapRegionError},
};

use crate::HUGE_PAGE_SIZE;

const ALIGN: usize = HUGE_PAGE_SIZE as usize;

/// How many holes are tried.
const ATTEMPTS: usize = 8;

/// Calls `map`, which maps `size` bytes (a multiple of the page size) where the kernel likes, until the mapping is
/// aligned to 2 MiB or the attempts are used up. What is too small for a huge page is mapped once.
pub(crate) fn map_aligned<B: Bitmap>(
    size: usize,
    mut map: impl FnMut() -> Result<MmapRegion<B>, MmapRegionError>,
) -> Result<MmapRegion<B>, MmapRegionError> {
    let first = map()?;
    if size < ALIGN || is_aligned(&first) {
        return Ok(first);
    }
    let mut misplaced = Vec::new();
    for _ in 0..ATTEMPTS {
        let Ok(_hole) = Hole::new(size) else { break };
        match map() {
            Ok(region) if is_aligned(&region) => return Ok(region),
            Ok(region) => misplaced.push(region),
            Err(_) => break,
        }
    }
    log::warn!("guest memory of {size} bytes is not aligned to 2 MiB: huge pages will not apply");
    Ok(first)
}

fn is_aligned<B: Bitmap>(region: &MmapRegion<B>) -> bool {
    region.as_ptr().addr().is_multiple_of(ALIGN)
}

/// The two neighbours of an aligned hole in the address space.
struct Hole {
    _below: Neighbour,
    _above: Neighbour,
}

impl Hole {
    /// Cuts a hole of `size` bytes.
    fn new(size: usize) -> io::Result<Self> {
        // Enough for neighbours that are never empty: were one missing, the hole would run into a free gap.
        let outer_size = size.checked_add(2 * ALIGN).ok_or(io::ErrorKind::OutOfMemory)?;
        let outer = Neighbour::new(outer_size)?;
        let below = ALIGN - outer.start.addr() % ALIGN;
        let (below, rest) = outer.split(below);
        let (hole, above) = rest.split(size);
        drop(hole);
        Ok(Self { _below: below, _above: above })
    }
}

/// Address space without access, given back on drop.
struct Neighbour {
    start: *mut c_void,
    size: usize,
}

impl Neighbour {
    fn new(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED the kernel picks unused addresses, so that no mapping of anyone's changes.
        let start = unsafe { libc::mmap(null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start, size })
    }

    /// Divides in two after `size` bytes, which must be whole pages and less than all of it.
    fn split(mut self, size: usize) -> (Self, Self) {
        let above = Self { start: self.start.wrapping_byte_add(size), size: self.size - size };
        self.size = size;
        (self, above)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // SAFETY: the pages were mapped by `new`, belong to this value alone and were never accessible, so that
        // nothing can refer to them.
        unsafe { libc::munmap(self.start, self.size) };
    }
}
