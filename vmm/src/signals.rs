//! The signals of the process: those that ask it to end, read by the event loop through a signalfd, and the one that
//! interrupts a vCPU thread.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, c_int, c_void, siginfo_t, signalfd_siginfo};
use vmm_sys_util::signal::{SIGRTMIN, create_sigset, register_signal_handler};

/// Signals that stop the guest and end the process in good order.
pub const ENDING: [c_int; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];

/// The ending signals of this process, blocked in every thread and readable here instead.
#[derive(Debug)]
pub struct EndingSignals(File);

impl EndingSignals {
    /// Blocks the ending signals in the calling thread, and so in every thread it starts afterwards.
    pub fn take_over() -> io::Result<Self> {
        let set = create_sigset(&ENDING).map_err(io::Error::from)?;
        // SAFETY: `set` is a valid signal set, and a null old set asks for nothing back.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: `set` is a valid signal set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nothing else owns it.
        Ok(EndingSignals(unsafe { File::from_raw_fd(fd) }))
    }

    /// The number of the next signal that has arrived, if any.
    pub fn next(&mut self) -> Option<c_int> {
        let mut buffer = [0u8; size_of::<signalfd_siginfo>()];
        let mut info = MaybeUninit::<signalfd_siginfo>::uninit();
        // A signalfd hands out whole records only, so anything else means that there is none.
        match self.0.read(&mut buffer) {
            Ok(length) if length == buffer.len() => {}
            _ => return None,
        }
        // SAFETY: source and destination have the same size, and every bit pattern is a valid `signalfd_siginfo`,
        // which is made of integers only.
        let info = unsafe {
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), info.as_mut_ptr().cast::<u8>(), buffer.len());
            info.assume_init()
        };
        c_int::try_from(info.ssi_signo).ok()
    }
}

impl AsRawFd for EndingSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The signal that makes `KVM_RUN` return in a vCPU thread.
pub fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn ignore(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

/// Gives [`kick_signal`] a handler that does nothing: its arrival alone interrupts `KVM_RUN`.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), ignore).map_err(io::Error::from)
}
