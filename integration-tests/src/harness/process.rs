//! A process of a test: signalled by its own id, waited for within limits, killed and reaped at the end of the test.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use super::scaled;
use crate::error::{Context, Error, Result};

/// How often an unfinished process is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A child process that does not outlive its owner.
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
    what: String,
}

impl Process {
    /// Takes over a child; `what` names it in messages.
    pub fn new(child: Child, what: &str) -> Self {
        Self { child, status: None, what: what.to_owned() }
    }

    /// Its process id. After its end has been seen, the number may be another process's.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().doing(|| format!("cannot wait for {}", self.what))?;
        }
        Ok(self.status)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let limit = scaled(limit);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout { what: format!("the end of {}", self.what), after: limit });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends it a signal; an error if it has ended.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        if let Some(status) = self.status()? {
            let text = format!("cannot send signal {signal} to {}: it has ended ({status})", self.what);
            return Err(Error::Protocol(text));
        }
        let pid = i32::try_from(self.id()).unwrap_or(i32::MAX);
        // SAFETY: kill takes plain numbers. The child has not been reaped, so the id is still its own.
        crate::terminal::check(unsafe { libc::kill(pid, signal) })
            .doing(|| format!("cannot send signal {signal} to {}", self.what))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Both fail only for a process that is gone.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(script: &str) -> Process {
        Process::new(Command::new("sh").args(["-c", script]).spawn().unwrap(), "the shell")
    }

    #[test]
    fn the_exit_status_is_seen_again_and_again() {
        let mut process = shell("exit 7");
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().code(), Some(7));
        assert_eq!(process.status().unwrap().unwrap().code(), Some(7));
        assert!(process.signal(libc::SIGTERM).is_err());
    }

    #[test]
    fn a_process_that_goes_on_is_a_timeout_and_dies_with_its_owner() {
        let mut process = shell("exec sleep 1000");
        let error = process.wait(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let stat = format!("/proc/{}/stat", process.id());
        assert!(std::fs::exists(&stat).unwrap());
        drop(process);
        assert!(!std::fs::exists(&stat).unwrap());
    }

    #[test]
    fn a_signal_reaches_it() {
        use std::os::unix::process::ExitStatusExt;
        let mut process = shell("exec sleep 1000");
        process.signal(libc::SIGTERM).unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().signal(), Some(libc::SIGTERM));
    }
}
