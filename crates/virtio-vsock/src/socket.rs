//! The system calls on Unix sockets that the standard library has no form of, or only one that waits.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use kindling_virtio_device::Readable;
use libc::{c_int, iovec};

/// Connects to the listener at `path`, or fails at once; also when the listener has a full queue.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    let path = path.as_os_str().as_bytes();
    // The last byte stays 0.
    if path.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointers.
    let socket = owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to an address of that length, which the call only reads.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket.into()) }
}

/// Takes a connection from the queue of `listener`.
pub fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let none = std::ptr::null_mut();
    // SAFETY: the call writes no address when there is no place for one.
    owned(unsafe { libc::accept4(listener.as_raw_fd(), none, none.cast(), flags) }).map(UnixStream::from)
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends what is left of a chain's readable buffers; nothing is used up. Returns how many bytes the socket took.
pub fn send_readable(socket: &UnixStream, buffers: &Readable) -> io::Result<usize> {
    let segments = buffers.iovecs();
    // SAFETY: the segments lie in guest memory and are valid for as long as the chain.
    unsafe { send(socket, segments.as_ptr(), segments.len()) }
}

/// Sends bytes. Returns how many the socket took.
pub fn send_slices(socket: &UnixStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: an `IoSlice` is an `iovec` by its documentation, of memory that is borrowed.
    unsafe { send(socket, slices.as_ptr().cast(), slices.len()) }
}

/// `writev`: unlike `sendmsg`, which a filter of system calls could allow as well, it gives no descriptor away.
///
/// # Safety
///
/// The `count` segments must be there, and the memory that they describe must be readable.
unsafe fn send(socket: &UnixStream, segments: *const iovec, count: usize) -> io::Result<usize> {
    let count = count.min(libc::UIO_MAXIOV as usize) as c_int;
    loop {
        // SAFETY: the caller vouches for the segments, which the call only reads.
        let result = unsafe { libc::writev(socket.as_raw_fd(), segments, count) };
        match usize::try_from(result) {
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

/// Looks at the bytes that `socket` has, without taking them. Returns how many there are.
pub fn peek(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the call writes at most that many bytes to a slice that has them.
    let result = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
