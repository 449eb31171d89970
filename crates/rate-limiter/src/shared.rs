//! A limit for several queues, each served by a thread of its own.
//!
//! What is shared are the buckets, behind a lock that is taken only while there is something to limit. Each queue has a
//! [`Share`], with a timer of its own. A request takes its tokens when it is asked for, even those that have yet to flow
//! in, and then waits for as long as that needs. So requests of several queues are admitted in the order in which they
//! came, a big one does not starve beside small ones, and all together get exactly what flows in.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use crate::{BucketConfig, Clock, Error, Monotonic, TokenBucket, Update};

/// Limits the bytes and operations of several queues together. They ask through their [`Share`]s.
#[derive(Debug, Default)]
pub struct SharedLimiter<C = Monotonic> {
    clock: C,
    is_limited: AtomicBool,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// For bytes, and for operations.
    slots: [Slot; 2],
    /// How often they were changed.
    updates: u64,
}

#[derive(Debug, Default)]
struct Slot {
    bucket: Option<TokenBucket>,
    /// The update that put it here.
    since: u64,
}

impl SharedLimiter {
    /// A limiter with the buckets given, full and with their bursts.
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update).
    pub fn new(bandwidth: Option<BucketConfig>, ops: Option<BucketConfig>) -> Result<Self, Error> {
        let limiter = Self::default();
        limiter.update(bandwidth.into(), ops.into())?;
        Ok(limiter)
    }
}

impl<C: Clock> SharedLimiter<C> {
    /// A limiter without limits that will take the time from `clock`.
    pub fn with_clock(clock: C) -> Self {
        Self { clock, is_limited: AtomicBool::default(), buckets: Mutex::default() }
    }

    /// Changes both buckets, or neither if there is an error. Requests that wait do not learn of it: whoever has one
    /// has to be woken, and then [`forget`](Share::forget)s it and asks again.
    ///
    /// # Errors
    ///
    /// [`Error::Bandwidth`] or [`Error::Ops`] with what [`BucketConfig::check`] found.
    pub fn update(&self, bandwidth: Update, ops: Update) -> Result<(), Error> {
        let now = self.clock.now();
        let bandwidth = bandwidth.bucket(now).map_err(Error::Bandwidth)?;
        let ops = ops.bucket(now).map_err(Error::Ops)?;
        let mut buckets = self.lock();
        let since = buckets.updates.saturating_add(1);
        buckets.updates = since;
        for (slot, replacement) in buckets.slots.iter_mut().zip([bandwidth, ops]) {
            if let Some(bucket) = replacement {
                *slot = Slot { bucket, since };
            }
        }
        let is_limited = buckets.slots.iter().any(|slot| slot.bucket.is_some());
        self.is_limited.store(is_limited, Ordering::Relaxed);
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> Reservation {
        let mut buckets = self.lock();
        // Under the lock, so that no moment is before that of one who came first.
        let now = self.clock.now();
        let updates = buckets.updates;
        let mut wait = 0;
        for (bucket, tokens) in buckets.each(bytes, updates) {
            wait = wait.max(bucket.wait(tokens, now));
            bucket.take(tokens);
        }
        Reservation { bytes, updates, until: now.saturating_add(wait) }
    }

    /// Whoever takes the limits for gone, or not yet there, comes a moment early or late.
    fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Relaxed)
    }

    /// A lock that outlives a panic: a bucket is valid after each of its functions.
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    /// The buckets that are here since the `updates`th update at the latest, and what `bytes` bytes and one operation
    /// take from each.
    fn each(&mut self, bytes: u64, updates: u64) -> impl Iterator<Item = (&mut TokenBucket, u64)> {
        let old_enough = self.slots.iter_mut().zip([bytes, 1]).filter(move |(slot, _)| slot.since <= updates);
        old_enough.filter_map(|(slot, tokens)| Some((slot.bucket.as_mut()?, tokens)))
    }
}

/// Tokens that were taken.
#[derive(Clone, Copy, Debug)]
struct Reservation {
    bytes: u64,
    /// [`Buckets::updates`] when they were.
    updates: u64,
    /// The moment at which they have flowed in.
    until: u64,
}

/// A queue's part in a [`SharedLimiter`], used like a [`RateLimiter`](crate::RateLimiter).
#[derive(Debug)]
pub struct Share<C = Monotonic> {
    limiter: Arc<SharedLimiter<C>>,
    timer: TimerFd,
    /// What the request has taken that waits.
    waiting: Option<Reservation>,
}

impl<C: Clock> Share<C> {
    /// A part in `limiter`.
    ///
    /// # Errors
    ///
    /// When the host has no descriptor or memory for a timer.
    pub fn new(limiter: &Arc<SharedLimiter<C>>) -> io::Result<Self> {
        Ok(Self { limiter: Arc::clone(limiter), timer: TimerFd::new()?, waiting: None })
    }

    /// Tells whether a request of one operation and `bytes` bytes may start. If it may not, the timer is set to the
    /// moment at which it may, and its tokens are kept for it until then.
    ///
    /// A request of another size gives up what the one before it waited for.
    #[must_use]
    pub fn consume(&mut self, bytes: u64) -> bool {
        if !self.limiter.is_limited() {
            self.waiting = None;
            return true;
        }
        if self.waiting.is_none_or(|waiting| waiting.bytes != bytes) {
            self.forget();
            self.waiting = Some(self.limiter.reserve(bytes));
        }
        let rest = self.rest();
        if rest == 0 {
            self.waiting = None;
        } else {
            self.set_timer(rest);
        }
        rest == 0
    }

    /// Undoes a [`consume`](Self::consume) of `bytes` that was admitted just now, for a request that could not be started
    /// after all.
    pub fn give_back(&mut self, bytes: u64) {
        if self.limiter.is_limited() {
            let mut buckets = self.limiter.lock();
            buckets.each(bytes, u64::MAX).for_each(|(bucket, tokens)| bucket.give_back(tokens));
        }
    }

    /// Gives up what a request waits for: it will not be asked for again, or is to be judged by other limits. Buckets
    /// that it has taken nothing from get nothing.
    pub fn forget(&mut self) {
        if let Some(Reservation { bytes, updates, .. }) = self.waiting.take() {
            let mut buckets = self.limiter.lock();
            buckets.each(bytes, updates).for_each(|(bucket, tokens)| bucket.give_back(tokens));
        }
    }

    /// Whether a request waits and should not be asked for again before the timer is readable.
    pub fn is_blocked(&self) -> bool {
        self.rest() > 0
    }

    /// What to poll for reading.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// To be called when the timer is readable; then the request that waits is asked for again. A call too early or too
    /// many does no harm.
    pub fn on_timer(&mut self) {
        self.set_timer(self.rest());
    }

    /// Nanoseconds that the request still has to wait.
    fn rest(&self) -> u64 {
        self.waiting.map_or(0, |waiting| waiting.until.saturating_sub(self.limiter.clock.now()))
    }

    /// Zero switches it off.
    fn set_timer(&mut self, nanoseconds: u64) {
        let set = self.timer.reset(Duration::from_nanos(nanoseconds), None);
        debug_assert!(set.is_ok(), "the descriptor is a timer, and 584 years are in its range");
    }
}
