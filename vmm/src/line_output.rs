//! One destination for lines: standard error, a file or a FIFO. Serves the log and the metrics.
//!
//! Nothing here waits: neither a vCPU that logs nor the event loop may depend on whoever reads. A file or FIFO is opened
//! for this alone and never blocks; standard error may be shared with other processes, which is why lines go through
//! [`Backend`]. A line that is not taken is lost. One that is taken in part is finished before the next, so that no line
//! ever follows half of another.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use kindling_serial::{Backend, WriteOutcome};

/// See the [module](self).
#[derive(Debug)]
pub struct LineOutput {
    destination: Destination,
    /// What is left of a line that was taken in part.
    rest: Vec<u8>,
}

#[derive(Debug)]
enum Destination {
    StandardError,
    File(File),
    /// What the first line made of one of these.
    Open(Backend),
    /// There was nothing to be made of it.
    Lost,
}

impl LineOutput {
    /// Standard error.
    pub const fn standard_error() -> Self {
        Self { destination: Destination::StandardError, rest: Vec::new() }
    }

    /// A file, which is created (for its owner alone) if missing and appended to otherwise, or a FIFO, which need not have
    /// a reader yet.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let is_fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
        let file = OpenOptions::new()
            // Reading too keeps a FIFO open while its reader comes and goes.
            .read(is_fifo)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        Ok(Self { destination: Destination::File(file), rest: Vec::new() })
    }

    /// Opens now what the first line would, for threads that may not open anything when they write one. Returns the
    /// descriptor that lines go to; where there can be none, all lines are lost from now on.
    pub fn prepare(&mut self) -> Option<RawFd> {
        match self.destination.open() {
            Ok(backend) => backend.output_fd(),
            Err(_) => {
                self.destination = Destination::Lost;
                None
            }
        }
    }

    /// Writes `line`, which ends in a line feed.
    ///
    /// # Errors
    ///
    /// Why nothing of the line was written: [`io::ErrorKind::WouldBlock`] where a FIFO, pipe or terminal is full,
    /// [`io::ErrorKind::BrokenPipe`] where its reader has gone, else what the system said. The next line may fare better.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let backend = self.destination.open()?;
        let (taken, refusal) = push(backend, &self.rest);
        self.rest.drain(..taken);
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        match push(backend, line) {
            (0, Some(refusal)) => Err(refusal),
            (taken, _) => {
                self.rest.extend_from_slice(line.get(taken..).unwrap_or_default());
                Ok(())
            }
        }
    }
}

impl Destination {
    fn open(&mut self) -> io::Result<&mut Backend> {
        let made = match self {
            Self::StandardError => Some(Backend::output(io::stderr().as_fd())),
            Self::File(file) => Some(Backend::output(file.as_fd())),
            Self::Open(_) | Self::Lost => None,
        };
        if let Some(made) = made {
            *self = Self::Open(made.map_err(io::Error::other)?);
        }
        match self {
            Self::Open(backend) => Ok(backend),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Writes what is taken of `bytes`: how many, and why not all.
fn push(backend: &mut Backend, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut taken = 0;
    while let Some(rest @ [_, ..]) = bytes.get(taken..) {
        match backend.write(rest) {
            Ok(WriteOutcome::Taken(count)) => taken += count,
            Ok(WriteOutcome::NotReady) => return (taken, Some(io::ErrorKind::WouldBlock.into())),
            Ok(WriteOutcome::Closed) => return (taken, Some(io::ErrorKind::BrokenPipe.into())),
            Err(error) => return (taken, Some(error)),
        }
    }
    (taken, None)
}

#[cfg(test)]
pub mod tests {
    use std::ffi::CString;
    use std::io::Read;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use super::*;

    /// A FIFO that nobody reads.
    pub fn fifo(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("fifo");
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a string that ends in NUL and lives across the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        path
    }

    /// A reader of a FIFO, which finds it empty and not at its end while nothing is written.
    pub fn reader(path: &Path) -> File {
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
    }

    /// What there is to read at once.
    pub fn read(reader: &mut File) -> String {
        let mut bytes = Vec::new();
        match reader.read_to_end(&mut bytes) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
            _ => String::from_utf8(bytes).unwrap(),
        }
    }

    /// A line of `length` bytes.
    pub fn line(letter: char, length: usize) -> String {
        let mut line = letter.to_string().repeat(length - 1);
        line.push('\n');
        line
    }

    #[test]
    fn lines_are_appended_to_a_file_which_only_its_owner_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        for text in ["one\n", "two\n"] {
            LineOutput::open(&path).unwrap().write(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_prepared_output_opens_nothing_for_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut output = LineOutput::open(&path).unwrap();
        let fd = output.prepare().unwrap();
        let identity = |path: &str| std::fs::metadata(path).map(|file| file.ino()).unwrap();
        assert_eq!(identity(&format!("/proc/self/fd/{fd}")), identity(path.to_str().unwrap()));
        output.write(b"one\n").unwrap();
        assert_eq!(output.prepare(), Some(fd));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
    }

    #[test]
    fn a_line_that_a_fifo_takes_in_part_is_finished_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(&folder);
        let mut output = LineOutput::open(&path).unwrap();
        let lines = ['a', 'b', 'c', 'd'].map(|letter| line(letter, 40_000));
        output.write(lines[0].as_bytes()).unwrap();
        output.write(lines[1].as_bytes()).unwrap();
        // The FIFO has room for 65,536 bytes.
        assert_eq!(output.write(lines[2].as_bytes()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut reader = reader(&path);
        let first = read(&mut reader);
        assert!(first.len() < 80_000, "{}", first.len());
        output.write(lines[3].as_bytes()).unwrap();
        let all = first + &read(&mut reader);
        assert!(all == format!("{}{}{}", lines[0], lines[1], lines[3]));
    }

    #[test]
    fn a_line_longer_than_a_fifo_arrives_as_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(&folder);
        let mut output = LineOutput::open(&path).unwrap();
        let mut reader = reader(&path);
        let lines = [line('a', 100_000), line('b', 10)];
        output.write(lines[0].as_bytes()).unwrap();
        let first = read(&mut reader);
        output.write(lines[1].as_bytes()).unwrap();
        assert!(first + &read(&mut reader) == lines.concat());
    }
}
