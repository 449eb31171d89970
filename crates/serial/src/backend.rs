//! Where the port's bytes come from and go to: the standard streams, a file, a pseudo-terminal or a Unix socket. Serves
//! [`Console`](crate::Console), which does the waiting; nothing here ever waits.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::channel::{Channel, Direction, ReadOutcome, WriteOutcome, is_terminal};
use crate::terminal;

/// One place for the port's bytes.
#[derive(Debug)]
pub struct Backend {
    input: Option<Channel>,
    output: Option<Channel>,
    interactive: bool,
    pty: Option<Pty>,
    socket: Option<Socket>,
}

/// Our own hold on the slave side: while it is open, the master neither hangs up nor loses its mode.
#[derive(Debug)]
struct Pty {
    path: PathBuf,
    _slave: OwnedFd,
}

#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that only our own socket is removed.
    identity: (u64, u64),
}

impl Backend {
    /// Standard input and output, as [`streams`](Self::streams).
    pub fn stdio() -> Result<Self, Error> {
        // SAFETY: programs are started with descriptors 0 to 2 open, or open them first thing, and nothing closes them; the
        // borrows end with this function.
        let (stdin, stdout) = unsafe { (BorrowedFd::borrow_raw(0), BorrowedFd::borrow_raw(1)) };
        Self::streams(stdin, stdout)
    }

    /// Any pair of descriptors, of which duplicates are kept. Their flags are left alone, for other processes may share
    /// them, as the shell does standard input and output.
    ///
    /// A terminal that belongs to another job (the monitor was started in the background) gives no input: reading it
    /// would stop the process.
    pub fn streams(input: BorrowedFd, output: BorrowedFd) -> Result<Self, Error> {
        let take = |stream: BorrowedFd, direction| {
            Channel::shared(stream, direction)
                .map_err(|source| Error::Stream { fd: stream.as_raw_fd(), source })
        };
        let terminal = is_terminal(&input);
        let input = if terminal && terminal::in_background(input.as_raw_fd()) {
            None
        } else {
            Some(take(input, Direction::Input)?)
        };
        let interactive = terminal && input.is_some();
        Ok(Backend { interactive, ..Self::new(input, Some(take(output, Direction::Output)?)) })
    }

    /// A descriptor for the output alone, treated like those of [`streams`](Self::streams): nothing that is written to
    /// it makes the caller wait.
    pub fn output(output: BorrowedFd) -> Result<Self, Error> {
        let fd = output.as_raw_fd();
        let output =
            Channel::shared(output, Direction::Output).map_err(|source| Error::Stream { fd, source })?;
        Ok(Self::new(None, Some(output)))
    }

    /// A file for the output, created (for its owner alone) if missing, appended to otherwise; there is no input. Also takes a FIFO,
    /// whose readers may come and go, or a device; refuses directories.
    pub fn file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        // Who has a FIFO open for reading, too, need not wait for another reader.
        let is_fifo = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
        let output = OpenOptions::new()
            .read(is_fifo)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .and_then(Channel::own)
            .map_err(|source| Error::OpenFile { path: path.to_owned(), source })?;
        Ok(Self::new(None, Some(output)))
    }

    /// A new pseudo-terminal in raw mode, whose other side is at [`pty_path`](Self::pty_path).
    ///
    /// Output waits for somebody to open it, as far as it fits the kernel's buffer and the port's.
    pub fn pty() -> Result<Self, Error> {
        Self::open_pty().map_err(Error::OpenPty)
    }

    fn open_pty() -> io::Result<Self> {
        let master = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open("/dev/ptmx")?;
        let unlock: libc::c_int = 0;
        let mut number: libc::c_uint = 0;
        // SAFETY: TIOCSPTLCK reads one int, which lives across the call.
        check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
        // SAFETY: TIOCGPTN writes one unsigned int, which lives across the call.
        check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: TIOCGPTPEER takes flags by value and touches no memory of ours.
        let slave = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
        // SAFETY: the call has just returned this descriptor, and nothing else owns it.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        terminal::make_raw(slave.as_raw_fd())?;

        let input = Channel::own(master.try_clone()?)?;
        let pty = Pty { path: PathBuf::from(format!("/dev/pts/{number}")), _slave: slave };
        Ok(Backend { pty: Some(pty), ..Self::new(Some(input), Some(Channel::own(master)?)) })
    }

    /// A Unix socket that listens at `path`, which must not exist and is removed when the back end is dropped.
    ///
    /// It serves one client at a time: while there is one, others are accepted and closed at once. Output is discarded
    /// while there is none.
    pub fn socket(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        match Self::listen(&path) {
            Ok(socket) => Ok(Backend { socket: Some(socket), ..Self::new(None, None) }),
            Err(source) => Err(Error::Listen { path, source }),
        }
    }

    fn listen(path: &Path) -> io::Result<Socket> {
        let listener = UnixListener::bind(path)?;
        let identity = path.symlink_metadata().map(|file| (file.dev(), file.ino()))?;
        let socket = Socket { listener, path: path.to_owned(), identity };
        socket.listener.set_nonblocking(true)?;
        Ok(socket)
    }

    fn new(input: Option<Channel>, output: Option<Channel>) -> Self {
        Backend { input, output, interactive: false, pty: None, socket: None }
    }

    /// Where a pseudo-terminal's other side can be opened.
    pub fn pty_path(&self) -> Option<&Path> {
        self.pty.as_ref().map(|pty| pty.path.as_path())
    }

    /// Whether a person types the input, at a terminal.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// The descriptor to wait for before [`read`](Self::read); `None` when there will be no input (from this client).
    pub fn input_fd(&self) -> Option<RawFd> {
        self.input.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The descriptor to wait for before [`write`](Self::write), never the same as that for input; `None` when nobody
    /// reads the output (any more).
    pub fn output_fd(&self) -> Option<RawFd> {
        self.output.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether epoll takes the input's descriptor. It refuses regular files and `/dev/null`, which are always ready.
    pub fn input_pollable(&self) -> bool {
        self.input.as_ref().is_some_and(Channel::pollable)
    }

    /// As [`input_pollable`](Self::input_pollable), for the output.
    pub fn output_pollable(&self) -> bool {
        self.output.as_ref().is_some_and(Channel::pollable)
    }

    /// Reads what there is, without waiting.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<ReadOutcome> {
        self.input.as_mut().map_or(Ok(ReadOutcome::Eof), |input| input.read(buffer))
    }

    /// Writes what is taken, without waiting. An error (a full disk, say) need not last: the next write may succeed.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<WriteOutcome> {
        self.output.as_mut().map_or(Ok(WriteOutcome::Closed), |output| output.write(bytes))
    }
}

/// What the console asks of the back end beyond reading and writing.
impl Backend {
    pub(crate) fn listener_fd(&self) -> Option<RawFd> {
        self.socket.as_ref().map(|socket| socket.listener.as_raw_fd())
    }

    /// Whether the output's descriptor must be watched for a hang-up even when there is nothing to write, because it
    /// makes room for the next client.
    pub(crate) fn output_may_hang_up(&self) -> bool {
        self.output.as_ref().is_some_and(Channel::is_socket)
    }

    pub(crate) fn close_input(&mut self) {
        self.input = None;
        self.interactive = false;
    }

    pub(crate) fn close_output(&mut self) {
        self.output = None;
    }

    /// Waits until the output takes something, at most for `limit`.
    pub(crate) fn wait_for_output(&self, limit: Duration) -> io::Result<()> {
        match &self.output {
            Some(output) if output.pollable() => output.wait(libc::POLLOUT, limit).map(drop),
            _ => Ok(()),
        }
    }

    /// Takes a waiting client from the socket: `Ok(None)` when there is none, or it was turned away.
    pub(crate) fn accept(&mut self) -> io::Result<Option<UnixStream>> {
        let Some(socket) = &self.socket else { return Ok(None) };
        match socket.listener.accept() {
            // Dropping the stream is what turns the client away.
            Ok((stream, _)) => Ok(Some(stream).filter(|_| self.output.is_none())),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Serves `client` from now on.
    pub(crate) fn attach(&mut self, client: UnixStream) -> io::Result<()> {
        let input = client.as_fd().try_clone_to_owned()?;
        self.input = Some(Channel::socket(input));
        self.output = Some(Channel::socket(client.into()));
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = |file: std::fs::Metadata| (file.dev(), file.ino()) == self.identity;
        if self.path.symlink_metadata().is_ok_and(ours) {
            // Whether the path is left behind changes nothing for anybody who is still there.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
