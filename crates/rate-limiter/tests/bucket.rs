//! One bucket, by a clock that the tests turn.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kindling_rate_limiter::{BucketConfig, BucketState, Error, TokenBucket};
use proptest::prelude::*;

const fn config(size: u64, refill_ns: u64, one_time_burst: u64) -> BucketConfig {
    BucketConfig { size, refill_time: Duration::from_nanos(refill_ns), one_time_burst }
}

/// 100 tokens that come back one every 10 ns, and 30 to begin with.
const SMALL: BucketConfig = config(100, 1000, 30);

/// Takes the tokens if they are there.
fn admits(bucket: &mut TokenBucket, tokens: u64, now: u64) -> bool {
    let admitted = bucket.wait(tokens, now) == 0;
    if admitted {
        bucket.take(tokens);
    }
    admitted
}

#[test]
fn burst_is_used_first_and_never_comes_again() {
    let mut bucket = TokenBucket::new(SMALL, 0).unwrap();
    assert!(admits(&mut bucket, 20, 0));
    let state = bucket.save(0);
    assert_eq!((state.burst_left, state.missing_tokens), (10, 0));
    assert!(admits(&mut bucket, 110, 0), "10 of the burst, 100 of the bucket");
    assert!(!admits(&mut bucket, 1, 9));
    assert!(admits(&mut bucket, 1, 10));
    assert!(!admits(&mut bucket, 101, 1_000), "one is still missing");
    assert!(admits(&mut bucket, 100, 1_000_000));
    assert_eq!(bucket.wait(1, 1_000_000), 10, "the burst did not come again");
}

#[test]
fn available_tokens_are_whole_ones_of_bucket_and_burst() {
    let mut bucket = TokenBucket::new(SMALL, 0).unwrap();
    assert_eq!(bucket.available(0), 130);
    bucket.take(125);
    assert_eq!(bucket.available(9), 5);
    assert_eq!(bucket.available(10), 6);
    bucket.take(10);
    assert_eq!(bucket.available(10), 0, "there is a debt");
}

#[test]
fn request_bigger_than_the_bucket_waits_until_it_is_full_and_is_paid_for() {
    let mut bucket = TokenBucket::new(config(100, 1000, 0), 0).unwrap();
    bucket.take(1);
    assert_eq!(bucket.wait(250, 0), 10);
    assert!(admits(&mut bucket, 250, 10));
    assert_eq!(bucket.wait(1, 10), 1510, "150 of debt and the one");
    assert_eq!(bucket.wait(250, 10), 2500, "150 of debt and a full bucket");
}

#[test]
fn request_bigger_than_bucket_and_burst_uses_up_both() {
    let mut bucket = TokenBucket::new(SMALL, 0).unwrap();
    assert!(admits(&mut bucket, 150, 0));
    let state = bucket.save(0);
    assert_eq!((state.burst_left, state.missing_tokens), (0, 120));
}

#[test]
fn request_for_nothing_does_not_wait_for_a_debt() {
    let mut bucket = TokenBucket::new(SMALL, 0).unwrap();
    bucket.take(1_000_000);
    assert_eq!(bucket.wait(0, 0), 0);
}

#[test]
fn tokens_do_not_pile_up_beyond_the_size() {
    let mut bucket = TokenBucket::new(config(100, 1000, 0), 0).unwrap();
    assert!(admits(&mut bucket, 100, u64::MAX / 2));
    assert!(!admits(&mut bucket, 1, u64::MAX / 2));
}

#[test]
fn clock_that_stands_still_brings_nothing() {
    let mut bucket = TokenBucket::new(config(100, 1000, 0), 7).unwrap();
    let admitted = (0..1000).filter(|_| admits(&mut bucket, 1, 7)).count();
    assert_eq!(admitted, 100);
}

#[test]
fn no_moment_is_counted_twice_when_the_clock_steps_back() {
    let mut bucket = TokenBucket::new(config(100, 1000, 0), 5000).unwrap();
    bucket.take(100);
    let admitted = (0..1000).filter(|step| admits(&mut bucket, 1, 5000 + (step % 2) * 10)).count();
    assert_eq!(admitted, 1);
    assert!(!admits(&mut bucket, 1, 0));
    assert!(admits(&mut bucket, 1, 5020), "and it goes on when the clock is back");
}

#[test]
fn greedy_consumer_gets_the_rate_over_a_second() {
    for (refill_ms, request) in [(1, 700), (100, 4096), (100, 37), (1000, 9999), (3333, 1_000)] {
        let rate = 10_000_000;
        let mut bucket =
            TokenBucket::new(config(rate * refill_ms / 1000, refill_ms * 1_000_000, 0), 0).unwrap();
        bucket.take(rate * refill_ms / 1000);
        let (mut now, mut taken) = (0, 0);
        loop {
            now += bucket.wait(request, now);
            if now > 1_000_000_000 {
                break;
            }
            assert!(admits(&mut bucket, request, now));
            taken += request;
        }
        assert!((rate - rate / 1000..=rate).contains(&taken), "{taken} with {request} at a time");
    }
}

#[test]
fn largest_values_neither_overflow_nor_block_for_good() {
    let largest = config(u64::MAX, u64::MAX, u64::MAX);
    let mut bucket = TokenBucket::new(largest, 0).unwrap();
    assert!(admits(&mut bucket, u64::MAX, 0), "the burst");
    assert!(admits(&mut bucket, u64::MAX, 0), "the bucket");
    assert_eq!(bucket.wait(1, 0), 1, "a token each nanosecond");
    assert_eq!(bucket.wait(u64::MAX, 0), u64::MAX);
    assert!(admits(&mut bucket, u64::MAX, u64::MAX));
    for _ in 0..3 {
        bucket.take(u64::MAX);
    }
    assert_eq!(bucket.wait(u64::MAX, u64::MAX), u64::MAX);
    bucket.give_back(u64::MAX);

    let mut slowest = TokenBucket::new(config(1, u64::MAX, 0), 0).unwrap();
    assert!(admits(&mut slowest, u64::MAX, 0));
    assert_eq!(slowest.wait(1, 0), u64::MAX);
    let mut fastest = TokenBucket::new(config(u64::MAX, 1, 0), 0).unwrap();
    assert!(admits(&mut fastest, u64::MAX, 0));
    assert_eq!(fastest.wait(u64::MAX, 0), 1);
}

#[test]
fn zero_size_is_refused() {
    let error = TokenBucket::new(config(0, 1000, 30), 0).unwrap_err();
    assert!(matches!(error, Error::Size));
    assert_eq!(error.to_string(), "size must not be 0");
}

#[test]
fn refill_time_out_of_range_is_refused() {
    let too_long = Duration::from_nanos(u64::MAX) + Duration::from_nanos(1);
    for refill_time in [Duration::ZERO, too_long, Duration::MAX] {
        let error = BucketConfig { refill_time, ..SMALL }.check().unwrap_err();
        assert!(matches!(error, Error::RefillTime(time) if time == refill_time));
        assert!(error.to_string().starts_with("refill_time must"), "{error}");
    }
    assert!(config(1, 1, 0).check().is_ok() && config(1, u64::MAX, 0).check().is_ok());
}

#[test]
fn state_with_more_burst_than_configured_is_refused() {
    let state = BucketState { config: SMALL, burst_left: 31, missing_tokens: 0, missing_fraction: 0 };
    let error = TokenBucket::restore(&state, 0).unwrap_err();
    assert!(matches!(error, Error::BurstLeft { burst_left: 31, one_time_burst: 30 }));
}

#[test]
fn state_with_a_fraction_of_a_whole_token_is_refused() {
    let state = BucketState { config: SMALL, burst_left: 0, missing_tokens: 0, missing_fraction: 1000 };
    let error = TokenBucket::restore(&state, 0).unwrap_err();
    assert!(matches!(error, Error::MissingFraction { missing_fraction: 1000, parts: 1000 }));
}

#[test]
fn state_with_an_invalid_configuration_is_refused() {
    let state =
        BucketState { config: config(0, 1000, 0), burst_left: 0, missing_tokens: 0, missing_fraction: 0 };
    assert!(matches!(TokenBucket::restore(&state, 0), Err(Error::Size)));
    let state = BucketState { config: config(1, 0, 0), ..state };
    assert!(matches!(TokenBucket::restore(&state, 0), Err(Error::RefillTime(_))));
}

#[test]
fn largest_debt_in_a_state_is_taken_as_it_is() {
    let config = config(1, u64::MAX, u64::MAX);
    let state = BucketState {
        config,
        burst_left: u64::MAX,
        missing_tokens: u64::MAX,
        missing_fraction: u64::MAX - 1,
    };
    let mut bucket = TokenBucket::restore(&state, 0).unwrap();
    assert_eq!(bucket.save(0), state);
    bucket.take(u64::MAX);
    bucket.take(u64::MAX);
    assert_eq!(bucket.wait(1, 0), u64::MAX);
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..100u64, 4 => 1..1_000_000_000u64, 1 => 1..=u64::MAX, 1 => Just(u64::MAX)]
}

prop_compose! {
    fn any_config()(size in number(), refill_ns in number(), burst in number(), has_burst: bool) -> BucketConfig {
        config(size, refill_ns, if has_burst { burst } else { 0 })
    }
}

prop_compose! {
    /// A bucket some time after some requests, and that time.
    fn used_bucket()(
        config in any_config(),
        requests in prop::collection::vec((number(), number()), 0..8),
    ) -> (TokenBucket, u64) {
        let mut bucket = TokenBucket::new(config, 0).unwrap();
        let mut now = 0u64;
        for (tokens, pause) in requests {
            now = now.saturating_add(pause);
            admits(&mut bucket, tokens, now);
        }
        (bucket, now)
    }
}

proptest! {
    #[test]
    fn request_is_admitted_at_the_moment_given_and_not_before((mut bucket, now) in used_bucket(), tokens in number()) {
        let wait = bucket.wait(tokens, now);
        if let Some(moment) = now.checked_add(wait).filter(|_| wait > 0) {
            prop_assert_eq!(bucket.wait(tokens, moment - 1), 1);
            prop_assert_eq!(bucket.wait(tokens, moment), 0);
        }
    }

    #[test]
    fn giving_back_leaves_no_trace((mut bucket, now) in used_bucket(), tokens in number()) {
        let before = bucket.save(now);
        if admits(&mut bucket, tokens, now) {
            bucket.give_back(tokens);
        }
        prop_assert_eq!(bucket.save(now), before);
    }

    #[test]
    fn giving_back_never_makes_more_than_there_was((mut bucket, now) in used_bucket(), tokens in number()) {
        bucket.give_back(tokens);
        let state = bucket.save(now);
        prop_assert!(TokenBucket::restore(&state, now).is_ok());
    }

    #[test]
    fn restored_bucket_waits_as_the_saved_one((mut bucket, now) in used_bucket(), tokens in number(), moved in number()) {
        let state = bucket.save(now);
        let mut restored = TokenBucket::restore(&state, moved).unwrap();
        prop_assert_eq!(restored.save(moved), state);
        prop_assert_eq!(restored.wait(tokens, moved), bucket.wait(tokens, now));
    }

    #[test]
    fn it_does_not_matter_how_time_is_cut_up(
        (mut bucket, now) in used_bucket(),
        pauses in prop::collection::vec(number(), 0..8),
    ) {
        let mut at_once = bucket.clone();
        let end = pauses.into_iter().fold(now, |now, pause| {
            let now = now.saturating_add(pause);
            bucket.wait(1, now);
            now
        });
        at_once.wait(1, end);
        prop_assert_eq!(bucket.save(end), at_once.save(end));
    }

    /// Whatever the sizes: when a request is admitted, all before it and what it needed itself have just flowed in. A
    /// nanosecond may be lost with each request that needs a full bucket.
    #[test]
    fn greedy_consumer_gets_the_exact_rate(
        size in 1..1_000_000_000u64,
        refill_ns in 1..1_000_000_000u64,
        requests in prop::collection::vec((0u8..4, 1..=u64::MAX), 1..50),
    ) {
        let mut bucket = TokenBucket::new(config(size, refill_ns, 0), 0).unwrap();
        bucket.take(size);
        let (mut now, mut taken, mut lost_ns) = (0, 0, 1u64);
        for (kind, tokens) in requests {
            let tokens = if kind == 0 { tokens % size * 3 } else { tokens % size } + 1;
            now += bucket.wait(tokens, now);
            prop_assert!(admits(&mut bucket, tokens, now));
            let needed = tokens.min(size);
            let parts = u128::from(taken + needed) * u128::from(refill_ns);
            prop_assert!(parts <= u128::from(now) * u128::from(size));
            prop_assert!(parts + u128::from(lost_ns) * u128::from(size) > u128::from(now) * u128::from(size));
            if (u128::from(size - needed) * u128::from(refill_ns)) < u128::from(size) {
                lost_ns += 1;
            }
            taken += tokens;
        }
    }

    #[test]
    fn no_span_of_time_admits_more_than_promised(
        config in any_config(),
        requests in prop::collection::vec((number(), 0..3u64, number()), 1..40),
    ) {
        let mut bucket = TokenBucket::new(config, 0).unwrap();
        let mut now = 0u64;
        let mut admitted = Vec::new();
        for (tokens, patience, pause) in requests {
            now = match patience {
                0 => now,
                1 => now.saturating_add(pause),
                _ => now.saturating_add(bucket.wait(tokens, now)),
            };
            if admits(&mut bucket, tokens, now) {
                admitted.push((now, tokens));
            }
        }
        let refill_ns = config.refill_time.as_nanos();
        for first in 0..admitted.len() {
            let (mut sum, mut excess) = (0u128, 0);
            for &(end, tokens) in &admitted[first..] {
                sum += u128::from(tokens);
                excess = excess.max(tokens.saturating_sub(config.size));
                let inflow = u128::from(config.size) * u128::from(end - admitted[first].0) / refill_ns;
                let at_rest = u128::from(config.size) + u128::from(config.one_time_burst);
                prop_assert!(sum <= at_rest + inflow + u128::from(excess));
            }
        }
    }
}
