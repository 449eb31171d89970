//! What becomes of a thread that makes a forbidden system call: SIGSYS, whose handler says which it was and ends the
//! process.
//!
//! The handler may interrupt anything: it takes no lock, allocates nothing, and waits for nobody.

use std::fmt::{self, Write};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::names::name;

/// The process's exit code after a forbidden system call, the one that Firecracker's supervisors know.
pub const EXIT_FORBIDDEN: u8 = 148;

/// Longest report in bytes: that a pipe takes it whole or not at all, it must be no longer than PIPE_BUF.
const REPORT_MAX: usize = 160;

/// What is called before the process ends: a `fn()`, or null.
static BEFORE_EXIT: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Where the report goes besides standard error; negative for nowhere.
static LOG: AtomicI32 = AtomicI32::new(-1);

/// Has the process end with [`EXIT_FORBIDDEN`] when one of its threads makes a forbidden system call, and a line on
/// standard error say which. `before_exit` is called first; it must be async-signal-safe, and every filter must allow what it
/// does.
///
/// # Errors
///
/// When the kernel does not take the handler.
pub fn install_handler(before_exit: fn()) -> io::Result<()> {
    BEFORE_EXIT.store(before_exit as *mut (), Ordering::Release);
    // SAFETY: all zeroes is a valid sigaction: default action, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handler;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised, and its handler is async-signal-safe and fits the flags (three arguments).
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the report go to the log too, whose descriptor this is, or to standard error alone again. The descriptor must stay
/// open until then.
pub fn report_to(log: Option<RawFd>) {
    LOG.store(log.unwrap_or(-1), Ordering::Release);
}

/// The parts of `siginfo_t` that a SIGSYS has (sigaction(2)).
#[repr(C)]
struct Sys {
    _signo: c_int,
    _errno: c_int,
    code: c_int,
    _padding: c_int,
    _call_addr: *mut c_void,
    syscall: c_int,
    _arch: u32,
}

/// `si_code` of a SIGSYS that a filter brought about.
const SYS_SECCOMP: c_int = 1;

extern "C" fn handler(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let before_exit = BEFORE_EXIT.load(Ordering::Acquire);
    if !before_exit.is_null() {
        // SAFETY: what is stored there is null or a `fn()`.
        unsafe { std::mem::transmute::<*mut (), fn()>(before_exit)() };
    }
    // SAFETY: the kernel passes a `siginfo_t`, which is at least as large as `Sys` and has the same beginning.
    let info = unsafe { &*info.cast::<Sys>() };
    if info.code != SYS_SECCOMP {
        // Somebody sent it. The signal comes again once this handler returns.
        // SAFETY: both are async-signal-safe and touch no memory of ours.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    let report = Report::new(info.syscall as u32);
    write(2, report.bytes());
    write(LOG.load(Ordering::Acquire), report.bytes());
    // SAFETY: the call does not return and touches no memory of ours.
    unsafe { libc::_exit(EXIT_FORBIDDEN.into()) };
}

/// Writes `bytes` if that needs no waiting.
fn write(fd: RawFd, bytes: &[u8]) {
    let mut ready = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the first call gets one `pollfd` and says so; the second one reads the bytes of a slice.
    unsafe {
        if libc::poll(&raw mut ready, 1, 0) > 0 {
            libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        }
    }
}

/// One line in a buffer of its own; what does not fit is left out.
struct Report {
    buffer: [u8; REPORT_MAX],
    len: usize,
}

impl Report {
    fn new(syscall: u32) -> Self {
        let mut report = Report { buffer: [0; REPORT_MAX], len: 0 };
        let mut thread = [0; 16];
        // SAFETY: PR_GET_NAME writes at most 16 bytes, the last of them NUL.
        unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
        let name_of_thread = thread.split(|byte| *byte == 0).next().unwrap_or_default();
        // Writing into the buffer does not fail.
        let _ = write!(report, "vmm: the thread {:?} made ", Printable(name_of_thread));
        let _ = match name(syscall) {
            Some(name) => writeln!(report, "the forbidden system call {name} ({syscall})"),
            None => writeln!(report, "a forbidden system call of number {syscall:#x}"),
        };
        report
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

impl Write for Report {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let rest = self.buffer.get_mut(self.len..).unwrap_or_default();
        let len = rest.len().min(text.len());
        for (to, from) in rest.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.len = self.len.saturating_add(len);
        Ok(())
    }
}

/// The name of a thread in quotes, whatever it has.
struct Printable<'a>(&'a [u8]);

impl fmt::Debug for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
