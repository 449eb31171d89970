//! The terminal that the monitor was started from, in raw mode while a guest has it, and as it was on every way out.
//!
//! Raw means cfmakeraw(3), output processing included: a guest's full-screen programs rely on a line feed that moves
//! down and nothing else, so what the guest sends must arrive as sent. Whoever writes lines of its own to the terminal
//! in the meantime asks [`is_raw`] and ends them with `\r\n`.
//!
//! The ways out: the [`RawMode`] guard covers returns and panics that unwind; [`restore`] is for `process::exit` and for
//! signal handlers; [`restore_on_fatal_signals`] covers crashes and `abort`. SIGTERM and its like are the business of
//! the event loop, which ends in one of the former.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::Error;
use crate::channel::is_terminal;

/// A terminal, and its mode before it was made raw.
struct Saved {
    terminal: OwnedFd,
    mode: libc::termios,
}

/// What is to be restored; null when nothing is. A `Saved` is never freed: a handler in another thread may be using it.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

/// Keeps a terminal in raw mode; dropping it restores the mode from before. There is at most one per process.
#[derive(Debug)]
#[must_use = "dropping the guard restores the terminal"]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal at standard input raw. `None` when standard input is no terminal, or one that belongs to
    /// another job (the monitor runs in the background), which must not have it changed under its hands.
    pub fn enable() -> Result<Option<Self>, Error> {
        // SAFETY: programs are started with descriptor 0 open, or open it first thing, and nothing closes it; the borrow ends
        // with this function.
        let stdin = unsafe { BorrowedFd::borrow_raw(0) };
        if !is_terminal(&stdin) || in_background(stdin.as_raw_fd()) {
            return Ok(None);
        }
        Self::enable_on(stdin.try_clone_to_owned().map_err(Error::Terminal)?).map(Some)
    }

    /// Makes `terminal` raw, and keeps it open for good (a signal handler may need it at any time).
    pub fn enable_on(terminal: OwnedFd) -> Result<Self, Error> {
        let fd = terminal.as_raw_fd();
        let mode = mode_of(fd).map_err(Error::Terminal)?;
        let saved = Box::into_raw(Box::new(Saved { terminal, mode }));
        // Stored before the mode changes: a signal in between restores what is there anyway.
        if SAVED.compare_exchange(ptr::null_mut(), saved, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: the pointer comes from `Box::into_raw` above and was not shared.
            drop(unsafe { Box::from_raw(saved) });
            return Err(Error::AlreadyRaw);
        }
        let guard = RawMode(());
        make_raw(fd).map_err(Error::Terminal)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal if it is raw, from anywhere: async-signal-safe, and harmless when repeated.
pub fn restore() {
    let saved = SAVED.load(Ordering::Acquire);
    // SAFETY: a non-null pointer came from `Box::into_raw` in `enable_on` and is never freed once it is stored.
    let Some(Saved { terminal, mode }) = (unsafe { saved.as_ref() }) else { return };
    // Best effort: a terminal that has hung up needs no restoring.
    let _ = set_mode(terminal.as_raw_fd(), mode);
    // Only after the fact, so that a handler that interrupts this does the work itself.
    let _ = SAVED.compare_exchange(saved, ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed);
}

/// Whether the terminal is in raw mode, so that lines must end with `\r\n`.
pub fn is_raw() -> bool {
    !SAVED.load(Ordering::Acquire).is_null()
}

/// Has the terminal restored when the process dies of SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT or SIGXCPU, and lets
/// it die of the same signal. Replaces the handlers that are there, the standard library's for stack overflows too. SIGSYS is left to
/// whoever has seccomp filters; its handler can call [`restore`].
///
/// A seccomp filter must allow `ioctl(TCSETS)`, `rt_sigprocmask` and what raise(3) uses.
pub fn restore_on_fatal_signals() -> Result<(), Error> {
    extern "C" fn handler(signal: libc::c_int) {
        restore();
        // The action has been reset to the default; the signal comes once this handler returns.
        // SAFETY: raise is async-signal-safe and touches no memory of ours.
        unsafe { libc::raise(signal) };
    }
    let handler: extern "C" fn(libc::c_int) = handler;
    let fatal = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGXCPU,
    ];
    for signal in fatal {
        // SAFETY: all zeroes is a valid sigaction: default action, empty mask, no flags.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
        // SAFETY: `action` is initialised, and its handler is async-signal-safe and fits the flags (one argument).
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(Error::Signal { signal, source: io::Error::last_os_error() });
        }
    }
    Ok(())
}

/// Whether `fd` is our controlling terminal and another process group has it.
pub(crate) fn in_background(fd: RawFd) -> bool {
    // SAFETY: both calls touch no memory of ours.
    let (foreground, ours) = unsafe { (libc::tcgetpgrp(fd), libc::getpgrp()) };
    // -1: not our controlling terminal, so there is no job control to mind.
    foreground != -1 && foreground != ours
}

/// Makes the terminal at `fd` raw.
pub(crate) fn make_raw(fd: RawFd) -> io::Result<()> {
    let mut mode = mode_of(fd)?;
    // SAFETY: `mode` is an initialised termios, exclusively borrowed.
    unsafe { libc::cfmakeraw(&raw mut mode) };
    set_mode(fd, &mode)
}

fn mode_of(fd: RawFd) -> io::Result<libc::termios> {
    let mut mode = MaybeUninit::uninit();
    // SAFETY: tcgetattr writes a termios to the pointer, which is valid for that.
    if unsafe { libc::tcgetattr(fd, mode.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr has succeeded, so it has filled the structure.
    Ok(unsafe { mode.assume_init() })
}

/// Sets the mode at once, without waiting for output to drain, which might take for ever. Async-signal-safe.
fn set_mode(fd: RawFd, mode: &libc::termios) -> io::Result<()> {
    // From a background process this raises SIGTTOU, which stops the process; it goes through when that is blocked.
    // SAFETY: both sets live across the calls that read and write them, and `sigemptyset` initialises its own first;
    // `mode` is a valid termios. All five functions are async-signal-safe.
    unsafe {
        let mut blocked = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        libc::sigemptyset(blocked.as_mut_ptr());
        libc::sigaddset(blocked.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr());
        let result = libc::tcsetattr(fd, libc::TCSANOW, mode);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        if result == 0 { Ok(()) } else { Err(error) }
    }
}
