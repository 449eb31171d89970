//! The signals of the process: those that ask it to end, read by the event loop through a signalfd, and the one that
//! interrupts a vCPU thread.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use libc::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGPWR, SIGQUIT, SIGSTKFLT, SIGTERM, SIGUSR1, SIGUSR2,
    SIGVTALRM, c_int, c_void, siginfo_t, signalfd_siginfo, sigset_t,
};
use vmm_sys_util::signal::{SIGRTMIN, create_sigset, register_signal_handler, unblock_signal};

/// Signals that stop the guest and end the process in good order: those that come from outside and would end it anyway, but
/// leave the terminal raw. With SIGXCPU the exit code would be that of a bad configuration; it counts among the crashes.
pub const ENDING: [c_int; 12] = [
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT,
];

/// The ending signals of this process, blocked in every thread and readable here instead. Dropping this gives the
/// calling thread its mask from before, and signals that nobody has read take their usual effect.
pub struct EndingSignals {
    arrived: File,
    mask: sigset_t,
}

impl EndingSignals {
    /// Blocks the ending signals in the calling thread, and so in every thread it starts afterwards. Signals that whoever
    /// started the process has it ignore (as nohup does) stay ignored.
    pub fn take_over() -> io::Result<Self> {
        // A blocked signal is queued, and would be read here, although it is ignored.
        let watched: Vec<c_int> = ENDING.into_iter().filter(|signal| !is_ignored(*signal)).collect();
        let set = create_sigset(&watched).map_err(io::Error::from)?;
        let mut mask = MaybeUninit::uninit();
        // SAFETY: `set` is a valid signal set, and `mask` has room for another.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, mask.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: the call has succeeded, so it has filled in the mask.
        let mask = unsafe { mask.assume_init() };
        // SAFETY: `set` is a valid signal set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nothing else owns it.
        let arrived = unsafe { File::from_raw_fd(fd) };
        Ok(EndingSignals { arrived, mask })
    }

    /// The number of the next signal that has arrived, if any.
    pub fn next(&mut self) -> Option<c_int> {
        let mut buffer = [0u8; size_of::<signalfd_siginfo>()];
        // A signalfd hands out whole records only, so anything else means that there is none.
        match self.arrived.read(&mut buffer) {
            Ok(length) if length == buffer.len() => {}
            _ => return None,
        }
        // The record begins with `ssi_signo`.
        c_int::try_from(u32::from_ne_bytes(*buffer.first_chunk()?)).ok()
    }
}

impl AsRawFd for EndingSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.arrived.as_raw_fd()
    }
}

impl Drop for EndingSignals {
    fn drop(&mut self) {
        // SAFETY: the mask is what `pthread_sigmask` once filled in; a null old set asks for nothing back.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, std::ptr::null_mut()) };
    }
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks for the present one, for which there is room.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid sigaction too.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Has a write beyond the file size limit fail, so that it is one lost write and not the end of the process.
pub fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal involves no handler; SIGXFSZ is a valid signal, so that this cannot fail.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The signal that makes `KVM_RUN` return in a vCPU thread.
pub fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn ignore(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

/// Gives [`kick_signal`] a handler that does nothing: its arrival alone interrupts `KVM_RUN`. Whoever started the process
/// may have it blocked, so it is unblocked in the calling thread, and so in every thread it starts afterwards.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), ignore).map_err(io::Error::from)?;
    unblock_signal(kick_signal()).map_err(|error| io::Error::other(format!("{error:?}")))
}
