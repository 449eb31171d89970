//! The limiter that several queues share.

#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kindling_rate_limiter::{BucketConfig, Clock, Error, Share, SharedLimiter, Update};

/// A clock that the tests turn.
#[derive(Clone, Debug, Default)]
struct Hands(Arc<AtomicU64>);

impl Clock for Hands {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Hands {
    fn advance(&self, nanoseconds: u64) {
        self.0.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Two queues with one limit.
    fn shares(&self, bandwidth: Update, ops: Update) -> (Arc<SharedLimiter<Self>>, [Share<Self>; 2]) {
        let limiter = Arc::new(SharedLimiter::with_clock(self.clone()));
        limiter.update(bandwidth, ops).unwrap();
        let shares = [(); 2].map(|()| Share::new(&limiter).unwrap());
        (limiter, shares)
    }
}

/// A token a nanosecond.
const fn steady(size: u64) -> Update {
    Update::Set(BucketConfig { size, refill_time: Duration::from_nanos(size), one_time_burst: 0 })
}

/// Whether the timer fires within `timeout` milliseconds.
fn fires(timer: &impl AsRawFd, timeout: i32) -> bool {
    let mut poll = libc::pollfd { fd: timer.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is to one `pollfd`, and the count is one.
    let ready = unsafe { libc::poll(&mut poll, 1, timeout) };
    assert!(ready >= 0);
    ready == 1
}

#[test]
fn unlimited_admits_everything() {
    let hands = Hands::default();
    let (_, [mut share, _]) = hands.shares(Update::Keep, Update::Unlimited);
    assert!((0..1000).all(|_| share.consume(u64::MAX)));
    share.give_back(u64::MAX);
    share.forget();
    assert!(!share.is_blocked() && !fires(share.timer(), 0));
}

#[test]
fn requests_of_several_queues_are_admitted_in_the_order_of_asking() {
    let hands = Hands::default();
    let (_, [mut first, mut second]) = hands.shares(steady(100), Update::Keep);
    assert!(first.consume(100));
    assert!(!first.consume(100), "all that the bucket holds");
    // What flows in is the first one's, however small a request is that comes later.
    hands.advance(99);
    assert!(!second.consume(1));
    assert!(!first.consume(100) && first.is_blocked());
    hands.advance(1);
    assert!(!first.is_blocked() && first.consume(100));
    assert!(second.is_blocked() && !second.consume(1));
    hands.advance(1);
    assert!(second.consume(1));
}

#[test]
fn asking_again_takes_nothing_more() {
    let hands = Hands::default();
    let (_, [mut share, mut other]) = hands.shares(steady(10), Update::Keep);
    assert!(share.consume(10));
    assert!((0..10).all(|_| !share.consume(10)));
    hands.advance(10);
    assert!(share.consume(10));
    hands.advance(10);
    assert!(other.consume(10));
}

#[test]
fn both_buckets_must_have_enough() {
    let hands = Hands::default();
    let ops = BucketConfig { size: 1, refill_time: Duration::from_nanos(30), one_time_burst: 0 };
    let (_, [mut share, _]) = hands.shares(steady(10), Update::Set(ops));
    assert!(share.consume(1));
    assert!(!share.consume(10));
    hands.advance(29);
    assert!(!share.consume(10), "bytes alone are not enough");
    hands.advance(1);
    assert!(share.consume(10));
    hands.advance(30);
    assert!(share.consume(10) && !share.consume(0), "no bytes are an operation too");
}

#[test]
fn what_is_given_up_or_given_back_is_there_for_others() {
    let hands = Hands::default();
    let (_, [mut first, mut second]) = hands.shares(steady(100), Update::Keep);
    assert!(first.consume(100));
    assert!(!first.consume(50));
    first.forget();
    assert!(!first.is_blocked());
    // Another size is another request.
    assert!(!first.consume(60) && !first.consume(10));
    hands.advance(10);
    assert!(first.consume(10));
    first.give_back(10);
    assert!(second.consume(10));
    assert!(!second.consume(1));
}

#[test]
fn requests_that_waited_give_back_to_buckets_that_are_kept_and_not_to_new_ones() {
    let hands = Hands::default();
    let ops = BucketConfig { size: 4, refill_time: Duration::from_secs(3_600), one_time_burst: 0 };
    let (limiter, [mut first, mut second]) = hands.shares(steady(100), Update::Set(ops));
    assert!(first.consume(100) && !first.consume(100));
    limiter.update(steady(100), Update::Keep).unwrap();
    assert!(second.consume(100), "the new bucket is full");
    first.forget();
    assert!(!second.consume(1), "and is empty now");
    second.forget();
    // Of four operations, two were done.
    assert!(second.consume(0) && second.consume(0) && !second.consume(0));
}

#[test]
fn request_that_waits_when_the_limits_are_lifted_is_admitted() {
    let hands = Hands::default();
    let (limiter, [mut share, _]) = hands.shares(steady(10), Update::Keep);
    assert!(share.consume(10) && !share.consume(10));
    limiter.update(Update::Unlimited, Update::Keep).unwrap();
    assert!(share.consume(10));
    assert!(!share.is_blocked());
}

#[test]
fn invalid_update_changes_neither_bucket() {
    let wrong = Update::Set(BucketConfig { size: 0, refill_time: Duration::from_secs(1), one_time_burst: 0 });
    let hands = Hands::default();
    let (limiter, [mut share, _]) = hands.shares(steady(10), Update::Keep);
    assert!(matches!(limiter.update(Update::Unlimited, wrong), Err(Error::Ops(_))));
    assert!(matches!(limiter.update(wrong, Update::Unlimited), Err(Error::Bandwidth(_))));
    assert!(share.consume(10) && !share.consume(10));
}

#[test]
fn timer_fires_when_the_request_may_start_and_early_calls_do_not_lose_it() {
    let second = BucketConfig { size: 10, refill_time: Duration::from_secs(1), one_time_burst: 0 };
    let limiter = Arc::new(SharedLimiter::new(Some(second), None).unwrap());
    let mut share = Share::new(&limiter).unwrap();
    assert!(share.consume(10));
    let begun = Instant::now();
    assert!(!share.consume(1));
    share.on_timer();
    assert!(fires(share.timer(), 10_000));
    assert!(begun.elapsed() > Duration::from_millis(90), "{:?}", begun.elapsed());
    share.on_timer();
    assert!(!fires(share.timer(), 0));
    assert!(share.consume(1));
}

#[test]
fn threads_together_get_the_rate_and_no_more() {
    const RATE: u64 = 10_000;
    let bucket = BucketConfig { size: RATE / 10, refill_time: Duration::from_millis(100), one_time_burst: 0 };
    let limiter = Arc::new(SharedLimiter::new(Some(bucket), None).unwrap());
    let begun = Instant::now();
    let threads = [1, 7, 30, 200].map(|bytes| {
        let mut share = Share::new(&limiter).unwrap();
        thread::spawn(move || {
            let mut taken = 0;
            while begun.elapsed() < Duration::from_secs(1) {
                if share.consume(bytes) {
                    taken += bytes;
                } else {
                    assert!(fires(share.timer(), 10_000));
                    share.on_timer();
                }
            }
            taken
        })
    });
    let taken: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let allowed = (RATE as f64 * (0.1 + begun.elapsed().as_secs_f64())) as u64;
    assert!(taken <= allowed + 1, "{taken} of {allowed}");
    assert!(taken * 10 >= allowed * 8, "{taken} of {allowed}");
}
