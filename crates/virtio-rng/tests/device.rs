//! The entropy device as its driver sees it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_rate_limiter::BucketConfig;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{ActivateError, COMMON_FEATURES, Device, Interrupt, WorkerThread};
use kindling_virtio_rng::{Limits, REQUEST_MAX, Rng};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

fn bucket(size: u64, milliseconds: u64) -> Option<BucketConfig> {
    Some(BucketConfig { size, refill_time: Duration::from_millis(milliseconds), one_time_burst: 0 })
}

fn count(rng: &Rng, wanted: &str) -> u64 {
    rng.metrics().value(wanted).unwrap().number()
}

#[test]
fn every_byte_that_is_asked_for_is_random() {
    for features in [COMMON_FEATURES, 1 << VIRTIO_F_VERSION_1] {
        let mut rng = Rng::new(Limits::default()).unwrap();
        let mut driver = MockDriver::with_features(&rng, features);
        let mut workers = Inline::start(rng.activate(driver.activation()).unwrap()).unwrap();
        let head =
            driver.queues[0].add(&[Buffer::Writable(1000), Buffer::Writable(1), Buffer::Writable(9000)]);
        workers.run(10).unwrap();
        let used = driver.queues[0].take_used().unwrap();
        assert_eq!((used.head, used.written), (head, 10_001));
        // What was there before was 0xa5 throughout. Each value is about a 256th of random bytes.
        for value in 0..=255 {
            let share = used.data.iter().filter(|byte| **byte == value).count();
            assert!((5..120).contains(&share), "{share} of 10001 bytes are {value}");
        }
    }
}

#[test]
fn a_request_gets_at_most_64_kib_and_one_without_room_nothing() {
    let mut rng = Rng::new(Limits::default()).unwrap();
    let mut driver = MockDriver::new(&rng);
    let mut workers = Inline::start(rng.activate(driver.activation()).unwrap()).unwrap();
    driver.queues[0].add(&[Buffer::Writable(REQUEST_MAX + 10)]);
    driver.queues[0].add(&[Buffer::Readable(b"nothing to write to")]);
    workers.run(10).unwrap();
    let used = driver.queues[0].take_used().unwrap();
    assert_eq!(used.written, REQUEST_MAX);
    assert_eq!(used.data[REQUEST_MAX as usize..], [0xa5; 10]);
    assert_eq!(driver.queues[0].take_used().unwrap().written, 0);
    assert_eq!(count(&rng, "failures"), 1);
    assert_eq!(count(&rng, "bytes"), u64::from(REQUEST_MAX));
}

#[test]
fn a_batch_costs_one_interrupt() {
    let mut rng = Rng::new(Limits::default()).unwrap();
    let mut driver = MockDriver::new(&rng);
    for _ in 0..100 {
        driver.queues[0].add(&[Buffer::Writable(8)]);
    }
    let mut workers = Inline::start(rng.activate(driver.activation()).unwrap()).unwrap();
    workers.run(10).unwrap();
    assert_eq!(std::iter::from_fn(|| driver.queues[0].take_used()).count(), 100);
    assert_eq!(driver.interrupt.queue(0), 1);
}

#[test]
fn the_limit_holds_and_can_be_lifted() {
    // A thousand bytes a second, a hundred at a time.
    let mut rng = Rng::new(Limits { bandwidth: bucket(100, 100), ops: None }).unwrap();
    let control = rng.control();
    let mut driver = MockDriver::new(&rng);
    for _ in 0..20 {
        driver.queues[0].add(&[Buffer::Writable(20)]);
    }
    let start = Instant::now();
    let mut workers = Inline::start(rng.activate(driver.activation()).unwrap()).unwrap();
    let mut answered = 0;
    while answered < 15 {
        workers.step(100).unwrap();
        answered += std::iter::from_fn(|| driver.queues[0].take_used()).count();
        // 5 at once, and one each 20 ms.
        let allowed = 5 + start.elapsed().as_millis() / 20;
        assert!(answered as u128 <= allowed, "{answered} answers after {:?}", start.elapsed());
    }
    assert!(count(&rng, "throttled") > 0);

    // A second for the next byte, which never comes because there is no limit any more.
    control.set_limits(Limits { bandwidth: bucket(1, 10_000), ops: bucket(1, 10_000) }).unwrap();
    workers.run(10).unwrap();
    control.set_limits(Limits::default()).unwrap();
    workers.run(10).unwrap();
    assert_eq!(
        driver.queues[0].outstanding() - std::iter::from_fn(|| driver.queues[0].take_used()).count(),
        0
    );
}

#[test]
fn a_sleep_loses_no_request_and_a_reset_gives_a_new_device() {
    let mut rng = Rng::new(Limits { bandwidth: None, ops: bucket(1, 50) }).unwrap();
    let mut driver = MockDriver::new(&rng);
    driver.queues[0].add(&[Buffer::Writable(8)]);
    driver.queues[0].add(&[Buffer::Writable(8)]);
    let mut workers = Inline::start(rng.activate(driver.activation()).unwrap()).unwrap();
    workers.run(10).unwrap();
    let asleep = workers.stop();
    assert_eq!(asleep[0].queues()[0].next_available, 1, "the second waits for the limiter");
    driver.queues[0].add(&[Buffer::Writable(8)]);
    let mut workers = Inline::start(asleep).unwrap();
    let mut used = 0;
    while used < 3 {
        workers.step(1000).unwrap();
        used += std::iter::from_fn(|| driver.queues[0].take_used()).count();
    }

    drop(workers);
    rng.reset();
    let mut driver = MockDriver::new(&rng);
    driver.queues[0].add(&[Buffer::Writable(8)]);
    let mut workers = Inline::start(rng.activate(driver.activation()).unwrap()).unwrap();
    let used = loop {
        workers.step(1000).unwrap();
        if let Some(used) = driver.queues[0].take_used() {
            break used;
        }
    };
    assert_eq!(used.written, 8);
}

#[test]
fn a_reset_brings_no_tokens() {
    let mut rng = Rng::new(Limits { bandwidth: bucket(100, 60_000), ops: None }).unwrap();
    for expected in [1, 0, 0] {
        let mut driver = MockDriver::new(&rng);
        driver.queues[0].add(&[Buffer::Writable(90)]);
        let mut workers = Inline::start(rng.activate(driver.activation()).unwrap()).unwrap();
        workers.run(10).unwrap();
        assert_eq!(std::iter::from_fn(|| driver.queues[0].take_used()).count(), expected);
        drop(workers);
        rng.reset();
    }
}

#[test]
fn without_its_queue_there_is_nothing_to_activate() {
    let mut rng = Rng::new(Limits::default()).unwrap();
    let mut activation = MockDriver::new(&rng).activation();
    activation.queues.clear();
    assert!(matches!(rng.activate(activation), Err(ActivateError::Missing(0))));
}

#[test]
fn it_serves_from_a_thread_that_others_share() {
    let thread = WorkerThread::spawn("io quiet", || Ok(())).unwrap();
    let devices = (0..3).map(|_| Rng::new(Limits::default()).unwrap());
    let mut running: Vec<_> = devices
        .map(|mut rng| {
            let driver = MockDriver::new(&rng);
            let slot = thread.slot();
            let interrupt = Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>;
            for worker in rng.activate(driver.activation()).unwrap() {
                slot.start(worker, Arc::clone(&interrupt));
            }
            (driver, slot)
        })
        .collect();
    for _ in 0..50 {
        for (driver, _) in &mut running {
            driver.queues[0].add(&[Buffer::Writable(100)]);
        }
        for (driver, _) in &mut running {
            assert_eq!(driver.queues[0].wait_used(10).written, 100);
        }
    }
}
