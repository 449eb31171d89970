//! The buffers of a descriptor chain (VIRTIO 1.2, 2.7.5): what the device may read, and what it may write.
//!
//! Both are consumed from the front, whatever the number and size of the descriptors they are made of: the driver may
//! cut its messages as it likes (VIRTIO 1.2, 2.7.4).

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use libc::{c_int, iovec, off_t};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, VolatileSlice};

use crate::GuestMemory;

/// The most segments that the kernel takes at once.
const IOV_MAX: usize = libc::UIO_MAXIOV as usize;

/// Segments for which memory is kept from one chain to the next: 128 of data, where Linux ends most requests, and two for what
/// is around it. A longer chain moves so much, or is so odd, that an allocation does not matter; and what a driver makes all
/// chains of a queue take in turn, a monitor must not have to keep.
const KEPT: usize = 128 + 2;

/// Segments of guest memory.
///
/// Every segment lies in `memory`, which stays mapped for as long as the segments that are made of it: only
/// [`Segments::push`] makes segments, and the rest of this module only makes them smaller.
struct Segments {
    memory: Arc<GuestMemory>,
    region: Region,
    segments: Vec<iovec>,
    /// The first that is not used up.
    first: usize,
    /// Bytes that are not used up.
    len: u32,
}

impl Segments {
    fn new(memory: Arc<GuestMemory>) -> Self {
        let region = Region { start: 0, len: 0, base: std::ptr::null_mut() };
        Self { memory, region, segments: Vec::new(), first: 0, len: 0 }
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.segments.shrink_to(KEPT);
        self.first = 0;
        self.len = 0;
    }

    fn push(&mut self, address: u64, len: u32) -> Result<(), PushError> {
        let sum = self.len.checked_add(len).ok_or(PushError::TooLong)?;
        if len != 0 {
            let iov_base = self.find(address, len).map_err(PushError::Memory)?.cast();
            self.segments.push(iovec { iov_base, iov_len: len as usize });
            self.len = sum;
        }
        Ok(())
    }

    /// Where `len` bytes of guest memory are in this process: all of them in one region.
    fn find(&mut self, address: u64, len: u32) -> Result<*mut u8, GuestMemoryError> {
        if let Some(found) = self.region.find(address, len) {
            return Ok(found);
        }
        let address = GuestAddress(address);
        let found = self.memory.get_slice(address, len as usize)?.ptr_guard_mut().as_ptr();
        if let Some(region) = self.memory.find_region(address) {
            let base = region.as_volatile_slice()?.ptr_guard_mut().as_ptr();
            self.region = Region { start: region.start_addr().0, len: region.len(), base };
        }
        Ok(found)
    }

    fn rest(&self) -> &[iovec] {
        self.segments.get(self.first..).unwrap_or_default()
    }

    /// Takes up to `len` bytes off the front and passes them to `each` in pieces; returns how many there were.
    fn consume(&mut self, len: usize, mut each: impl FnMut(VolatileSlice<'_>)) -> usize {
        let mut done = 0;
        while let Some(segment) = self.segments.get_mut(self.first) {
            let piece = segment.iov_len.min(len.saturating_sub(done));
            if piece == 0 {
                break;
            }
            // SAFETY: the segment is mapped guest memory (see `Segments`), `piece` is no longer than it is, and volatile
            // accesses allow for a guest that changes it meanwhile.
            each(unsafe { VolatileSlice::new(segment.iov_base.cast(), piece) });
            if piece == segment.iov_len {
                self.first = self.first.saturating_add(1);
            } else {
                segment.iov_base = segment.iov_base.cast::<u8>().wrapping_add(piece).cast();
                segment.iov_len = segment.iov_len.saturating_sub(piece);
            }
            done = done.saturating_add(piece);
        }
        // At most `self.len`, since that is the sum of the segments.
        self.len = self.len.saturating_sub(done as u32);
        done
    }

    /// The `N` bytes behind the first `offset`, if there are so many.
    fn look<const N: usize>(&self, mut offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut done = 0;
        for segment in self.rest() {
            let Some(len @ 1..) = segment.iov_len.checked_sub(offset) else {
                offset = offset.saturating_sub(segment.iov_len);
                continue;
            };
            let from = segment.iov_base.cast::<u8>().wrapping_add(offset);
            if done == 0 && len >= N {
                // SAFETY: the bytes are inside the segment, which is mapped guest memory (see `Segments`), and whatever a
                // guest makes of them meanwhile is an array of bytes.
                unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from, N) };
                return Some(bytes);
            }
            let rest = bytes.get_mut(done..).unwrap_or_default();
            // SAFETY: the segment is mapped guest memory (see `Segments`), and from `offset` on it has `len` bytes.
            let copied = unsafe { VolatileSlice::new(from, len) }.copy_to(rest);
            done = done.saturating_add(copied);
            offset = 0;
        }
        (done == N).then_some(bytes)
    }

    fn truncate(&mut self, len: u32) {
        if len >= self.len {
            return;
        }
        let mut keep = len as usize;
        let mut segments = self.first;
        for segment in self.segments.iter_mut().skip(self.first) {
            if keep == 0 {
                break;
            }
            segment.iov_len = segment.iov_len.min(keep);
            keep = keep.saturating_sub(segment.iov_len);
            segments = segments.saturating_add(1);
        }
        self.segments.truncate(segments);
        self.len = len;
    }

    /// The segments for one system call, and their number.
    fn call(&self) -> (*const iovec, c_int) {
        let rest = self.rest();
        (rest.as_ptr(), rest.len().min(IOV_MAX) as c_int)
    }
}

/// The region of guest memory where the last buffer was found, and most likely the next one is: searching all of them
/// would take most of the time that a chain takes. Of no length before the first.
struct Region {
    start: u64,
    len: u64,
    /// Where it is in this process: `len` bytes that are mapped for as long as the memory is kept.
    base: *mut u8,
}

impl Region {
    fn find(&self, address: u64, len: u32) -> Option<*mut u8> {
        let offset = address.checked_sub(self.start)?;
        let rest = self.len.checked_sub(offset)?;
        (u64::from(len) <= rest).then(|| self.base.wrapping_add(offset as usize))
    }
}

/// Why a buffer is refused.
#[derive(Debug)]
pub(crate) enum PushError {
    TooLong,
    Memory(GuestMemoryError),
}

/// The buffers that the device may read.
pub struct Readable(Segments);

/// The buffers that the device may write.
pub struct Writable(Segments, Option<NonNull<u8>>);

macro_rules! common {
    ($($name:ident),*) => {$(
        impl $name {
            /// Bytes that are left.
            pub fn len(&self) -> u32 {
                self.0.len
            }

            /// Whether no byte is left.
            pub fn is_empty(&self) -> bool {
                self.0.len == 0
            }

            /// Drops `len` bytes at the front, or all if there are fewer; returns how many.
            pub fn skip(&mut self, len: u32) -> u32 {
                self.0.consume(len as usize, |_| ()) as u32
            }

            /// Drops all but the first `len` bytes.
            pub fn truncate(&mut self, len: u32) {
                self.0.truncate(len);
            }

            /// What is left, for a system call or an I/O ring. The segments lie in guest memory, and are valid for as
            /// long as the chain.
            pub fn iovecs(&self) -> &[iovec] {
                self.0.rest()
            }

            /// Adds a buffer of guest memory.
            pub(crate) fn push(&mut self, address: u64, len: u32) -> Result<(), PushError> {
                self.0.push(address, len)
            }
        }

        // SAFETY: the pointers are to guest memory, which any thread may access, and which the object keeps mapped.
        unsafe impl Send for $name {}
    )*};
}

common!(Readable, Writable);

impl Readable {
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        Self(Segments::new(memory))
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Where `len` bytes of guest memory are in this process, for as long as `self` lives.
    pub(crate) fn find(&mut self, address: u64, len: u32) -> Result<*mut u8, GuestMemoryError> {
        self.0.find(address, len)
    }

    /// Copies bytes off the front; returns how many: fewer than asked for when that is all.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        let mut rest = to;
        let len = rest.len();
        self.0.consume(len, |piece| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len());
            piece.copy_to(now);
            rest = later;
        })
    }

    /// The `N` bytes behind the first `offset`, or nothing if there are fewer. None are used up.
    pub fn peek<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.look(offset)
    }

    /// Takes a structure of `N` bytes off the front, or nothing if there are fewer.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if (self.len() as usize) < N {
            return None;
        }
        let mut bytes = [0; N];
        self.read(&mut bytes);
        Some(bytes)
    }

    /// Writes what is left to `file` in one `writev`; nothing is used up. Returns how many bytes the file took.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn write_to(&self, file: &impl AsRawFd) -> io::Result<usize> {
        let (segments, count) = self.0.call();
        // SAFETY: the segments are mapped guest memory (see `Segments`), which the call only reads.
        result(|| unsafe { libc::writev(file.as_raw_fd(), segments, count) })
    }

    /// The same as [`Readable::write_to`], at `offset` of the file (`pwritev`).
    ///
    /// # Errors
    ///
    /// What the kernel says, and EINVAL for an offset of 2^63 or more.
    pub fn write_to_at(&self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        let (segments, count) = self.0.call();
        let offset = file_offset(offset)?;
        // SAFETY: the segments are mapped guest memory (see `Segments`), which the call only reads.
        result(|| unsafe { libc::pwritev(file.as_raw_fd(), segments, count, offset) })
    }
}

impl Writable {
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        Self(Segments::new(memory), None)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
        self.1 = None;
    }

    /// Copies bytes to the front; returns how many: fewer than given when there is no more room.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut rest = from;
        self.0.consume(from.len(), |piece| {
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from(now);
            rest = later;
        })
    }

    /// Fills `len` bytes at the front with zeroes, or all if there are fewer; returns how many.
    pub fn write_zeroes(&mut self, len: u32) -> u32 {
        let zero = |piece: VolatileSlice<'_>| {
            // SAFETY: the piece is mapped guest memory (see `Segments`), which the guest expects to be written.
            unsafe { piece.ptr_guard_mut().as_ptr().write_bytes(0, piece.len()) };
        };
        self.0.consume(len as usize, zero) as u32
    }

    /// Sets the last byte aside, for [`Writable::write_last`] when all else is done. Returns whether there was one.
    #[must_use]
    pub fn set_last_aside(&mut self) -> bool {
        let Some(last) = self.0.segments.get_mut(self.0.first..).and_then(<[_]>::last_mut) else {
            return false;
        };
        // Never 0 before: empty segments are not kept.
        last.iov_len = last.iov_len.saturating_sub(1);
        self.1 = NonNull::new(last.iov_base.cast::<u8>().wrapping_add(last.iov_len));
        if last.iov_len == 0 {
            self.0.segments.pop();
        }
        self.0.len = self.0.len.saturating_sub(1);
        true
    }

    /// Writes the byte that was set aside, such as the status of a request. Without one, nothing happens.
    pub fn write_last(&mut self, value: u8) {
        if let Some(byte) = self.1 {
            // SAFETY: the byte was the last of a segment, which is mapped guest memory (see `Segments`).
            unsafe { byte.write_volatile(value) };
        }
    }

    /// Reads from `file` into what is left in one `readv`; nothing is used up. Returns how many bytes there were.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn read_from(&self, file: &impl AsRawFd) -> io::Result<usize> {
        let (segments, count) = self.0.call();
        // SAFETY: the segments are mapped guest memory (see `Segments`), which the guest expects to be written.
        result(|| unsafe { libc::readv(file.as_raw_fd(), segments, count) })
    }

    /// The same as [`Writable::read_from`], from `offset` of the file (`preadv`).
    ///
    /// # Errors
    ///
    /// What the kernel says, and EINVAL for an offset of 2^63 or more.
    pub fn read_from_at(&self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        let (segments, count) = self.0.call();
        let offset = file_offset(offset)?;
        // SAFETY: the segments are mapped guest memory (see `Segments`), which the guest expects to be written.
        result(|| unsafe { libc::preadv(file.as_raw_fd(), segments, count, offset) })
    }
}

fn file_offset(offset: u64) -> io::Result<off_t> {
    off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The result of a system call, made again when a signal interrupted it.
fn result(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(len) => return Ok(len),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
