//! Times of the process, on the clocks by which whoever started it measures too.

use std::time::Duration;

/// When the process was started, and what it had cost by then.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartTimes {
    /// When its starter began, on `CLOCK_MONOTONIC`.
    wall: Duration,
    /// What its starter has used of processors for it.
    parent: Duration,
    /// Processor time of this process that is its starter's: it went by before the program was executed.
    before: Duration,
}

impl StartTimes {
    /// What the starter says, in microseconds: when it began (`CLOCK_MONOTONIC`), the processor time of this process at
    /// that moment, and its own processor time. If it does not say when it began, that is when this process did, which has
    /// run ever since for all that is known.
    pub fn new(wall_us: Option<u64>, cpu_us: Option<u64>, parent_us: Option<u64>) -> Self {
        let from = |us: Option<u64>| us.map_or(Duration::ZERO, Duration::from_micros);
        let begun = || clock(libc::CLOCK_MONOTONIC).saturating_sub(processor_time());
        let wall = wall_us.map_or_else(begun, Duration::from_micros);
        StartTimes { wall, parent: from(parent_us), before: from(cpu_us) }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        clock(libc::CLOCK_MONOTONIC).saturating_sub(self.wall)
    }

    /// Processor time since the start, the starter's included.
    pub fn processor_time(&self) -> Duration {
        processor_time().saturating_sub(self.before).saturating_add(self.parent)
    }
}

/// Processor time of this process.
fn processor_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`, and the pointer is to one.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    debug_assert_eq!(result, 0, "both clocks exist on every Linux");
    // Neither part is ever negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_starter_says_is_counted() {
        let second_ago = (clock(libc::CLOCK_MONOTONIC) - Duration::from_secs(1)).as_micros() as u64;
        let times = StartTimes::new(Some(second_ago), None, Some(5_000_000));
        let around = Duration::from_secs(1)..Duration::from_secs(60);
        assert!(around.contains(&times.elapsed()));
        assert!(times.processor_time() >= Duration::from_secs(5));
        let used = processor_time();
        assert!(StartTimes::new(None, None, None).elapsed() >= used);
    }
}
