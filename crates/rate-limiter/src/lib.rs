#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::time::Duration;

mod bucket;
mod clock;
mod limiter;
mod shared;

pub use bucket::{BucketConfig, BucketState, TokenBucket};
pub use clock::{Clock, Monotonic};
pub use limiter::{RateLimiter, RateLimiterState, Update};
pub use shared::{Share, SharedLimiter};

/// Why a limiter could not be made or changed. Messages about a bucket begin with the field at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`BucketConfig::size`] is zero.
    #[error("size must not be 0")]
    Size,
    /// [`BucketConfig::refill_time`] is out of its range.
    #[error("refill_time must be between 1 and {max} nanoseconds, not {0:?}", max = u64::MAX)]
    RefillTime(Duration),
    /// [`BucketState::burst_left`] is more than there was in the beginning.
    #[error("burst_left is {burst_left}, more than the one-time burst of {one_time_burst} tokens")]
    BurstLeft {
        /// The state's value.
        burst_left: u64,
        /// The configured burst.
        one_time_burst: u64,
    },
    /// [`BucketState::missing_fraction`] is a whole token or more.
    #[error("missing_fraction is {missing_fraction}, but {parts} parts make a token")]
    MissingFraction {
        /// The state's value.
        missing_fraction: u64,
        /// Nanoseconds of the bucket's refill time.
        parts: u64,
    },
    /// The bucket for bytes was refused.
    #[error("setting up the bandwidth bucket")]
    Bandwidth(#[source] Box<Error>),
    /// The bucket for operations was refused.
    #[error("setting up the ops bucket")]
    Ops(#[source] Box<Error>),
    /// The system gave no timer.
    #[error("creating the timer of a rate limiter")]
    Timer(#[source] std::io::Error),
}
