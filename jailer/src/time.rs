//! When the start began and what it has cost, for the monitor's own reckoning.

use std::time::Duration;

/// When the jailer was started, and the processor time that it has used in processes that are not to become the monitor.
#[derive(Clone, Copy, Debug)]
pub struct StartTimes {
    wall: Duration,
    parent: Duration,
}

impl StartTimes {
    /// The start is now.
    pub fn now() -> Self {
        StartTimes { wall: clock(libc::CLOCK_MONOTONIC), parent: Duration::ZERO }
    }

    /// The process is about to fork: its processor time is not that of its child.
    pub(crate) fn before_fork(&mut self) {
        self.parent = clock(libc::CLOCK_PROCESS_CPUTIME_ID);
    }

    /// What the monitor is told, all in microseconds: when the start began on the monotonic clock, the processor time
    /// of this process so far, and that of the whole start.
    pub(crate) fn options(&self) -> [(&'static str, u128); 3] {
        let here = clock(libc::CLOCK_PROCESS_CPUTIME_ID);
        [
            ("--start-time-us", self.wall.as_micros()),
            ("--start-time-cpu-us", here.as_micros()),
            ("--parent-cpu-time-us", (self.parent + here).as_micros()),
        ]
    }
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`, and the pointer is to one. Both clocks exist on every Linux.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    // Neither part is ever negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
