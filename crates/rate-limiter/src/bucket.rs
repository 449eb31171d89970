//! One token bucket, told the time by its user.
//!
//! The bucket counts what is missing from full, in parts of a token: a token is as many parts as the refill time has
//! nanoseconds, and so every nanosecond brings `size` parts. Both are whole numbers, so that nothing is rounded however
//! the time is cut up, and a full bucket is zero, so that filling up is a saturating subtraction.
//!
//! No sum here can overflow: 64-bit numbers multiplied in 128 bits fit, and a request is admitted only when its tokens
//! are there (what is missing then stays within the capacity) or when the bucket is full (what is missing then is the
//! request alone). Additions saturate for the sake of those who take unasked.

use std::time::Duration;

use crate::Error;

/// What a bucket is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens that the bucket holds when full; at least 1.
    pub size: u64,
    /// Time in which an empty bucket fills up; from 1 to `u64::MAX` nanoseconds (584 years).
    pub refill_time: Duration,
    /// Tokens given on top in the beginning. They are used first and never come again.
    pub one_time_burst: u64,
}

impl BucketConfig {
    /// Whether a bucket can be made of this.
    ///
    /// # Errors
    ///
    /// [`Error::Size`] or [`Error::RefillTime`], for the first field that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        self.refill_ns().map(drop)
    }

    /// The refill time in nanoseconds, of a configuration that is valid.
    fn refill_ns(&self) -> Result<u64, Error> {
        if self.size == 0 {
            return Err(Error::Size);
        }
        match u64::try_from(self.refill_time.as_nanos()) {
            Ok(refill_ns @ 1..) => Ok(refill_ns),
            _ => Err(Error::RefillTime(self.refill_time)),
        }
    }
}

/// A bucket at rest. Time that passes until it is restored brings it nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketState {
    /// What the bucket was asked to be.
    pub config: BucketConfig,
    /// Tokens left of the one-time burst; at most [`BucketConfig::one_time_burst`].
    pub burst_left: u64,
    /// Whole tokens missing from a full bucket; more than its size if it is in debt.
    pub missing_tokens: u64,
    /// What is missing besides, in parts of a token. As many parts make a token as
    /// [`refill_time`](BucketConfig::refill_time) has nanoseconds; this is fewer.
    pub missing_fraction: u64,
}

/// A bucket of tokens that fills up steadily.
///
/// Moments are nanoseconds of a clock of the caller's choice, always the same; see [`Clock`](crate::Clock) for what
/// happens if it steps back.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    config: BucketConfig,
    /// Nanoseconds of `config.refill_time`; not zero. As many parts make a token.
    refill_ns: u64,
    /// Tokens left of the one-time burst.
    burst: u64,
    /// Parts of tokens missing from full at the moment `filled_at`.
    missing: u128,
    /// The latest moment that has been counted.
    filled_at: u64,
}

impl TokenBucket {
    /// A bucket that is full at the moment `now` and has its whole burst.
    ///
    /// # Errors
    ///
    /// As [`BucketConfig::check`].
    pub fn new(config: BucketConfig, now: u64) -> Result<Self, Error> {
        let refill_ns = config.refill_ns()?;
        Ok(Self { config, refill_ns, burst: config.one_time_burst, missing: 0, filled_at: now })
    }

    /// The bucket that `state` was saved from, at the moment `now`.
    ///
    /// # Errors
    ///
    /// As [`BucketConfig::check`]; [`Error::BurstLeft`]; [`Error::MissingFraction`].
    pub fn restore(state: &BucketState, now: u64) -> Result<Self, Error> {
        let BucketState { config, burst_left, missing_tokens, missing_fraction } = *state;
        let mut bucket = Self::new(config, now)?;
        if burst_left > config.one_time_burst {
            return Err(Error::BurstLeft { burst_left, one_time_burst: config.one_time_burst });
        }
        if missing_fraction >= bucket.refill_ns {
            return Err(Error::MissingFraction { missing_fraction, parts: bucket.refill_ns });
        }
        bucket.burst = burst_left;
        bucket.missing = bucket.parts(missing_tokens).saturating_add(missing_fraction.into());
        Ok(bucket)
    }

    /// The bucket as it is at the moment `now`.
    pub fn save(&self, now: u64) -> BucketState {
        let mut bucket = self.clone();
        bucket.fill(now);
        let token = u128::from(self.refill_ns);
        BucketState {
            config: self.config,
            burst_left: self.burst,
            missing_tokens: saturate(bucket.missing.div_euclid(token)),
            missing_fraction: saturate(bucket.missing.rem_euclid(token)),
        }
    }

    /// Nanoseconds from `now` until `tokens` may be taken, rounded up; zero if at once.
    ///
    /// The burst counts first. Of what goes beyond it, all must be in the bucket; of a request that is bigger than the
    /// bucket, as much as it can hold. A request for none never waits. A wait of `u64::MAX` may in truth be longer.
    pub fn wait(&mut self, tokens: u64, now: u64) -> u64 {
        self.fill(now);
        let needed = tokens.saturating_sub(self.burst);
        let may_miss = self.parts(self.config.size.saturating_sub(needed));
        if needed == 0 || self.missing <= may_miss {
            return 0;
        }
        saturate(self.missing.saturating_sub(may_miss).div_ceil(self.config.size.into()))
    }

    /// Whole tokens that are there at the moment `now`, those of the burst among them.
    pub fn available(&mut self, now: u64) -> u64 {
        self.fill(now);
        let full = self.parts(self.config.size);
        let there = full.saturating_sub(self.missing).div_euclid(self.refill_ns.into());
        saturate(there).saturating_add(self.burst)
    }

    /// Takes `tokens`, whether they are there or not: what is lacking becomes a debt, which is paid before there are
    /// tokens again.
    pub fn take(&mut self, tokens: u64) {
        let beyond_burst = tokens.saturating_sub(self.burst);
        self.burst = self.burst.saturating_sub(tokens);
        self.missing = self.missing.saturating_add(self.parts(beyond_burst));
    }

    /// Puts back `tokens` that were taken. If nothing was taken since, the bucket is as if they had never been.
    ///
    /// What does not fit into the bucket is put back to the burst, and lost if that is complete.
    pub fn give_back(&mut self, tokens: u64) {
        // The burst is used first: what is in it was taken before anything was missing, and comes back last.
        let parts = self.parts(tokens);
        let surplus = parts.saturating_sub(self.missing).div_euclid(self.refill_ns.into());
        self.missing = self.missing.saturating_sub(parts);
        self.burst = self.burst.saturating_add(saturate(surplus)).min(self.config.one_time_burst);
    }

    /// Adds what has flowed in until the moment `now`.
    fn fill(&mut self, now: u64) {
        let elapsed = u128::from(now.saturating_sub(self.filled_at));
        self.missing = self.missing.saturating_sub(elapsed.saturating_mul(self.config.size.into()));
        self.filled_at = self.filled_at.max(now);
    }

    /// The parts that `tokens` consist of.
    fn parts(&self, tokens: u64) -> u128 {
        u128::from(tokens).saturating_mul(self.refill_ns.into())
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
