//! The limiter of a device: two buckets, and a timer for the request that waits.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use crate::{BucketConfig, BucketState, Clock, Error, Monotonic, TokenBucket};

/// What becomes of one of a limiter's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// It stays as it is, with the tokens and the debt that it has.
    Keep,
    /// It is removed.
    Unlimited,
    /// It is replaced by one that is full and has its whole burst.
    Set(BucketConfig),
}

impl Update {
    /// The bucket from the moment `now` on; `None` if it is kept.
    pub(crate) fn bucket(self, now: u64) -> Result<Option<Option<TokenBucket>>, Box<Error>> {
        match self {
            Self::Keep => Ok(None),
            Self::Unlimited => Ok(Some(None)),
            Self::Set(config) => Ok(Some(Some(TokenBucket::new(config, now)?))),
        }
    }
}

impl From<Option<BucketConfig>> for Update {
    /// A whole limiter's description has no bucket to keep: an absent one is unlimited.
    fn from(config: Option<BucketConfig>) -> Self {
        config.map_or(Self::Unlimited, Self::Set)
    }
}

/// A limiter at rest. Time that passes until it is restored brings it nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimiterState {
    /// The bucket for bytes.
    pub bandwidth: Option<BucketState>,
    /// The bucket for operations.
    pub ops: Option<BucketState>,
}

/// Limits the bytes and operations of one device, or of one direction of it.
///
/// It belongs to the worker that serves the device. A worker that is refused a request stops taking more, polls
/// [`timer`](Self::timer), calls [`on_timer`](Self::on_timer) when that is readable, and asks for the same request
/// again.
#[derive(Debug)]
pub struct RateLimiter<C = Monotonic> {
    clock: C,
    /// `None` until there is something to limit.
    limits: Option<Box<Limits>>,
}

#[derive(Debug)]
struct Limits {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
    timer: TimerFd,
    /// The moment that the timer is set to, while a request waits for it.
    wakes_at: Option<u64>,
}

impl RateLimiter {
    /// A limiter that admits everything, without descriptor or memory of its own.
    pub const fn unlimited() -> Self {
        Self::with_clock(Monotonic)
    }

    /// A limiter with the buckets given, full and with their bursts. Without any it is [`unlimited`](Self::unlimited).
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update).
    pub fn new(bandwidth: Option<BucketConfig>, ops: Option<BucketConfig>) -> Result<Self, Error> {
        let mut limiter = Self::unlimited();
        limiter.update(bandwidth.into(), ops.into())?;
        Ok(limiter)
    }
}

impl TryFrom<&RateLimiterState> for RateLimiter {
    type Error = Error;

    fn try_from(state: &RateLimiterState) -> Result<Self, Error> {
        Self::restore(state, Monotonic)
    }
}

impl<C> RateLimiter<C> {
    /// An unlimited limiter that will take the time from `clock`.
    pub const fn with_clock(clock: C) -> Self {
        Self { clock, limits: None }
    }
}

impl<C: Clock> RateLimiter<C> {
    /// The limiter that `state` was saved from. Nothing waits: whoever did asks again.
    ///
    /// # Errors
    ///
    /// [`Error::Bandwidth`] or [`Error::Ops`] with what [`TokenBucket::restore`] found; [`Error::Timer`].
    pub fn restore(state: &RateLimiterState, clock: C) -> Result<Self, Error> {
        let now = clock.now();
        let restore = |state: &BucketState| TokenBucket::restore(state, now).map_err(Box::new);
        let bandwidth = state.bandwidth.as_ref().map(restore).transpose().map_err(Error::Bandwidth)?;
        let ops = state.ops.as_ref().map(restore).transpose().map_err(Error::Ops)?;
        let mut limiter = Self::with_clock(clock);
        limiter.replace(Some(bandwidth), Some(ops))?;
        Ok(limiter)
    }

    /// The limiter as it is now.
    pub fn save(&self) -> RateLimiterState {
        let Some(limits) = &self.limits else { return RateLimiterState::default() };
        let now = self.clock.now();
        let save = |bucket: &TokenBucket| bucket.save(now);
        RateLimiterState {
            bandwidth: limits.bandwidth.as_ref().map(save),
            ops: limits.ops.as_ref().map(save),
        }
    }

    /// Takes one operation and `bytes` bytes, and tells whether the request may start; takes neither if it may not.
    ///
    /// When it may not, the timer is set to the moment at which it may. Asking for the same again before then costs no
    /// system call.
    #[inline]
    #[must_use]
    pub fn consume(&mut self, bytes: u64) -> bool {
        match &mut self.limits {
            None => true,
            Some(limits) => limits.consume(bytes, &self.clock),
        }
    }

    /// Undoes a [`consume`](Self::consume) of `bytes` that was admitted, for a request that could not be started after
    /// all.
    pub fn give_back(&mut self, bytes: u64) {
        let Some(limits) = &mut self.limits else { return };
        if let Some(bandwidth) = &mut limits.bandwidth {
            bandwidth.give_back(bytes);
        }
        if let Some(ops) = &mut limits.ops {
            ops.give_back(1);
        }
        limits.wake();
    }

    /// Changes both buckets, or neither if there is an error. A request that waits is woken, to be asked for again.
    ///
    /// # Errors
    ///
    /// [`Error::Bandwidth`] or [`Error::Ops`] with what [`BucketConfig::check`] found; [`Error::Timer`] if the limiter
    /// had nothing to limit before and there is no descriptor or memory for its timer.
    pub fn update(&mut self, bandwidth: Update, ops: Update) -> Result<(), Error> {
        let now = self.clock.now();
        let bandwidth = bandwidth.bucket(now).map_err(Error::Bandwidth)?;
        let ops = ops.bucket(now).map_err(Error::Ops)?;
        self.replace(bandwidth, ops)
    }

    /// Puts new buckets, or none, in the place of those that are not kept.
    fn replace(
        &mut self,
        bandwidth: Option<Option<TokenBucket>>,
        ops: Option<Option<TokenBucket>>,
    ) -> Result<(), Error> {
        let limits = match &mut self.limits {
            Some(limits) => limits,
            None if matches!((&bandwidth, &ops), (Some(Some(_)), _) | (_, Some(Some(_)))) => {
                let timer = TimerFd::new().map_err(|error| Error::Timer(error.into()))?;
                self.limits.insert(Box::new(Limits { bandwidth: None, ops: None, timer, wakes_at: None }))
            }
            None => return Ok(()),
        };
        if let Some(bandwidth) = bandwidth {
            limits.bandwidth = bandwidth;
        }
        if let Some(ops) = ops {
            limits.ops = ops;
        }
        limits.wake();
        Ok(())
    }

    /// The descriptor to poll for reading.
    ///
    /// There is one as soon as the limiter has something to limit, and it stays the same from then on, even while there
    /// is nothing to limit. Look again after an [`update`](Self::update) only if there was none before.
    pub fn timer(&self) -> Option<RawFd> {
        self.limits.as_ref().map(|limits| limits.timer.as_raw_fd())
    }

    /// Clears the timer: its descriptor is no longer readable, and nothing waits until the next request is refused.
    ///
    /// To be called when the timer is readable; then the request that waited is asked for again. A call too early or too
    /// many does no harm, given that.
    pub fn on_timer(&mut self) {
        let Some(limits) = &mut self.limits else { return };
        let cleared = limits.timer.clear();
        debug_assert!(cleared.is_ok(), "the descriptor is a timer");
        limits.wakes_at = None;
    }

    /// Whether a request was refused and should not be asked for again before the timer is readable.
    pub fn is_blocked(&self) -> bool {
        self.limits.as_ref().is_some_and(|limits| limits.wakes_at.is_some())
    }
}

impl Limits {
    fn consume<C: Clock>(&mut self, bytes: u64, clock: &C) -> bool {
        if self.bandwidth.is_none() && self.ops.is_none() {
            self.wakes_at = None;
            return true;
        }
        // There is no exact way around the clock: a bucket that has enough may have been full for long or for no time,
        // and that decides what is left in it.
        let now = clock.now();
        let for_bytes = self.bandwidth.as_mut().map_or(0, |bucket| bucket.wait(bytes, now));
        let for_ops = self.ops.as_mut().map_or(0, |bucket| bucket.wait(1, now));
        let wait = for_bytes.max(for_ops);
        if wait > 0 {
            self.block(now, wait);
            return false;
        }
        if let Some(bandwidth) = &mut self.bandwidth {
            bandwidth.take(bytes);
        }
        if let Some(ops) = &mut self.ops {
            ops.take(1);
        }
        self.wakes_at = None;
        true
    }

    /// Lets the timer fire at the moment `wait` nanoseconds after `now`.
    #[cold]
    fn block(&mut self, now: u64, wait: u64) {
        let wakes_at = Some(now.saturating_add(wait));
        if self.wakes_at != wakes_at {
            self.wakes_at = wakes_at;
            self.set_timer(wait);
        }
    }

    /// Lets the timer fire at once if a request waits for it.
    fn wake(&mut self) {
        if self.wakes_at.is_some() {
            // No request ever waits for this moment, so that the next refusal sets the timer.
            self.wakes_at = Some(0);
            self.set_timer(1);
        }
    }

    fn set_timer(&mut self, nanoseconds: u64) {
        let set = self.timer.reset(Duration::from_nanos(nanoseconds), None);
        debug_assert!(set.is_ok(), "the descriptor is a timer, and 584 years are in its range");
    }
}
