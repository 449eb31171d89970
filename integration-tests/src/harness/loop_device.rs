//! A block device of the host: a loop device over a file (Linux, include/uapi/linux/loop.h).

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::terminal::check;

const LOOP_SET_FD: libc::c_ulong = 0x4c00;
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;

/// A loop device over a file of its own. Needs root.
pub struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
    device: File,
}

impl LoopDevice {
    /// A device of so many bytes, all of them zero. Its node is `name` in `folder`, for everybody who may see the folder.
    pub fn new(folder: &Path, name: &str, bytes: u64) -> Result<Self> {
        let (path, file) = (folder.join(name), folder.join(format!("{name}.file")));
        let doing = || format!("cannot make the block device {}", path.display());
        let backing = OpenOptions::new().read(true).write(true).create_new(true).open(&file).doing(doing)?;
        backing.set_len(bytes).doing(doing)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        let control = control.doing(|| "cannot open /dev/loop-control".to_owned())?;
        loop {
            // SAFETY: the request takes nothing.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            check(number.min(0)).doing(doing)?;
            let place = format!("/dev/loop{number}");
            let device = OpenOptions::new().read(true).write(true).open(&place).doing(doing)?;
            // SAFETY: the request takes a descriptor, which is open.
            match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, backing.as_raw_fd()) }) {
                // Somebody else was quicker.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
                result => result.doing(doing)?,
            }
            let loop_device = Self { path: path.clone(), file, device };
            let number = fs::metadata(&place).doing(doing)?.rdev();
            let node = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
            // SAFETY: the path is a string that ends in NUL.
            check(unsafe { libc::mknod(node.as_ptr(), libc::S_IFBLK | 0o666, number) }).doing(doing)?;
            return Ok(loop_device);
        }
    }

    /// The node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds what the device does.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // SAFETY: the request takes nothing.
        if let Err(error) = check(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD) }) {
            eprintln!("cannot give up {}: {error}", self.path.display());
        }
    }
}
