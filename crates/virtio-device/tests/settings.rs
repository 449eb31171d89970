//! Settings that change while a device runs.

mod common;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use common::Meeting;
use kindling_virtio_device::{Settings, Subscription};

/// Whether the subscription's descriptor is readable.
fn is_told<T>(subscription: &Subscription<T>) -> bool {
    let mut poll = libc::pollfd { fd: subscription.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which lives long enough.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

#[test]
fn a_subscriber_is_told_until_it_has_looked() {
    let settings = Settings::new(1);
    let mut subscription = settings.subscribe().unwrap();
    assert!(!is_told(&subscription));
    assert_eq!(subscription.latest(), 1);
    settings.change(|value| *value = 2);
    settings.change(|value| *value += 1);
    assert!(is_told(&subscription));
    assert_eq!(subscription.latest(), 3, "the present state, not its history");
    assert!(!is_told(&subscription));
    assert_eq!((subscription.latest(), settings.get()), (3, 3));
}

#[test]
fn a_subscriber_is_stale_from_the_change_on_until_it_has_looked() {
    let settings = Settings::new(1);
    let mut subscription = settings.subscribe().unwrap();
    assert!(subscription.is_stale(), "it has not looked yet");
    assert_eq!((subscription.latest(), subscription.is_stale()), (1, false));
    settings.change(|value| *value = 2);
    assert!(subscription.is_stale());
    assert_eq!((subscription.latest(), subscription.is_stale()), (2, false));
    // What stands beside the settings may be what has changed.
    settings.change(|_| ());
    assert!(subscription.is_stale());
}

#[test]
fn what_changed_before_is_what_a_new_subscriber_finds() {
    let settings = Settings::new(String::from("before"));
    settings.change(|value| value.push_str(" and after"));
    assert_eq!(settings.subscribe().unwrap().latest(), "before and after");
}

#[test]
fn every_subscriber_is_told() {
    let settings = Settings::new(0);
    let mut subscriptions: Vec<_> = (0..4).map(|_| settings.subscribe().unwrap()).collect();
    settings.change(|value| *value = 1);
    for subscription in &mut subscriptions {
        assert!(is_told(subscription));
        assert_eq!(subscription.latest(), 1);
    }
}

#[test]
fn subscribers_that_are_gone_leave_no_descriptor_behind() {
    let settings = Settings::new(0);
    let kept = settings.subscribe().unwrap();
    let lowest = |at: usize| settings.subscribe().map(|gone| (at, gone.as_raw_fd())).unwrap().1;
    let first = lowest(0);
    assert!((1..10_000).all(|at| lowest(at) <= first + 64), "descriptors pile up");
    settings.change(|value| *value = 1);
    assert!(is_told(&kept));
}

#[test]
fn no_change_is_lost_to_a_subscriber_that_looks_meanwhile() {
    const ROUNDS: u32 = 5_000;
    let settings = Settings::new(0);
    let mut subscription = settings.subscribe().unwrap();
    let together = Meeting::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                together.meet();
                settings.change(|value| *value = round);
            }
        });
        for round in 1..=ROUNDS {
            together.meet();
            let deadline = Instant::now() + Duration::from_secs(20);
            while subscription.latest() < round {
                while !is_told(&subscription) {
                    assert!(Instant::now() < deadline, "change {round} is lost");
                    std::thread::yield_now();
                }
            }
        }
    });
}
