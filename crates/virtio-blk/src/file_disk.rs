//! Raw files and block devices as disks.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use libc::{c_int, c_uint, c_ulong, iovec, off_t};

use crate::{Alignment, Clear, Disk, DiskInfo, Error, Segments, Topology};

/// Discards a range of a block device; takes its offset and length (`linux/fs.h`, as the next two).
const BLKDISCARD: c_ulong = 0x1277;
/// Offset of a block device's first physical block in bytes.
const BLKALIGNOFF: c_ulong = 0x127a;
/// Zeroes a range of a block device; takes its offset and length.
const BLKZEROOUT: c_ulong = 0x127f;

/// What direct I/O needs where the kernel does not say: what all disks can do.
const ALIGNMENT_UNKNOWN: Alignment = Alignment { memory: 4096, offset: 4096 };

/// `fallocate`: the blocks go away, and the file's size stays.
pub(crate) const PUNCH_HOLE: c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// `fallocate`: the blocks stay and are zeroes, and the file's size stays.
pub(crate) const ZERO_RANGE: c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A raw file, or a block device, as a disk.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    info: DiskInfo,
}

impl FileDisk {
    /// Opens the file or block device at `path`; with `direct`, past the page cache.
    ///
    /// # Errors
    ///
    /// When it cannot be opened so, or is of another kind. A FIFO without a reader does not make this wait.
    pub fn open(path: &Path, read_only: bool, direct: bool) -> Result<Self, Error> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path).map_err(
            |source| match source.raw_os_error() {
                Some(libc::EINVAL) if direct => Error::NoDirect { path: path.into() },
                _ => Error::Open { path: path.into(), source },
            },
        )?;
        let inspect = |source| Error::Inspect { path: path.into(), source };
        let metadata = file.metadata().map_err(inspect)?;
        let is_block_device = metadata.file_type().is_block_device();
        if !is_block_device && !metadata.is_file() {
            return Err(Error::Kind { path: path.into() });
        }
        set_blocking(&file).map_err(inspect)?;
        let alignment = if direct {
            direct_alignment(&file).map_err(inspect)?.ok_or_else(|| Error::NoDirect { path: path.into() })?
        } else {
            Alignment::NONE
        };
        let topology = if is_block_device {
            device_topology(&file)
        } else {
            let block = u32::try_from(metadata.blksize()).ok();
            block.map(|block| Topology {
                physical_block: block,
                alignment_offset: 0,
                min_io: block,
                opt_io: 0,
            })
        };
        Ok(Self { file, info: DiskInfo { read_only, is_block_device, alignment, topology } })
    }

    /// `fallocate` with a mode that zeroes or frees.
    fn fallocate(&self, mode: c_int, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (file_offset(offset)?, file_offset(len)?);
        // SAFETY: the call takes no pointers.
        call(|| unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } as isize).map(drop)
    }

    /// Zeroes a range the hard way.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let mut rest = end.saturating_sub(at);
            let mut segments = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 256];
            let mut count = 0_usize;
            for segment in &mut segments {
                let piece = rest.min(ZEROES.0.len() as u64);
                if piece == 0 {
                    break;
                }
                // The kernel only reads from it.
                *segment = iovec { iov_base: ZEROES.0.as_ptr().cast_mut().cast(), iov_len: piece as usize };
                rest = rest.saturating_sub(piece);
                count = count.saturating_add(1);
            }
            let written = self.write_vectored(segments.get(..count).unwrap_or_default(), at, 0)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at = at.saturating_add(written as u64);
        }
        Ok(())
    }

    /// The segments are mapped: those of [`Segments`], or [`ZEROES`].
    fn write_vectored(&self, segments: &[iovec], offset: u64, flags: c_int) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let (at, count) = (segments.as_ptr(), segments.len() as c_int);
        // SAFETY: the segments are mapped, and the call only reads them.
        call(|| unsafe { libc::pwritev2(self.file.as_raw_fd(), at, count, offset, flags) })
    }
}

impl Disk for FileDisk {
    fn info(&self) -> &DiskInfo {
        &self.info
    }

    fn size(&self) -> io::Result<u64> {
        if self.info.is_block_device {
            // The position is not used for anything else.
            (&self.file).seek(SeekFrom::End(0))
        } else {
            Ok(self.file.metadata()?.len())
        }
    }

    fn read(&self, to: Segments<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let (at, count) = (to.iovecs().as_ptr(), to.iovecs().len() as c_int);
        // SAFETY: the segments are mapped and may be written (see `Segments`).
        call(|| unsafe { libc::preadv(self.file.as_raw_fd(), at, count, offset) })
    }

    fn write(&self, from: Segments<'_>, offset: u64, durable: bool) -> io::Result<usize> {
        self.write_vectored(from.iovecs(), offset, if durable { libc::RWF_DSYNC } else { 0 })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn clear(&self, how: Clear, offset: u64, len: u64) -> io::Result<()> {
        if self.info.is_block_device {
            let request = if how == Clear::Discard { BLKDISCARD } else { BLKZEROOUT };
            let range = [offset, len];
            // SAFETY: both requests read an array of two 64-bit numbers, and the pointer is to one.
            let done =
                call(|| unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, range.as_ptr()) } as isize);
            return match done {
                // The kernel zeroes whole blocks of the device, and the guest's may be smaller.
                Err(error) if how != Clear::Discard && error.kind() == io::ErrorKind::InvalidInput => {
                    self.write_zeroes(offset, len)
                }
                done => done.map(drop),
            };
        }
        let modes: &[c_int] = match how {
            Clear::Discard => &[PUNCH_HOLE],
            Clear::Zero { unmap: true } => &[PUNCH_HOLE, ZERO_RANGE],
            Clear::Zero { unmap: false } => &[ZERO_RANGE],
        };
        for mode in modes {
            match self.fallocate(*mode, offset, len) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                done => return done,
            }
        }
        match how {
            Clear::Discard => Err(io::ErrorKind::Unsupported.into()),
            Clear::Zero { .. } => self.write_zeroes(offset, len),
        }
    }
}

impl AsFd for FileDisk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Memory as direct I/O wants it.
#[repr(align(4096))]
struct Page([u8; 4096]);

static ZEROES: Page = Page([0; 4096]);

/// Undoes O_NONBLOCK, which is for opening: an I/O ring would give up instead of waiting for the disk.
fn set_blocking(file: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    let flags = call(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } as isize)?;
    let flags = flags as c_int & !libc::O_NONBLOCK;
    // SAFETY: the call takes no pointers.
    call(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } as isize).map(drop)
}

/// What direct I/O on `file` needs; `None` when it does not work, or needs more than 4 KiB.
fn direct_alignment(file: &File) -> io::Result<Option<Alignment>> {
    // SAFETY: zeroes are a valid `statx`.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, and the call writes one `statx`, which the last pointer is to.
    call(|| unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut stat)
            as isize
    })?;
    let alignment = if stat.stx_mask & libc::STATX_DIOALIGN != 0 {
        Alignment { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align }
    } else {
        ALIGNMENT_UNKNOWN
    };
    let is_possible = |value: u32| value.is_power_of_two() && value <= 4096;
    Ok(Some(alignment).filter(|found| is_possible(found.memory) && is_possible(found.offset)))
}

fn device_topology(file: &File) -> Option<Topology> {
    Some(Topology {
        physical_block: get(file, libc::BLKPBSZGET as c_ulong).ok()?,
        // Negative when the device is misaligned in a way that cannot be told.
        alignment_offset: get(file, BLKALIGNOFF).ok().filter(|offset| *offset <= i32::MAX as u32)?,
        min_io: get(file, libc::BLKIOMIN as c_ulong).ok()?,
        opt_io: get(file, libc::BLKIOOPT as c_ulong).ok()?,
    })
}

/// A property of a block device: one of the requests that give a 32-bit number.
fn get(file: &File, request: c_ulong) -> io::Result<u32> {
    let mut value: c_uint = 0;
    // SAFETY: the request writes a 32-bit number, and the pointer is to one.
    call(|| unsafe { libc::ioctl(file.as_raw_fd(), request as _, &mut value) } as isize)?;
    Ok(value)
}

fn file_offset(offset: u64) -> io::Result<off_t> {
    off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The result of a system call, made again when a signal interrupted it.
fn call(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(result) => return Ok(result),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
