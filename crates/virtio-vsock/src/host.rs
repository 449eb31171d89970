//! The host's side: a listening Unix socket, the sockets of host programs, and the line with which a host program says
//! where it wants to go.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::{Error, socket};

/// Most bytes of the line with which a host program begins, line feed included.
const LINE_BYTES: usize = 32;

/// The device's listening socket.
pub struct Host {
    path: PathBuf,
    listener: UnixListener,
}

impl Host {
    /// Creates the socket at `path`, where nothing may be yet.
    pub fn bind(path: &Path) -> Result<(Self, SocketFile), Error> {
        let error = |source| Error::Listen { path: path.to_owned(), source };
        let listener = UnixListener::bind(path).map_err(error)?;
        let file = SocketFile::new(path).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        Ok((Self { path: path.to_owned(), listener }, file))
    }

    /// The listening socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Connects to the host program that listens for guests that want `port`.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        socket::connect(path.as_ref())
    }
}

/// The name of a listening socket in the file system, removed when this is dropped, unless it is another's by then.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    stays: AtomicBool,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)?, stays: AtomicBool::new(false) })
    }

    /// Has the file stay when this is dropped: for whoever removes it, and takes it for a mistake when it is gone.
    pub fn leave(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = || identity(&self.path).is_ok_and(|identity| identity == self.identity);
        if !self.stays.load(Ordering::Relaxed) && ours() {
            // Fails when it is gone, and that is what is wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A host program that has connected, and has not said yet where it wants to go.
pub struct Handshake {
    pub stream: UnixStream,
    /// When it should have said it.
    pub deadline: Instant,
    /// Whether the socket is watched.
    pub watched: bool,
    line: [u8; LINE_BYTES],
    len: usize,
}

/// How far a handshake is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The rest of the line has still to come.
    Waiting,
    /// The host program wants to go to this port of the guest.
    Wants(u32),
    /// That was no line as it should be, or the program is gone.
    Failed,
}

impl Handshake {
    pub fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self { stream, deadline, watched: false, line: [0; LINE_BYTES], len: 0 }
    }

    /// Takes what there is of the line, and nothing that comes behind it: that is for the guest.
    pub fn proceed(&mut self) -> Progress {
        let (line, rest) = self.line.split_at_mut(self.len);
        let seen = match socket::peek(&self.stream, rest) {
            Ok(0) => return Progress::Failed,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Waiting,
            Err(_) => return Progress::Failed,
        };
        let new = rest.get_mut(..seen).unwrap_or_default();
        let end = new.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(seen, |end| end.saturating_add(1));
        let new = new.get_mut(..taken).unwrap_or_default();
        // The bytes are there, and this is their only reader.
        if self.stream.read_exact(new).is_err() {
            return Progress::Failed;
        }
        self.len = line.len().saturating_add(new.len());
        let Some(line) = self.line.get(..self.len) else { return Progress::Failed };
        match end {
            Some(_) => parse(line).map_or(Progress::Failed, Progress::Wants),
            None if self.len == LINE_BYTES => Progress::Failed,
            None => Progress::Waiting,
        }
    }
}

/// The port in a line `CONNECT <port>`. Case and white space do not matter.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (command, port, None) = (words.next()?, words.next()?, words.next()) else { return None };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || !command.eq_ignore_ascii_case("CONNECT") {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_word_and_a_decimal_port() {
        assert_eq!(parse(b"CONNECT 52\n"), Some(52));
        assert_eq!(parse(b"CONNECT 0\n"), Some(0));
        assert_eq!(parse(b"CONNECT 4294967295\n"), Some(u32::MAX));
        assert_eq!(parse(b"connect \t52 \r\n"), Some(52));
        for line in [
            &b"CONNECT 4294967296\n"[..],
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT 0x10\n",
            b"CONNECT\n",
            b"CONNECT52\n",
            b"CONNECT 52 53\n",
            b"HELLO 52\n",
            b"52\n",
            b"\n",
            b"\xff\xfe 52\n",
        ] {
            assert_eq!(parse(line), None, "{}", line.escape_ascii());
        }
    }
}
