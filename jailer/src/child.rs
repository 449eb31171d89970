//! The process of its own that the monitor gets with `--daemonize` or `--new-pid-ns`, and what the jailer hears of it.
//!
//! Two pipes lie between the two. By one the jailer lets the child go on, once the child's number is on record: a monitor
//! that is not on record would keep no second one out. By the other the child reports. `execve` closes that pipe, and
//! what is in it tells how it went.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem;
use std::thread;
use std::time::Duration;

use crate::EXIT_FAILED;
use crate::error::{Error, one_line};
use crate::inside::Inside;
use crate::jail::Jail;
use crate::sys::{self, check};
use crate::undo::Undo;

/// What a jailer writes when its child may go on.
const RECORDED: u8 = b'!';
/// What a child writes when all that is left to do is `execve`.
const READY: u8 = b'.';

/// How often a child is looked at that the kernel has not put its program in place of yet.
const EXECUTION_POLL: Duration = Duration::from_micros(100);

/// Runs the monitor in a child, and waits until it has been executed.
pub(crate) fn start(mut inside: Inside<'_>, jail: &Jail, undo: &mut Undo) -> Result<(), Error> {
    let doing = "start a process for the monitor";
    let (reader, writer) = io::pipe().map_err(Error::process(doing))?;
    let (go_reader, go_writer) = io::pipe().map_err(Error::process(doing))?;
    if inside.options.new_pid_ns {
        sys::unshare(libc::CLONE_NEWPID).map_err(Error::process("make a process ID namespace"))?;
    }
    // Whoever started the jailer may have it ignored, and then nobody can be told how a child has ended.
    // SAFETY: the default action involves no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    inside.start.before_fork();
    // SAFETY: the process has one thread, so that its child can go on as it did.
    match check(unsafe { libc::fork() }).map_err(Error::process(doing))? {
        0 => {
            drop(reader);
            // Or the child would wait for itself.
            drop(go_writer);
            become_monitor(inside, go_reader, writer)
        }
        pid => {
            // Process numbers are positive and fit into 31 bits.
            let pid = pid as libc::pid_t;
            drop(writer);
            drop(go_reader);
            let result = jail.record(pid.unsigned_abs(), undo).and_then(|()| follow(pid, go_writer, reader));
            if result.is_err() {
                // SAFETY: the calls take numbers; nobody else waits for the child, so that the number is its own.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, std::ptr::null_mut(), 0);
                }
            }
            result
        }
    }
}

/// Lets the child go on, and waits until it has executed the monitor or failed.
fn follow(pid: libc::pid_t, mut go: PipeWriter, mut reader: PipeReader) -> Result<(), Error> {
    // A child that is not there to read it reports nothing, either.
    let _ = go.write_all(&[RECORDED]);
    let doing = "hear of the monitor's process";
    let mut report = Vec::new();
    reader.read_to_end(&mut report).map_err(Error::process(doing))?;
    understand(&report)?;
    match killed_by(pid).map_err(Error::process(doing))? {
        Some(signal) => {
            let hint = "is its file damaged, or memory short?";
            let fault = format!("signal {signal} ended the monitor's process as it was executed ({hint})");
            Err(Error::Child(fault))
        }
        None => Ok(()),
    }
}

/// What a child's report says of it: nothing but that it was ready, if the pipe was closed by `execve`.
fn understand(report: &[u8]) -> Result<(), Error> {
    match report.strip_prefix(&[READY]).unwrap_or(report) {
        [] if report.is_empty() => {
            Err(Error::Child("the monitor's process ended before it began".to_owned()))
        }
        [] => Ok(()),
        text => Err(Error::Child(String::from_utf8_lossy(text).into_owned())),
    }
}

/// The signal that has ended a child, whose end of the pipe is closed: an `execve` that fails when it has discarded the old
/// program already cannot return, and ends the process instead. The child is left to be waited for.
fn killed_by(pid: libc::pid_t) -> io::Result<Option<i32>> {
    loop {
        // Once it has been put in place, a program has a command line. The kernel closes the pipe some moments before.
        let is_executed = !fs::read(format!("/proc/{pid}/cmdline"))?.is_empty();
        // SAFETY: all zeros is a valid `siginfo_t`.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
        // SAFETY: the call writes one `siginfo_t`.
        check(unsafe { libc::waitid(libc::P_PID, pid.unsigned_abs(), &raw mut info, flags) })?;
        match info.si_code {
            // SAFETY: the call has filled in what there is to an ended child.
            libc::CLD_KILLED | libc::CLD_DUMPED => return Ok(Some(unsafe { info.si_status() })),
            libc::CLD_EXITED => return Ok(None),
            _ if is_executed => return Ok(None),
            _ => thread::sleep(EXECUTION_POLL),
        }
    }
}

/// What the child does; its parent takes back what fails.
fn become_monitor(inside: Inside<'_>, mut go: PipeReader, mut report: PipeWriter) -> ! {
    let error = match go.read_exact(&mut [0]).and_then(|()| report.try_clone()) {
        Ok(mut ready) => inside.execute(&mut Undo::default(), || ready.write_all(&[READY])),
        // Without the jailer, which would take back what fails, nobody is told, either.
        Err(error) => Error::process("hear of the jailer's process")(error),
    };
    let _ = report.write_all(one_line(&error).as_bytes());
    // SAFETY: the call does not return; what would run at an exit is the parent's.
    unsafe { libc::_exit(EXIT_FAILED.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_child_that_was_ready_and_said_nothing_more_has_been_executed() {
        assert!(understand(b".").is_ok());
        let error = |report: &[u8]| understand(report).unwrap_err().to_string();
        assert!(error(b"").contains("ended before"));
        assert_eq!(error(b"cannot mount"), "cannot mount");
        assert_eq!(error(b".cannot execute"), "cannot execute");
    }
}
