//! The limiter: two buckets, its timer, changes while it runs, and its state.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::error::Error as _;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kindling_rate_limiter::{BucketConfig, BucketState, Clock, Error, RateLimiter, RateLimiterState, Update};

const HOUR: u64 = 3_600_000_000_000;

/// A clock that the tests turn.
#[derive(Clone, Default)]
struct Hands(Rc<Cell<u64>>);

impl Clock for Hands {
    fn now(&self) -> u64 {
        self.0.get()
    }
}

impl Hands {
    fn advance(&self, nanoseconds: u64) {
        self.0.set(self.0.get() + nanoseconds);
    }

    fn limiter(&self, bandwidth: Option<BucketConfig>, ops: Option<BucketConfig>) -> RateLimiter<Self> {
        let mut limiter = RateLimiter::with_clock(self.clone());
        limiter.update(bandwidth.into(), ops.into()).unwrap();
        limiter
    }
}

/// So many tokens an hour.
const fn hourly(size: u64) -> BucketConfig {
    BucketConfig { size, refill_time: Duration::from_nanos(HOUR), one_time_burst: 0 }
}

/// Whether the timer fires within `timeout` milliseconds.
fn fires(timer: RawFd, timeout: i32) -> bool {
    let mut poll = libc::pollfd { fd: timer, events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is to one `pollfd`, and the count is one.
    let ready = unsafe { libc::poll(&mut poll, 1, timeout) };
    assert!(ready >= 0);
    ready == 1
}

/// Time until the timer fires; zero if it is not set.
fn fires_in(timer: RawFd) -> Duration {
    let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut setting = libc::itimerspec { it_interval: none, it_value: none };
    // SAFETY: the call writes one `itimerspec`, and the pointer is to one.
    assert_eq!(unsafe { libc::timerfd_gettime(timer, &mut setting) }, 0);
    Duration::new(setting.it_value.tv_sec as u64, setting.it_value.tv_nsec as u32)
}

#[test]
fn unlimited_admits_everything_and_holds_nothing() {
    let mut limiter = RateLimiter::new(None, None).unwrap();
    assert!((0..1000).all(|_| limiter.consume(u64::MAX)));
    assert!(!limiter.is_blocked());
    assert_eq!(limiter.timer(), None);
    limiter.on_timer();
    limiter.give_back(u64::MAX);
    limiter.update(Update::Keep, Update::Unlimited).unwrap();
    assert_eq!(limiter.timer(), None);
    assert_eq!(size_of_val(&limiter), size_of::<usize>());
}

#[test]
fn request_takes_from_both_buckets_or_from_neither() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(100)), Some(hourly(2)));
    assert!(limiter.consume(60));
    let state = limiter.save();
    assert_eq!(state.bandwidth.unwrap().missing_tokens, 60);
    assert_eq!(state.ops.unwrap().missing_tokens, 1);
    assert!(!limiter.consume(41), "too many bytes");
    assert_eq!(limiter.save(), state);
    assert!(limiter.consume(20));
    let state = limiter.save();
    assert!(!limiter.consume(20), "too many operations");
    assert_eq!(limiter.save(), state);
}

#[test]
fn refused_request_sets_the_timer_to_the_moment_both_buckets_have_enough() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(4)), Some(hourly(2)));
    for _ in 0..2 {
        assert!(limiter.consume(2));
    }
    assert!(!limiter.is_blocked());
    let timer = limiter.timer().unwrap();
    for (bytes, wait) in [(1, HOUR / 2), (3, HOUR / 4 * 3)] {
        assert!(!limiter.consume(bytes));
        assert!(limiter.is_blocked());
        let (set, wait) = (fires_in(timer), Duration::from_nanos(wait));
        assert!(set <= wait && set > wait - Duration::from_secs(60), "{set:?} instead of {wait:?}");
    }
    hands.advance(HOUR / 4 * 3 - 1);
    assert!(!limiter.consume(3));
    hands.advance(1);
    assert!(limiter.consume(3));
    assert!(!limiter.is_blocked());
}

#[test]
fn asking_again_too_early_does_not_postpone_the_timer() {
    let hands = Hands::default();
    let second = BucketConfig { size: 20, refill_time: Duration::from_secs(1), one_time_burst: 0 };
    let mut limiter = hands.limiter(Some(second), None);
    assert!(limiter.consume(20));
    assert!(!limiter.consume(1));
    let timer = limiter.timer().unwrap();
    let started = Instant::now();
    while !fires(timer, 5) {
        assert!(!limiter.consume(1));
        assert!(started.elapsed() < Duration::from_secs(10), "the timer never fires");
    }
    hands.advance(50_000_000);
    assert!(limiter.consume(1));
}

#[test]
fn timer_is_cleared_and_set_again_for_whoever_asks_too_early() {
    let hands = Hands::default();
    let quick = BucketConfig { size: 1000, refill_time: Duration::from_secs(1), one_time_burst: 0 };
    let mut limiter = hands.limiter(None, Some(quick));
    while limiter.consume(0) {}
    let timer = limiter.timer().unwrap();
    for _ in 0..3 {
        // The clock stands still, the system's does not.
        assert!(fires(timer, 10_000));
        limiter.on_timer();
        assert!(!limiter.is_blocked());
        assert!(!fires(timer, 0));
        assert!(!limiter.consume(0));
        assert!(limiter.is_blocked());
    }
    limiter.on_timer();
    limiter.on_timer();
    assert!(!limiter.consume(0));
    assert!(fires(timer, 10_000), "clearing too often and too early does no harm");
}

#[test]
fn request_given_back_leaves_room_for_one_that_waits() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(10)), Some(hourly(5)));
    let full = limiter.save();
    assert!(limiter.consume(8));
    assert!(!limiter.consume(7));
    limiter.give_back(8);
    assert_eq!(limiter.save(), full);
    assert!(fires(limiter.timer().unwrap(), 10_000));
    limiter.on_timer();
    assert!(limiter.consume(7));
}

#[test]
fn bucket_that_is_set_starts_full_with_its_burst_and_wakes_the_one_that_waits() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(10)), Some(hourly(1000)));
    assert!(limiter.consume(100));
    assert!(!limiter.consume(1));
    let timer = limiter.timer().unwrap();
    let faster = BucketConfig { one_time_burst: 7, ..hourly(10) };
    limiter.update(Update::Set(faster), Update::Keep).unwrap();
    assert_eq!(limiter.timer(), Some(timer));
    assert!(fires(timer, 10_000));
    limiter.on_timer();
    assert!(limiter.consume(17));
    assert!(!limiter.consume(1), "and no more than that");
}

#[test]
fn bucket_that_is_kept_keeps_its_debt() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(10)), None);
    assert!(limiter.consume(100));
    let debt = limiter.save().bandwidth;
    limiter.update(Update::Keep, Update::Set(hourly(3))).unwrap();
    assert_eq!(limiter.save().bandwidth, debt);
    assert_eq!(limiter.save().ops.unwrap().config, hourly(3));
}

#[test]
fn lifting_the_limits_wakes_the_one_that_waits_and_keeps_the_descriptor() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(10)), Some(hourly(10)));
    assert!(limiter.consume(100));
    assert!(!limiter.consume(100));
    let timer = limiter.timer().unwrap();
    limiter.update(Update::Unlimited, Update::Unlimited).unwrap();
    assert!(fires(timer, 10_000));
    assert!((0..1000).all(|_| limiter.consume(u64::MAX)));
    assert!(!limiter.is_blocked());
    assert_eq!(limiter.save(), RateLimiterState::default());
    limiter.update(Update::Set(hourly(10)), Update::Keep).unwrap();
    assert_eq!(limiter.timer(), Some(timer));
    assert!(limiter.consume(10));
    assert!(!limiter.consume(10));
}

#[test]
fn wake_up_that_was_premature_leads_to_the_right_moment() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(10)), None);
    assert!(limiter.consume(10));
    assert!(!limiter.consume(5));
    limiter.update(Update::Keep, Update::Set(hourly(10))).unwrap();
    assert!(!limiter.consume(5), "asked before the timer was looked at");
    let timer = limiter.timer().unwrap();
    assert!(fires_in(timer) > Duration::from_secs(1700));
    assert!(!fires(timer, 0));
}

#[test]
fn invalid_update_changes_neither_bucket_and_wakes_no_one() {
    let hands = Hands::default();
    let mut limiter = hands.limiter(Some(hourly(10)), Some(hourly(10)));
    assert!(limiter.consume(10));
    assert!(!limiter.consume(5));
    let state = limiter.save();
    let error = limiter.update(Update::Set(hourly(20)), Update::Set(hourly(0))).unwrap_err();
    assert!(matches!(error, Error::Ops(_)));
    assert_eq!(error.source().unwrap().to_string(), "size must not be 0");
    let endless = BucketConfig { refill_time: Duration::MAX, ..hourly(10) };
    let error = limiter.update(Update::Set(endless), Update::Unlimited).unwrap_err();
    assert!(matches!(error, Error::Bandwidth(_)));
    assert_eq!(limiter.save(), state);
    assert!(!fires(limiter.timer().unwrap(), 20));
}

#[test]
fn invalid_configuration_is_refused() {
    assert!(matches!(RateLimiter::new(Some(hourly(0)), None), Err(Error::Bandwidth(_))));
    assert!(matches!(RateLimiter::new(Some(hourly(1)), Some(hourly(0))), Err(Error::Ops(_))));
}

#[test]
fn restored_limiter_goes_on_where_the_saved_one_was() {
    let hands = Hands::default();
    let burst = BucketConfig { one_time_burst: 5, ..hourly(10) };
    let mut limiter = hands.limiter(Some(hourly(7)), Some(burst));
    assert!(limiter.consume(20));
    assert!(!limiter.consume(1));
    hands.advance(HOUR / 3 + 1);
    let state = limiter.save();
    assert_eq!(state.ops.unwrap().burst_left, 4);

    let elsewhere = Hands::default();
    elsewhere.advance(12345);
    let mut restored = RateLimiter::restore(&state, elsewhere.clone()).unwrap();
    assert_eq!(restored.save(), state);
    assert!(!restored.is_blocked());
    assert!(!restored.consume(1));
    elsewhere.advance(2 * HOUR - HOUR / 3 - 2);
    assert!(!restored.consume(1), "14 of 20 bytes are paid for just after");
    elsewhere.advance(HOUR / 7 + 1);
    assert!(restored.consume(1));
}

#[test]
fn state_of_an_unlimited_limiter_is_restored_without_descriptor() {
    let state = RateLimiter::unlimited().save();
    assert_eq!(RateLimiter::try_from(&state).unwrap().timer(), None);
}

#[test]
fn invalid_state_of_either_bucket_is_refused() {
    let invalid = BucketState { config: hourly(1), burst_left: 1, missing_tokens: 0, missing_fraction: 0 };
    let state = RateLimiterState { bandwidth: Some(invalid), ops: None };
    assert!(matches!(RateLimiter::try_from(&state), Err(Error::Bandwidth(_))));
    let state = RateLimiterState { bandwidth: None, ops: Some(invalid) };
    assert!(matches!(RateLimiter::try_from(&state), Err(Error::Ops(_))));
}

/// Serves requests as a worker does for about a second, and returns the bytes a second that it got.
fn greedy_worker(rate: u64, request: u64) -> f64 {
    let config = BucketConfig { size: rate, refill_time: Duration::from_secs(1), one_time_burst: 0 };
    let mut limiter = RateLimiter::new(Some(config), None).unwrap();
    assert!(limiter.consume(rate));
    let started = Instant::now();
    let mut taken = 0;
    while started.elapsed() < Duration::from_secs(1) {
        if limiter.consume(request) {
            taken += request;
            continue;
        }
        assert!(fires(limiter.timer().unwrap(), 10_000), "the timer never fires");
        limiter.on_timer();
        assert!(limiter.consume(request), "the timer fires too early");
        taken += request;
    }
    taken as f64 / started.elapsed().as_secs_f64()
}

#[test]
fn worker_gets_the_rate_within_two_percent_over_a_second() {
    let mut rates = [(); 3].map(|()| greedy_worker(1_000_000, 4096));
    rates.sort_by(f64::total_cmp);
    assert!((980_000.0..=1_020_000.0).contains(&rates[1]), "{rates:?}");
}
