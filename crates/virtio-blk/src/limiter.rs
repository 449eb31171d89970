//! The rate limit of a device, shared by its workers.
//!
//! What is shared are the buckets, behind a lock that is taken only while there are limits. Each worker has a timer of
//! its own. A request takes its tokens at once, even those that have yet to flow in, and waits for as long as that needs:
//! so requests of several queues are served in the order in which they came, a big one cannot starve beside small ones,
//! and nothing has to be asked again. All together they take exactly what flows in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kindling_rate_limiter::{BucketConfig, Clock, Error, Monotonic, TokenBucket, Update};

/// Two buckets: bytes, and operations.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    is_limited: AtomicBool,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl Limiter {
    pub fn new(bandwidth: Option<BucketConfig>, ops: Option<BucketConfig>) -> Result<Self, Error> {
        let limiter = Self::default();
        limiter.update(bandwidth.into(), ops.into())?;
        Ok(limiter)
    }

    /// Takes one operation and `bytes` bytes; returns how long to wait before they may be used.
    pub fn reserve(&self, bytes: u64) -> Duration {
        // Whoever takes the limits for gone, or not yet there, comes a moment earlier or later.
        if !self.is_limited.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let mut buckets = self.lock();
        let now = Monotonic.now();
        let mut wait = 0;
        for (bucket, tokens) in buckets.each(bytes) {
            wait = wait.max(bucket.wait(tokens, now));
            bucket.take(tokens);
        }
        Duration::from_nanos(wait)
    }

    /// Gives back what a request reserved that cannot be started now.
    pub fn give_back(&self, bytes: u64) {
        for (bucket, tokens) in self.lock().each(bytes) {
            bucket.give_back(tokens);
        }
    }

    /// Changes both buckets, or neither if there is an error. Who waits does not learn of it here.
    pub fn update(&self, bandwidth: Update, ops: Update) -> Result<(), Error> {
        let now = Monotonic.now();
        let bucket = |update| match update {
            Update::Keep => Ok(None),
            Update::Unlimited => Ok(Some(None)),
            Update::Set(config) => Ok(Some(Some(TokenBucket::new(config, now)?))),
        };
        let bandwidth = bucket(bandwidth).map_err(|error| Error::Bandwidth(Box::new(error)))?;
        let ops = bucket(ops).map_err(|error| Error::Ops(Box::new(error)))?;
        let mut buckets = self.lock();
        if let Some(bandwidth) = bandwidth {
            buckets.bandwidth = bandwidth;
        }
        if let Some(ops) = ops {
            buckets.ops = ops;
        }
        let is_limited = buckets.bandwidth.is_some() || buckets.ops.is_some();
        self.is_limited.store(is_limited, Ordering::Relaxed);
        Ok(())
    }

    /// A lock that outlives a panic: a bucket is valid after each of its functions.
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    /// The buckets that there are, and what a request of `bytes` takes from each.
    fn each(&mut self, bytes: u64) -> impl Iterator<Item = (&mut TokenBucket, u64)> {
        let bandwidth = self.bandwidth.iter_mut().map(move |bucket| (bucket, bytes));
        bandwidth.chain(self.ops.iter_mut().map(|bucket| (bucket, 1)))
    }
}
