//! One timer for all that has a deadline.

use std::time::{Duration, Instant};

use kindling_virtio_device::ActivateError;
use vmm_sys_util::timerfd::TimerFd;

/// A timer that is set to the earliest of the moments it was given.
pub struct Timer {
    fd: TimerFd,
    /// The moment that it is set to.
    at: Option<Instant>,
}

impl Timer {
    pub fn new() -> Result<Self, ActivateError> {
        let fd = TimerFd::new().map_err(|error| ActivateError::Host {
            doing: "create the timer of a socket device",
            source: error.into(),
        })?;
        Ok(Self { fd, at: None })
    }

    /// What is readable when the moment has come, until the timer is stopped.
    pub fn fd(&self) -> &TimerFd {
        &self.fd
    }

    /// Has it go off at `moment`, or before.
    pub fn set(&mut self, moment: Instant) {
        if self.at.is_none_or(|at| moment < at) {
            // A time of zero would be no time at all.
            let rest = moment.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
            // Fails for no valid time.
            let _ = self.fd.reset(rest, None);
            self.at = Some(moment);
        }
    }

    /// Has it not go off, and forget that it did.
    pub fn stop(&mut self) {
        // Fails for no valid time.
        let _ = self.fd.reset(Duration::ZERO, None);
        self.at = None;
    }
}
