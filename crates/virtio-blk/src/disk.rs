//! What a block device needs of its back end.

use std::io;
use std::os::fd::AsFd;

use kindling_virtio_device::{Readable, Writable};
use libc::iovec;

/// What holds the blocks. All workers of a device share it.
///
/// Offsets and lengths are in bytes. The device asks for nothing beyond the size that it saw last, and, of a disk with an
/// [`Alignment`], for nothing that breaks that. A call may take as long as it likes; only the calling worker waits.
///
/// The descriptor is for an engine that has the kernel do the same to it as these functions would, and tells which file it is.
pub trait Disk: AsFd + Send + Sync {
    /// What does not change.
    fn info(&self) -> &DiskInfo;

    /// How many bytes it has now.
    ///
    /// # Errors
    ///
    /// What the host says.
    fn size(&self) -> io::Result<u64>;

    /// Reads from `offset` on; returns how many bytes. Fewer than there is room for are no error, none are the end.
    ///
    /// # Errors
    ///
    /// What the host says.
    fn read(&self, to: Segments<'_>, offset: u64) -> io::Result<usize>;

    /// Writes from `offset` on; returns how many bytes were taken. With `durable`, those survive the host's end.
    ///
    /// # Errors
    ///
    /// What the host says.
    fn write(&self, from: Segments<'_>, offset: u64, durable: bool) -> io::Result<usize>;

    /// Makes durable whatever was written before.
    ///
    /// # Errors
    ///
    /// What the host says.
    fn flush(&self) -> io::Result<()>;

    /// Does away with the contents of `len` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// What the host says; of kind [`io::ErrorKind::Unsupported`] when it cannot do this at all.
    fn clear(&self, how: Clear, offset: u64, len: u64) -> io::Result<()>;
}

/// What becomes of contents that are done away with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Anything; the disk need not keep the blocks.
    Discard,
    /// They are zeroes.
    Zero {
        /// Whether the disk need not keep the blocks.
        unmap: bool,
    },
}

/// What does not change about a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether it is a block device of the host, and not a file.
    pub is_block_device: bool,
    /// What transfers must keep to.
    pub alignment: Alignment,
    /// How it is best used, where that is known.
    pub topology: Option<Topology>,
}

/// What transfers must keep to: powers of two of at most 4096, or 1 where anything goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// What addresses of buffers are multiples of.
    pub memory: u32,
    /// What offsets, and lengths of buffers, are multiples of.
    pub offset: u32,
}

impl Alignment {
    /// Anything goes.
    pub const NONE: Self = Self { memory: 1, offset: 1 };

    /// Whether these buffers keep to it.
    pub(crate) fn suits(self, iovecs: &[iovec]) -> bool {
        let suits = |iovec: &iovec| {
            iovec.iov_base.addr().is_multiple_of(self.memory as usize)
                && iovec.iov_len.is_multiple_of(self.offset as usize)
        };
        self == Self::NONE || iovecs.iter().all(suits)
    }
}

/// How a disk is best used. All is in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// What it writes in one piece, without reading first.
    pub physical_block: u32,
    /// How far the first physical block begins behind the disk's start.
    pub alignment_offset: u32,
    /// The smallest transfer that is no waste.
    pub min_io: u32,
    /// The best transfer; 0 where there is none.
    pub opt_io: u32,
}

/// The buffers of one transfer: guest memory, or memory of this process that nobody else uses meanwhile.
///
/// Every segment may be read and written for as long as this lives. A guest may change its memory at any time, so that
/// contents must be passed on, or copied with volatile accesses, and never be believed.
#[derive(Clone, Copy)]
pub struct Segments<'a>(&'a [iovec]);

impl<'a> Segments<'a> {
    /// The segments: at most 1024, none of them empty.
    pub fn iovecs(self) -> &'a [iovec] {
        self.0
    }

    /// Runs `transfer` with a buffer of this process.
    pub(crate) fn with_bytes<T>(bytes: &mut [u8], transfer: impl FnOnce(Segments<'_>) -> T) -> T {
        let iovec = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        transfer(Segments(&[iovec]))
    }
}

impl<'a> From<&'a Readable> for Segments<'a> {
    fn from(buffers: &'a Readable) -> Self {
        Self(buffers.iovecs())
    }
}

impl<'a> From<&'a Writable> for Segments<'a> {
    fn from(buffers: &'a Writable) -> Self {
        Self(buffers.iovecs())
    }
}
