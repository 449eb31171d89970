//! The tracer: a process beside `vmm` that the kernel asks about calls whose rule shall be reported (ptrace(2),
//! `PTRACE_O_TRACESECCOMP`). It ends with the last thread of `vmm`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use kindling_integration_tests::ptrace;

const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESECCOMP
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK;

/// Signals that stop a process.
const STOPS: [libc::c_int; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Has a new process trace the calling one, which has no other thread, and all that it starts. It is no child of the calling
/// process, which may not expect one.
pub fn start(folder: &Path) -> io::Result<()> {
    let (mut ready, tell) = io::pipe()?;
    let traced = std::process::id().cast_signed();
    match fork()? {
        0 => {
            if let Ok(0) = fork() {
                let keep = tell.as_raw_fd();
                close_all_but(keep);
                if ptrace::request(libc::PTRACE_SEIZE, traced, OPTIONS).is_ok() {
                    let _ = io::Write::write_all(&mut &tell, b".");
                    drop(tell);
                    trace(folder);
                }
            }
            // SAFETY: ends a process that has nothing to clean up.
            unsafe { libc::_exit(0) }
        }
        child => {
            drop(tell);
            // SAFETY: the call takes numbers, and no status.
            unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
            ready.read_exact(&mut [0])
        }
    }
}

fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: the process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(child),
    }
}

/// Standard streams are pipes whose other ends wait for `vmm` to close them.
fn close_all_but(kept: libc::c_int) {
    let kept = kept.cast_unsigned();
    for (first, last) in [(0, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        // SAFETY: the process uses no descriptor but the one that is kept.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Lets every thread go on from wherever it stops, until there is none any more.
fn trace(folder: &Path) {
    while let Ok((pid, status)) = ptrace::wait(-1) {
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let (how, signal) = match status >> 16 {
            0 => (libc::PTRACE_CONT, signal),
            libc::PTRACE_EVENT_SECCOMP => {
                note(pid, folder);
                (libc::PTRACE_CONT, 0)
            }
            // It stays stopped, as it would without a tracer.
            libc::PTRACE_EVENT_STOP if STOPS.contains(&signal) => (libc::PTRACE_LISTEN, 0),
            _ => (libc::PTRACE_CONT, 0),
        };
        // Fails for a thread that was killed meanwhile.
        let _ = ptrace::request(how, pid, signal);
    }
}

/// Notes the rule for which a thread has stopped.
fn note(pid: libc::pid_t, folder: &Path) {
    if let Ok(rule) = ptrace::event_message(pid) {
        let path = folder.join(rule.to_string());
        if !fs::exists(&path).unwrap_or(false) {
            let _ = File::create(path);
        }
    }
}
