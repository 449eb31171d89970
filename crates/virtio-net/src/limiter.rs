//! One rate limit for all queues of one direction.
//!
//! Its buckets are shared, so that a guest gets its whole rate however it spreads its frames over queues. They are
//! behind a lock that is taken only while there is a limit. Each queue waits for its own moment with its own timer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kindling_rate_limiter::{Clock, Error, Monotonic, TokenBucket, Update};
use kindling_virtio_device::WorkerError;
use vmm_sys_util::timerfd::TimerFd;

/// The buckets of one direction.
#[derive(Default)]
pub(crate) struct Buckets {
    is_limited: AtomicBool,
    buckets: Mutex<Pair>,
}

#[derive(Default)]
struct Pair {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl Buckets {
    /// Changes both buckets, or neither when there is an error.
    pub fn update(&self, bandwidth: Update, ops: Update) -> Result<(), Error> {
        let now = Monotonic.now();
        let bandwidth = replacement(bandwidth, now).map_err(Error::Bandwidth)?;
        let ops = replacement(ops, now).map_err(Error::Ops)?;
        let mut pair = self.lock();
        if let Some(bandwidth) = bandwidth {
            pair.bandwidth = bandwidth;
        }
        if let Some(ops) = ops {
            pair.ops = ops;
        }
        self.is_limited.store(pair.bandwidth.is_some() || pair.ops.is_some(), Ordering::Relaxed);
        Ok(())
    }

    /// Takes `bytes` and one operation, or says how many nanoseconds to wait for them: not zero.
    fn take(&self, bytes: u64) -> Result<(), u64> {
        let mut pair = self.lock();
        // After the lock: another queue's moment may not be later than ours.
        let now = Monotonic.now();
        let for_bytes = pair.bandwidth.as_mut().map_or(0, |bucket| bucket.wait(bytes, now));
        let for_ops = pair.ops.as_mut().map_or(0, |bucket| bucket.wait(1, now));
        match for_bytes.max(for_ops) {
            0 => {}
            wait => return Err(wait),
        }
        if let Some(bandwidth) = &mut pair.bandwidth {
            bandwidth.take(bytes);
        }
        if let Some(ops) = &mut pair.ops {
            ops.take(1);
        }
        Ok(())
    }

    /// A lock that outlives a panic: any two buckets are valid.
    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The new bucket; `None` when the old one is kept.
fn replacement(update: Update, now: u64) -> Result<Option<Option<TokenBucket>>, Box<Error>> {
    match update {
        Update::Keep => Ok(None),
        Update::Unlimited => Ok(Some(None)),
        Update::Set(config) => Ok(Some(Some(TokenBucket::new(config, now)?))),
    }
}

/// A queue's part in a limit.
pub(crate) struct Limiter {
    buckets: Arc<Buckets>,
    timer: TimerFd,
}

impl Limiter {
    pub fn new(buckets: &Arc<Buckets>) -> std::io::Result<Self> {
        Ok(Self { buckets: Arc::clone(buckets), timer: TimerFd::new()? })
    }

    /// Takes one operation and `bytes` bytes, or sets the timer to the moment at which they may be there.
    pub fn consume(&mut self, bytes: u64) -> Result<bool, WorkerError> {
        if !self.buckets.is_limited.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let Err(wait) = self.buckets.take(bytes) else { return Ok(true) };
        let set = self.timer.reset(Duration::from_nanos(wait), None);
        set.map_err(|error| WorkerError::host("set the timer of a rate limiter")(error.into()))?;
        Ok(false)
    }

    /// Undoes a [`consume`](Self::consume) that was admitted.
    pub fn give_back(&self, bytes: u64) {
        if !self.buckets.is_limited.load(Ordering::Relaxed) {
            return;
        }
        let mut pair = self.buckets.lock();
        if let Some(bandwidth) = &mut pair.bandwidth {
            bandwidth.give_back(bytes);
        }
        if let Some(ops) = &mut pair.ops {
            ops.give_back(1);
        }
    }

    /// Readable when it is time to ask again.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Quiets the timer.
    pub fn on_timer(&mut self) {
        // Fails only when it is no timer.
        let _ = self.timer.clear();
    }
}
