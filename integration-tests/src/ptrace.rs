//! Tracing of threads by ptrace(2), as far as tests and tools need it. Only the thread that has begun to trace another may
//! ask anything of it.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::{c_long, c_uint, c_ulong, c_void, pid_t, user_regs_struct};

use crate::terminal::check;

/// Makes a request whose only argument is a number, such as `PTRACE_CONT`, of a thread.
pub fn request(request: c_uint, thread: pid_t, data: c_int) -> io::Result<()> {
    let nowhere = ptr::null_mut::<c_void>();
    // SAFETY: such requests touch no memory of this process.
    check_long(unsafe { libc::ptrace(request, thread, nowhere, c_long::from(data)) })
}

/// Waits until a traced thread, or any with -1, has stopped or ended. Returns which, and its status.
pub fn wait(thread: pid_t) -> io::Result<(pid_t, c_int)> {
    let mut status = 0;
    // SAFETY: the kernel writes a number to the variable.
    let thread = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    check(thread)?;
    Ok((thread, status))
}

/// The registers of a thread that has stopped.
pub fn registers(thread: pid_t) -> io::Result<user_regs_struct> {
    let nowhere = ptr::null_mut::<c_void>();
    let mut registers = MaybeUninit::<user_regs_struct>::uninit();
    // SAFETY: the kernel writes the registers to the structure, which is the one that it expects.
    check_long(unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, nowhere, registers.as_mut_ptr()) })?;
    // SAFETY: the call has filled it in.
    Ok(unsafe { registers.assume_init() })
}

/// Gives a thread that has stopped other registers.
pub fn set_registers(thread: pid_t, registers: &user_regs_struct) -> io::Result<()> {
    let nowhere = ptr::null_mut::<c_void>();
    // SAFETY: the kernel reads the structure, which is the one that it expects.
    check_long(unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, nowhere, ptr::from_ref(registers)) })
}

/// What the event tells for which a thread has stopped.
pub fn event_message(thread: pid_t) -> io::Result<c_ulong> {
    let nowhere = ptr::null_mut::<c_void>();
    let mut message: c_ulong = 0;
    // SAFETY: the kernel writes a number to the variable.
    check_long(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, thread, nowhere, &raw mut message) })?;
    Ok(message)
}

fn check_long(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
