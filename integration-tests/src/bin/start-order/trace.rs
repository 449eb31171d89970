//! A program run one instruction at a time, by ptrace(2).

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::terminal::check;

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
        command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0));
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
    wait()?;
    ptrace(libc::PTRACE_SETOPTIONS, pid, libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL)?;
    let program = mapping(pid)?;
    ptrace(libc::PTRACE_SINGLESTEP, pid, 0)?;
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    loop {
        let (thread, status) = wait()?;
        if !libc::WIFSTOPPED(status) {
            if thread == pid {
                return Ok(order);
            }
            continue;
        }
        if let Ok(address) = instruction(thread)
            && program.contains(&address)
            && seen.insert(address)
        {
            order.push(address - program.start);
        }
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP | libc::SIGSTOP => 0,
            signal => signal,
        };
        // A thread that another one ends at this moment is heard of by `wait`.
        match ptrace(libc::PTRACE_SINGLESTEP, thread, signal) {
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

/// The address of the instruction that a thread is about to run.
fn instruction(thread: i32) -> io::Result<u64> {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
    let none: *mut libc::c_void = ptr::null_mut();
    // SAFETY: the kernel writes the registers of a traced thread to the structure, which is large enough.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, none, registers.as_mut_ptr()) } as c_int)?;
    // SAFETY: the call has filled it in.
    Ok(unsafe { registers.assume_init() }.rip)
}

/// A request of ptrace whose only argument is a number.
fn ptrace(request: libc::c_uint, thread: i32, data: c_int) -> io::Result<()> {
    let none: *mut libc::c_void = ptr::null_mut();
    // SAFETY: these requests take the data for a number and touch no memory of ours.
    check(unsafe { libc::ptrace(request, thread, none, data as libc::c_long) } as c_int)
}

/// The next thread that has stopped or ended, and how.
fn wait() -> io::Result<(i32, c_int)> {
    let mut status = 0;
    // SAFETY: the kernel writes a number to the variable.
    let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL) };
    check(thread)?;
    Ok((thread, status))
}
