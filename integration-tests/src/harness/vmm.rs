//! `vmm` without a conversation: started with some arguments, watched to its end.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::host::started;
use super::{Process, vmm_path};
use crate::error::{Error, Result};
use crate::run::die_with_parent;

/// A `vmm` to run to its end.
pub struct Vmm {
    command: Command,
}

/// How a program ended and what it said.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The lines of standard error.
    pub fn stderr_lines(&self) -> Vec<&str> {
        self.stderr.lines().collect()
    }
}

impl Vmm {
    /// The `vmm` under test with these arguments, nothing on standard input.
    pub fn new(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self> {
        Ok(Self::with_program(vmm_path()?, arguments))
    }

    /// Another program, run in the same way.
    pub fn with_program(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        Self { command }
    }

    /// The command, for variables, working folder, `pre_exec`.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs it to its end. One that does not end in time is killed; the error is a timeout that shows what it said.
    pub fn run(mut self, limit: Duration) -> Result<Ended> {
        let child = spawn(self.command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut child = started(child, &self.command)?;
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let name = Path::new(self.command.get_program()).file_name().unwrap_or_default().to_string_lossy();
        let mut process = Process::new(child, &name);
        let waited = process.wait(limit);
        // Ends a process that went on, and with it the pipes.
        drop(process);
        let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        match waited {
            Ok(status) => Ok(Ended { status, stdout, stderr }),
            Err(Error::Timeout { what, after }) => {
                let what = format!("{what} (stdout {stdout:?}, stderr {stderr:?})");
                Err(Error::Timeout { what, after })
            }
            Err(error) => Err(error),
        }
    }
}

/// A program that has just been written may be open for writing a moment longer: in a child that another thread has
/// forked and that has not got as far as its own program.
fn spawn(command: &mut Command) -> io::Result<Child> {
    const BUSY: Duration = Duration::from_secs(5);
    let start = Instant::now();
    let command = die_with_parent(command);
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && start.elapsed() < BUSY => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before a failure is what there is.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_and_the_code_are_kept_apart() {
        let ended = Vmm::with_program("sh", ["-c", "echo out; echo one >&2; echo two >&2; exit 152"]);
        let ended = ended.run(Duration::from_secs(10)).unwrap();
        assert_eq!(ended.code(), Some(152));
        assert_eq!(ended.stdout, "out\n");
        assert_eq!(ended.stderr_lines(), ["one", "two"]);
    }

    #[test]
    fn a_timeout_shows_what_was_said() {
        let vmm = Vmm::with_program("sh", ["-c", "echo stuck >&2; exec sleep 1000"]);
        let error = vmm.run(Duration::from_secs(3)).unwrap_err().to_string();
        assert!(error.contains("stuck"), "{error}");
    }
}
