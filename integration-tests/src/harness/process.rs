//! A process of a test: signalled by its own id, waited for within limits, killed and reaped at the end of the test.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
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
    /// Whose end ends the watch over the time that the process may live.
    _alive: Option<Sender<()>>,
}

impl Process {
    /// Takes over a child; `what` names it in messages.
    pub fn new(child: Child, what: &str) -> Self {
        Self { child, status: None, what: what.to_owned(), _alive: None }
    }

    /// The same for a child that is killed when it has lived for `life`. Whoever waits for something of it, even without a
    /// limit, then learns that it has ended.
    pub fn limited(child: Child, what: &str, life: Duration) -> io::Result<Self> {
        let mut process = Self::new(child, what);
        let pid = libc::pid_t::try_from(process.id()).unwrap_or(libc::pid_t::MAX);
        // SAFETY: the call takes numbers. The child has not been reaped, so the id is still its own.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the descriptor was just made and nothing else owns it.
        let watched = unsafe { OwnedFd::from_raw_fd(fd) };
        let (alive, ended) = mpsc::channel();
        let (life, name) = (scaled(life), what.to_owned());
        std::thread::spawn(move || {
            if ended.recv_timeout(life) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} has lived for {life:?}: whatever its test waits for, it is ended");
                kill(&watched);
            }
        });
        process._alive = Some(alive);
        Ok(process)
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

fn kill(process: &OwnedFd) {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without further information the call takes numbers. It fails only for a process that is gone.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, no_info, 0) };
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
    fn a_process_that_outlives_its_limit_is_killed_and_no_other() {
        use std::os::unix::process::ExitStatusExt;
        let start = |life: u64| {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            Process::limited(child, "the sleeper", Duration::from_millis(life)).unwrap()
        };
        let (mut short, mut long) = (start(20), start(100_000));
        assert_eq!(short.wait(Duration::from_secs(10)).unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(long.status().unwrap(), None);
    }

    #[test]
    fn a_signal_reaches_it() {
        use std::os::unix::process::ExitStatusExt;
        let mut process = shell("exec sleep 1000");
        process.signal(libc::SIGTERM).unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().signal(), Some(libc::SIGTERM));
    }
}
