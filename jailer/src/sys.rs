//! System calls that the standard library does not offer, each as a function that is safe to call.
//!
//! Files are named by an open folder and one name in it, so that nothing between the root and the file can be exchanged
//! behind our back; a final symbolic link is never followed.

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// The system's answer as a result.
pub(crate) fn check(result: impl Into<c_long>) -> io::Result<c_long> {
    match result.into() {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// The same for a call whose answer is a new descriptor.
///
/// # Safety
///
/// Nobody else may own the descriptor that `result` is.
pub(crate) unsafe fn new_file(result: impl Into<c_long>) -> io::Result<File> {
    let fd = check(result)?;
    // SAFETY: the caller says that the descriptor is new; descriptors fit into 32 bits.
    Ok(unsafe { File::from_raw_fd(fd as RawFd) })
}

/// Closes every descriptor but standard input, output and error.
pub(crate) fn close_all_but_stdio() -> io::Result<()> {
    // SAFETY: nothing in this process has opened a descriptor that it goes on to use.
    check(unsafe { libc::close_range(3, c_uint::MAX, 0) }).map(drop)
}

/// Opens `name` in `folder`. `flags` without `O_CLOEXEC` and `O_NOFOLLOW`, which are added.
pub(crate) fn open_at(folder: &File, name: &CStr, flags: c_int, mode: libc::mode_t) -> io::Result<File> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: the name is a string that ends in NUL; the descriptor is new.
    unsafe { new_file(libc::openat(folder.as_raw_fd(), name.as_ptr(), flags, mode)) }
}

/// Makes the folder `name` in `folder`, with `mode`.
pub(crate) fn make_folder_at(folder: &File, name: &CStr, mode: libc::mode_t) -> io::Result<()> {
    // SAFETY: the name is a string that ends in NUL.
    check(unsafe { libc::mkdirat(folder.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Makes a character device in `folder` that belongs to `owner`.
pub(crate) fn make_device_at(
    folder: &File,
    name: &CStr,
    mode: libc::mode_t,
    device: libc::dev_t,
    (uid, gid): (u32, u32),
) -> io::Result<()> {
    // SAFETY: the name is a string that ends in NUL.
    check(unsafe { libc::mknodat(folder.as_raw_fd(), name.as_ptr(), libc::S_IFCHR | mode, device) })?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: as above.
    check(unsafe { libc::fchownat(folder.as_raw_fd(), name.as_ptr(), uid, gid, flags) }).map(drop)
}

/// What `name` in `folder` is.
pub(crate) fn stat_at(folder: &File, name: &CStr) -> io::Result<libc::stat> {
    // SAFETY: all zeros is a valid `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name is a string that ends in NUL, and the call writes one `stat`.
    check(unsafe { libc::fstatat(folder.as_raw_fd(), name.as_ptr(), &raw mut stat, flags) })?;
    Ok(stat)
}

/// Whether a file has a POSIX access control list (acl(5)) beyond what its mode says.
pub(crate) fn has_acl(file: &File) -> io::Result<bool> {
    let name = c"system.posix_acl_access";
    // SAFETY: the name is a string that ends in NUL; with a length of 0 the call only tells how long the list is.
    let length = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), std::ptr::null_mut(), 0) };
    match check(length as c_long) {
        // There is none, or the file system has none.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(false),
        result => result.map(|_| true),
    }
}

/// Removes the file `name` in `folder`.
pub(crate) fn remove_at(folder: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a string that ends in NUL.
    check(unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Removes the empty folder `name` in `folder`.
pub(crate) fn remove_folder_at(folder: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a string that ends in NUL.
    check(unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// Takes the exclusive lock on an open file, which lasts until every copy of the descriptor is closed. `WouldBlock` if
/// somebody has it.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    // SAFETY: the call takes numbers and touches no memory.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Sets the mask of permissions that new files do not get, and returns the one that was.
pub(crate) fn umask(mask: libc::mode_t) -> libc::mode_t {
    // SAFETY: the call takes a number and cannot fail.
    unsafe { libc::umask(mask) }
}

/// A `prctl` with up to two numbers as its arguments.
pub(crate) fn prctl(operation: c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    const NONE: libc::c_ulong = 0;
    // SAFETY: operations that this crate uses take numbers only.
    check(unsafe { libc::prctl(operation, first, second, NONE, NONE) }).map(drop)
}

/// Moves the process into new namespaces; a new process ID namespace is for its next child.
pub(crate) fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: the process has one thread, and namespaces are no memory.
    check(unsafe { libc::unshare(namespaces) }).map(drop)
}
