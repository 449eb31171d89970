//! Building guest RAM: mapping each part of a [`Layout`]'s RAM into this process.
//!
//! Nothing is mapped when any part fails: each mapping is owned from the moment it exists.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    sync::Arc,
};

use libc::c_int;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap,
    bitmap::NewBitmap,
    mmap::{MmapRegion, MmapRegionBuilder},
};

use crate::{Error, HUGE_PAGE_SIZE, Layout, Range, aligned::map_aligned};

/// What guest RAM is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory private to this process, taken from the host when the guest first touches it.
    Anonymous {
        /// Ask the host for transparent huge pages (`MADV_HUGEPAGE`).
        transparent_huge: bool,
    },
    /// Memory that can be shared with another process through its file descriptor, otherwise like `Anonymous`. All
    /// parts of RAM lie one behind the other in one file, which can neither shrink nor grow.
    Memfd,
    /// Like `Memfd`, on reserved huge pages of 2 MiB. All of them are set aside while building, so that the guest
    /// never meets a shortage.
    HugeTlb2M,
}

impl Backing {
    /// The flags for mapping it.
    fn mmap_flags(self) -> c_int {
        match self {
            Self::Anonymous { .. } => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            Self::Memfd => libc::MAP_SHARED | libc::MAP_NORESERVE,
            Self::HugeTlb2M => libc::MAP_SHARED,
        }
    }

    /// The file behind it, of `bytes` bytes.
    fn file(self, bytes: u64) -> Result<Option<Arc<File>>, Error> {
        let flags = match self {
            Self::Anonymous { .. } => return Ok(None),
            Self::Memfd => 0,
            Self::HugeTlb2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        };
        sealed_memfd(bytes, flags).map(|file| Some(Arc::new(file)))
    }
}

/// Builds the RAM of `layout`, zeroed, readable and writable, and left out of core dumps.
///
/// A part of at least 2 MiB is aligned to 2 MiB in this process, like in the guest, so that huge pages apply. When
/// other threads keep taking the place meant for it, it is built without and a warning is logged.
///
/// # Errors
///
/// [`Error::PartHugePage`] when huge pages do not add up to the RAM, [`Error::HugePages`] when they are too few,
/// [`Error::Map`] when the host cannot map as much, and the other variants when the kernel refuses a step.
pub fn build(layout: &Layout, backing: Backing) -> Result<GuestMemoryMmap, Error> {
    build_with_bitmap(layout, backing)
}

/// The same as [`build`] for memory whose dirty pages are tracked in a bitmap `B`.
///
/// # Errors
///
/// Those of [`build`].
pub fn build_with_bitmap<B: NewBitmap>(
    layout: &Layout,
    backing: Backing,
) -> Result<GuestMemoryMmap<B>, Error> {
    let bytes = layout.ram_bytes();
    if backing == Backing::HugeTlb2M && !bytes.is_multiple_of(HUGE_PAGE_SIZE) {
        return Err(Error::PartHugePage { bytes });
    }
    let file = backing.file(bytes)?;

    let mut regions = Vec::new();
    let mut file_start = 0;
    for &range in layout.ram() {
        let size = usize::try_from(range.size).map_err(|_| Error::Unaddressable { range })?;
        let mapping = map_aligned(size, || {
            let builder = MmapRegionBuilder::new_with_bitmap(size, B::with_len(size))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(backing.mmap_flags())
                .with_hugetlbfs(backing == Backing::HugeTlb2M);
            match &file {
                Some(file) => builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), file_start)),
                None => builder,
            }
            .build()
        })
        .map_err(|source| match backing {
            Backing::HugeTlb2M => Error::HugePages { pages: bytes / HUGE_PAGE_SIZE, range, source },
            _ => Error::Map { range, source },
        })?;
        file_start += range.size;

        advise(&mapping, range, libc::MADV_DONTDUMP, "MADV_DONTDUMP")?;
        if backing == (Backing::Anonymous { transparent_huge: true }) {
            advise(&mapping, range, libc::MADV_HUGEPAGE, "MADV_HUGEPAGE")?;
        }
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start));
        regions.push(region.ok_or(Error::Unaddressable { range })?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(Error::Collect)
}

/// Creates a file in memory that stays at `bytes` bytes, with the `MFD_*` flags `extra_flags`.
fn sealed_memfd(bytes: u64, extra_flags: libc::c_uint) -> Result<File, Error> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | extra_flags;
    // SAFETY: the name is a string that ends in NUL and lives for ever.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(Error::CreateMemfd(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just opened this descriptor for us, and nothing else knows it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).map_err(|source| Error::ResizeMemfd { bytes, source })?;

    // A peer that gets the file must not be able to take memory from under the guest, nor to add seals of its own.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the call changes the file behind the descriptor only; no memory is involved.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(Error::SealMemfd(io::Error::last_os_error()));
    }
    Ok(file)
}

/// Gives the kernel the hint `advice`, named `name`, for all of `mapping`, which holds `range`.
fn advise<B: NewBitmap>(
    mapping: &MmapRegion<B>,
    range: Range,
    advice: c_int,
    name: &'static str,
) -> Result<(), Error> {
    // SAFETY: the address and size are those of a mapping that is alive. The hints used here change neither its
    // contents nor its protection.
    if unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) } < 0 {
        return Err(Error::Advise { advice: name, range, source: io::Error::last_os_error() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
