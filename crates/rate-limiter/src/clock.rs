//! Where a limiter takes the time from.

/// A clock that runs steadily.
///
/// One that stands still admits nothing new, and one that steps back admits nothing until it is again where it was: no
/// moment is counted twice.
pub trait Clock {
    /// Nanoseconds since a moment that stays the same.
    fn now(&self) -> u64;
}

/// The system's `CLOCK_MONOTONIC`, which no one can set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes one `timespec`, and the pointer is to one.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
        debug_assert_eq!(result, 0, "the clock exists on every Linux, and the pointer is valid");
        // Neither part is ever negative.
        (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
    }
}
