//! Limits of bytes and operations over time, as drives, network interfaces and the entropy device take them.

use serde::{Deserialize, Serialize};

use crate::error::FieldError;

/// Limits of one direction of one device. A bucket that is absent limits nothing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Limits bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Limits operations: requests of a drive, frames of a network interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketConfig>,
}

/// A bucket of tokens, each of them a byte or an operation. One whose size or refill time is 0 limits nothing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Tokens that the bucket holds when it is full.
    pub size: u64,
    /// Milliseconds in which an empty bucket fills up.
    pub refill_time: u64,
    /// Tokens that are there once, at the start, beside a full bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
}

/// The longest time to refill a bucket in milliseconds: a year, so that it fits in 64 bits of nanoseconds.
const REFILL_TIME_MAX: u64 = 365 * 24 * 60 * 60 * 1000;

impl TokenBucketConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.refill_time > REFILL_TIME_MAX {
            let cause = format!("must be at most {REFILL_TIME_MAX}, got {}", self.refill_time);
            return Err(FieldError::new("refill_time", cause));
        }
        Ok(())
    }

    /// Whether it limits anything.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}

impl RateLimiterConfig {
    /// These buckets, and those of `before` where there are none here. Of the former, those that limit nothing go away;
    /// `None` when no bucket is left.
    #[must_use]
    pub fn over(self, before: Option<RateLimiterConfig>) -> Option<RateLimiterConfig> {
        let before = before.unwrap_or_default();
        let pick = |new: Option<TokenBucketConfig>, before| match new {
            Some(bucket) => Some(bucket).filter(TokenBucketConfig::limits),
            None => before,
        };
        let limiter = RateLimiterConfig {
            bandwidth: pick(self.bandwidth, before.bandwidth),
            ops: pick(self.ops, before.ops),
        };
        Some(limiter).filter(|limiter| *limiter != RateLimiterConfig::default())
    }

    /// Checks both buckets.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        for (name, bucket) in [("bandwidth", self.bandwidth), ("ops", self.ops)] {
            if let Some(bucket) = bucket {
                bucket.validate().map_err(|error| error.within(name))?;
            }
        }
        Ok(())
    }
}
