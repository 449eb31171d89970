//! A program run one instruction at a time, by ptrace(2).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::ptrace;

/// The addresses of all instructions that a program runs from its start to its end, counted from where it is loaded, in the
/// order in which they are first run. Another thread meanwhile has the `company` keep the program company, and end it if it
/// does not by itself.
pub fn trace(
    command: &mut Command,
    company: impl FnOnce(&mut Child) -> Result<()> + Send,
) -> Result<Vec<u64>> {
    let what = format!("cannot trace {}", command.get_program().display());
    // SAFETY: the closure makes one system call, which touches no memory.
    unsafe {
        command.pre_exec(|| ptrace::request(libc::PTRACE_TRACEME, 0, 0));
    }
    let mut child = command.spawn().doing(|| what.clone())?;
    let pid = child.id().cast_signed();
    std::thread::scope(|scope| {
        let company = scope.spawn(|| company(&mut child));
        // Only the thread that started a program may trace it.
        let addresses = follow(pid);
        if addresses.is_err() {
            // SAFETY: kill takes plain numbers; nobody but this thread waits for the program.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        company.join().map_err(|_| Error::Protocol("the program's company panicked".to_owned()))??;
        addresses.doing(|| what)
    })
}

/// Follows a program and its threads from its first instruction on.
fn follow(pid: i32) -> io::Result<Vec<u64>> {
    ptrace::wait(-1)?;
    ptrace::request(libc::PTRACE_SETOPTIONS, pid, libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL)?;
    let program = mapping(pid)?;
    ptrace::request(libc::PTRACE_SINGLESTEP, pid, 0)?;
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    loop {
        let (thread, status) = ptrace::wait(-1)?;
        if !libc::WIFSTOPPED(status) {
            if thread == pid {
                return Ok(order);
            }
            continue;
        }
        if let Ok(address) = ptrace::registers(thread).map(|registers| registers.rip)
            && program.contains(&address)
            && seen.insert(address)
        {
            order.push(address - program.start);
        }
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP | libc::SIGSTOP => 0,
            signal => signal,
        };
        // A thread that another one ends at this moment is heard of by the next wait.
        match ptrace::request(libc::PTRACE_SINGLESTEP, thread, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
}

/// Where the program is mapped, from its first byte to its last.
fn mapping(pid: i32) -> io::Result<Range<u64>> {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let ranges = maps.lines().filter(|line| line.ends_with(&*program.to_string_lossy())).filter_map(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
    });
    ranges.reduce(|all, range| all.start..range.end).ok_or(io::Error::other("it is mapped nowhere"))
}
