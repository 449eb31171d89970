//! One direction of a back end: a file descriptor that is read or written without ever waiting, whatever it is and
//! whoever shares it. Serves [`Backend`](crate::Backend).
//!
//! `O_NONBLOCK` belongs to the open file description, which a standard stream shares with the shell and its other
//! children: setting it there breaks them. Terminals and pipes are therefore opened again through `/proc`, which gives a
//! description of our own; sockets have a flag per call; regular files and devices that epoll refuses never wait (for
//! long). Where opening again is not allowed (another user's terminal, no `/proc`), poll(2) is asked before every
//! transfer, and only as much is written as a ready descriptor surely takes. That falls short in one case: another
//! process that uses the same pipe or terminal between the two calls can still make us wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What a pipe that polls as writable takes without waiting.
const PIPE_CHUNK: usize = libc::PIPE_BUF;
/// What any other descriptor that polls as writable takes without waiting.
const CHUNK: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Input,
    Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The description is non-blocking.
    NonBlocking,
    /// A socket: every call says that it must not wait.
    Socket,
    /// Nothing to wait for, and epoll refuses it.
    AlwaysReady,
    /// The description blocks: poll first, then write at most this much.
    PollFirst(usize),
}

/// What came of an attempt to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes, at least one.
    Data(usize),
    /// Nothing for now: wait until the descriptor is readable.
    NotReady,
    /// Nothing ever again.
    Eof,
}

/// What came of an attempt to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// So many bytes were taken, at least one.
    Taken(usize),
    /// None for now: wait until the descriptor is writable.
    NotReady,
    /// None ever again: the reader has gone.
    Closed,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Channel {
    file: File,
    mode: Mode,
}

impl Channel {
    /// Takes a descriptor whose description may be shared with other processes, and leaves its flags alone.
    pub(crate) fn shared(fd: BorrowedFd, direction: Direction) -> io::Result<Self> {
        let file = File::from(fd.try_clone_to_owned()?);
        let kind = file.metadata()?;
        if kind.file_type().is_socket() {
            return Ok(Channel { file, mode: Mode::Socket });
        }
        let is_pipe = kind.file_type().is_fifo();
        let is_device =
            |major, minor| kind.file_type().is_char_device() && kind.rdev() == libc::makedev(major, minor);
        let is_null = is_device(1, 3);
        // What a service has for standard streams is known without asking epoll.
        if is_null || (!is_pipe && !accepts_epoll(&file)?) {
            return Ok(Channel { file, mode: Mode::AlwaysReady });
        }
        if is_non_blocking(&file)? {
            return Ok(Channel { file, mode: Mode::NonBlocking });
        }
        // Opening the master of a pseudo-terminal again would give a new pseudo-terminal.
        let is_pty_master = is_device(5, 2);
        if is_pipe || (is_terminal(&file) && !is_pty_master) {
            let again = OpenOptions::new()
                .read(direction == Direction::Input)
                .write(direction == Direction::Output)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
            if let Ok(file) = again {
                return Ok(Channel { file, mode: Mode::NonBlocking });
            }
        }
        Ok(Channel { file, mode: Mode::PollFirst(if is_pipe { PIPE_CHUNK } else { CHUNK }) })
    }

    /// Takes a descriptor that was opened with `O_NONBLOCK` for this purpose alone.
    pub(crate) fn own(file: File) -> io::Result<Self> {
        let mode = if accepts_epoll(&file)? { Mode::NonBlocking } else { Mode::AlwaysReady };
        Ok(Channel { file, mode })
    }

    /// Takes a connected stream socket.
    pub(crate) fn socket(socket: OwnedFd) -> Self {
        Channel { file: File::from(socket), mode: Mode::Socket }
    }

    /// Whether epoll can tell when the channel is ready. One that it refuses is ready always.
    pub(crate) fn pollable(&self) -> bool {
        self.mode != Mode::AlwaysReady
    }

    pub(crate) fn is_socket(&self) -> bool {
        self.mode == Mode::Socket
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<ReadOutcome> {
        if buffer.is_empty() || (self.must_poll() && !self.wait(libc::POLLIN, Duration::ZERO)?) {
            return Ok(ReadOutcome::NotReady);
        }
        loop {
            let result =
                if self.mode == Mode::Socket { self.receive(buffer) } else { self.file.read(buffer) };
            match result {
                Ok(0) => return Ok(ReadOutcome::Eof),
                Ok(count) => return Ok(ReadOutcome::Data(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.pollable() => {
                    return Ok(ReadOutcome::NotReady);
                }
                // A terminal that has hung up, a client that has gone.
                Err(error)
                    if error.raw_os_error() == Some(libc::EIO)
                        || error.kind() == io::ErrorKind::ConnectionReset =>
                {
                    return Ok(ReadOutcome::Eof);
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<WriteOutcome> {
        let Mode::PollFirst(chunk) = self.mode else { return self.write_once(bytes) };
        let mut taken: usize = 0;
        for piece in bytes.chunks(chunk) {
            if !self.wait(libc::POLLOUT, Duration::ZERO)? {
                break;
            }
            match self.write_once(piece) {
                Ok(WriteOutcome::Taken(count)) => taken = taken.saturating_add(count),
                // What has been taken is reported first; the rest will fail again.
                other if taken == 0 => return other,
                _ => break,
            }
        }
        Ok(if taken == 0 { WriteOutcome::NotReady } else { WriteOutcome::Taken(taken) })
    }

    fn write_once(&mut self, bytes: &[u8]) -> io::Result<WriteOutcome> {
        loop {
            let result = if self.mode == Mode::Socket { self.send(bytes) } else { self.file.write(bytes) };
            match result {
                Ok(0) if self.pollable() => return Ok(WriteOutcome::NotReady),
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => return Ok(WriteOutcome::Taken(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.pollable() => {
                    return Ok(WriteOutcome::NotReady);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(WriteOutcome::Closed);
                }
                // A terminal that has hung up. (A regular file's EIO is a failed disk: the next write may succeed.)
                Err(error) if error.raw_os_error() == Some(libc::EIO) && self.pollable() => {
                    return Ok(WriteOutcome::Closed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits at most `limit` (rounded up to a millisecond) for `events`, and returns whether an attempt is worthwhile.
    pub(crate) fn wait(&self, events: libc::c_short, limit: Duration) -> io::Result<bool> {
        poll(self.as_raw_fd(), events, limit)
    }

    fn must_poll(&self) -> bool {
        matches!(self.mode, Mode::PollFirst(_))
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and length are those of a live, exclusively borrowed slice.
        let result = unsafe {
            libc::recv(self.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pointer and length are those of a live slice.
        let result = unsafe { libc::send(self.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether `fd` refers to a terminal.
pub(crate) fn is_terminal(fd: &impl AsRawFd) -> bool {
    // SAFETY: isatty takes any number and touches no memory of ours.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}

fn poll(fd: RawFd, events: libc::c_short, limit: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let millis = i32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    // SAFETY: `entry` is one valid, exclusively borrowed pollfd, and the count says one.
    match unsafe { libc::poll(&raw mut entry, 1, millis) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        // Errors and hang-ups too: the attempt will tell which.
        count => Ok(count > 0),
    }
}

fn accepts_epoll(file: &File) -> io::Result<bool> {
    match Epoll::new()?.ctl(ControlOperation::Add, file.as_raw_fd(), EpollEvent::new(EventSet::empty(), 0)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_non_blocking(file: &File) -> io::Result<bool> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags & libc::O_NONBLOCK != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::pipe;
    use std::os::fd::FromRawFd;

    fn blocking(file: File, chunk: usize) -> Channel {
        assert!(!is_non_blocking(&file).unwrap());
        Channel { file, mode: Mode::PollFirst(chunk) }
    }

    fn terminal() -> (File, File) {
        let (mut master, mut slave) = (0, 0);
        let (name, mode, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: the two out-pointers are valid, the others may be null.
        unsafe {
            assert_eq!(libc::openpty(&raw mut master, &raw mut slave, name, mode, size), 0);
            (File::from_raw_fd(master), File::from_raw_fd(slave))
        }
    }

    #[test]
    fn a_blocking_pipe_or_terminal_that_nobody_reads_takes_some_and_never_waits() {
        let (_reader, writer) = pipe().unwrap();
        let (_master, slave) = terminal();
        let pipe = blocking(File::from(OwnedFd::from(writer)), PIPE_CHUNK);
        for mut channel in [pipe, blocking(slave, CHUNK)] {
            let mut taken = 0;
            while let WriteOutcome::Taken(count) = channel.write(&[b'x'; 8192]).unwrap() {
                taken += count;
            }
            assert!(taken >= 1024, "{taken}");
            assert_eq!(channel.write(b"x").unwrap(), WriteOutcome::NotReady);
        }
    }

    #[test]
    fn a_blocking_pipe_or_terminal_that_nobody_writes_gives_nothing_and_never_waits() {
        let (reader, _writer) = pipe().unwrap();
        let (_master, slave) = terminal();
        for file in [File::from(OwnedFd::from(reader)), slave] {
            let mut channel = blocking(file, CHUNK);
            assert_eq!(channel.read(&mut [0; 8]).unwrap(), ReadOutcome::NotReady);
        }
    }

    #[test]
    fn the_ends_of_a_blocking_pipe_are_noticed() {
        let (reader, writer) = pipe().unwrap();
        drop(writer);
        let mut channel = blocking(File::from(OwnedFd::from(reader)), PIPE_CHUNK);
        assert_eq!(channel.read(&mut [0; 8]).unwrap(), ReadOutcome::Eof);
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut channel = blocking(File::from(OwnedFd::from(writer)), PIPE_CHUNK);
        assert_eq!(channel.write(b"x").unwrap(), WriteOutcome::Closed);
    }

    #[test]
    fn terminals_and_pipes_are_opened_again_and_pty_masters_are_not() {
        let (reader, writer) = pipe().unwrap();
        let (master, slave) = terminal();
        let mode = |fd: BorrowedFd, direction| Channel::shared(fd, direction).unwrap().mode;
        assert_eq!(mode(reader.as_fd(), Direction::Input), Mode::NonBlocking);
        assert_eq!(mode(writer.as_fd(), Direction::Output), Mode::NonBlocking);
        assert_eq!(mode(slave.as_fd(), Direction::Output), Mode::NonBlocking);
        assert_eq!(mode(master.as_fd(), Direction::Output), Mode::PollFirst(CHUNK));
    }
}
