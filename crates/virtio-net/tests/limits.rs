//! Rate limits, in real time: buckets are large enough to make up for a thread that comes late.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Host, MRG_RXBUF, device, metric};
use kindling_rate_limiter::{BucketConfig, Error, Update};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device, WorkerSlot, WorkerThread};
use kindling_virtio_net::Net;

const TIME: Duration = Duration::from_secs(2);

/// Frames a second that the limits let through: so few that this test's own threads keep up on a busy machine.
const RATE: u64 = 400;

/// Tokens for a quarter of a second, of which a frame takes `each`.
fn bucket(each: u64) -> Update {
    let refill_time = Duration::from_millis(250);
    Update::Set(BucketConfig { size: each * RATE / 4, refill_time, one_time_burst: 0 })
}

struct Rig {
    net: Net,
    driver: MockDriver,
    hosts: Vec<Host>,
    slots: Vec<WorkerSlot>,
}

fn start(mut net: Net, hosts: Vec<Host>) -> Rig {
    let driver = MockDriver::with_features(&net, (net.features() | COMMON_FEATURES) & !MRG_RXBUF);
    let workers = net.activate(driver.activation()).unwrap().into_iter().map(|worker| {
        let slot = WorkerThread::spawn("net", || Ok(())).unwrap().slot();
        slot.start(worker, Arc::clone(&driver.interrupt) as _);
        slot
    });
    let slots = workers.collect();
    Rig { net, driver, hosts, slots }
}

impl Rig {
    /// Sends frames of `len` bytes by the queues of `pairs`, for some time; returns how many came, and in what time.
    fn transmit(&mut self, len: usize, pairs: usize) -> (u64, Duration) {
        let frame = vec![1; 12 + len];
        let begin = Instant::now();
        let mut count = 0;
        while begin.elapsed() < TIME {
            for pair in 0..pairs {
                let queue = &mut self.driver.queues[2 * pair + 1];
                while queue.take_used().is_some() {}
                while queue.outstanding() < 128 {
                    queue.add(&[Buffer::Readable(&frame)]);
                }
                count += std::iter::from_fn(|| self.hosts[pair].receive()).count() as u64;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        (count, begin.elapsed())
    }

    /// The same with frames that the guest receives, by the first pair.
    fn receive(&mut self, len: usize) -> (u64, Duration) {
        let frame = vec![1; len];
        let begin = Instant::now();
        let mut count = 0;
        while begin.elapsed() < TIME {
            while self.driver.queues[0].take_used().is_some() {
                count += 1;
            }
            while self.driver.queues[0].outstanding() < 128 {
                self.driver.queues[0].add(&[Buffer::Writable(1_600)]);
            }
            while self.hosts[0].try_send(&[0; 12], &frame) {}
            std::thread::sleep(Duration::from_micros(500));
        }
        (count, begin.elapsed())
    }
}

/// Asserts that buckets let through what they should, within 2 %. They may never let through more. That it is less may also
/// be because the machine has better things to do, so that this is tried again.
fn assert_rate(run: impl Fn() -> (u64, Duration)) {
    let mut error = f64::NAN;
    for _ in 0..5 {
        let (count, time) = run();
        error = count as f64 / (RATE as f64 * (0.25 + time.as_secs_f64())) - 1.0;
        assert!(error < 0.02, "{count} frames are too many: {error:+.3}");
        if error > -0.02 {
            return;
        }
    }
    panic!("there are too few frames: {error:+.3}");
}

#[test]
fn what_is_sent_keeps_to_its_limits() {
    for (bandwidth, ops) in [(bucket(900), Update::Keep), (Update::Keep, bucket(1)), (bucket(900), bucket(2))]
    {
        assert_rate(|| {
            let (net, hosts) = device(1);
            net.control().limit_tx(bandwidth, ops).unwrap();
            let mut rig = start(net, hosts);
            let result = rig.transmit(900, 1);
            assert!(metric(&rig.net, "tx_throttled") > 0);
            result
        });
    }
}

#[test]
fn what_is_received_keeps_to_its_limits() {
    for (bandwidth, ops) in
        [(bucket(900), Update::Keep), (Update::Keep, bucket(1)), (bucket(1_800), bucket(1))]
    {
        assert_rate(|| {
            let (net, hosts) = device(1);
            net.control().limit_rx(bandwidth, ops).unwrap();
            let mut rig = start(net, hosts);
            let result = rig.receive(900);
            assert!(metric(&rig.net, "rx_throttled") > 0);
            result
        });
    }
}

#[test]
fn all_queues_together_keep_to_one_limit() {
    assert_rate(|| {
        let (net, hosts) = device(2);
        net.control().limit_tx(bucket(900), Update::Keep).unwrap();
        start(net, hosts).transmit(900, 2)
    });
}

#[test]
fn a_limit_that_is_lifted_lets_those_go_who_wait() {
    let (net, hosts) = device(1);
    let control = net.control();
    let hour = BucketConfig { size: 2_000, refill_time: Duration::from_secs(3_600), one_time_burst: 0 };
    control.limit_tx(Update::Set(hour), Update::Keep).unwrap();
    control.limit_rx(Update::Keep, Update::Set(BucketConfig { size: 1, ..hour })).unwrap();
    let mut rig = start(net, hosts);
    for byte in 0..10 {
        rig.driver.queues[0].add(&[Buffer::Writable(70_000)]);
        rig.driver.queues[1].add(&[Buffer::Readable(&[byte; 1_012])]);
        rig.hosts[0].send(&[byte; 1_000]);
    }
    for byte in 0..2 {
        // One is paid for, and the next is passed on and owed.
        assert_eq!(rig.driver.queues[0].wait_used(10).data[12], byte);
        // 2,000 bytes are two frames.
        rig.driver.queues[1].wait_used(10);
        assert_eq!(rig.hosts[0].receive().unwrap()[12], byte);
    }
    let wrong = BucketConfig { size: 0, ..hour };
    assert!(matches!(control.limit_tx(Update::Unlimited, Update::Set(wrong)), Err(Error::Ops(_))));
    assert!(matches!(control.limit_rx(Update::Set(wrong), Update::Unlimited), Err(Error::Bandwidth(_))));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(rig.hosts[0].receive(), None, "a change that is refused changes nothing");
    assert_eq!(rig.driver.queues[0].take_used(), None);
    // Who waits may sleep meanwhile.
    let deadline = Instant::now() + Duration::from_secs(5);
    let slot = &rig.slots[0];
    let worker = slot.stop().wait(deadline).unwrap().unwrap();
    slot.start(worker, Arc::clone(&rig.driver.interrupt) as _);
    control.limit_tx(Update::Unlimited, Update::Keep).unwrap();
    control.limit_rx(Update::Keep, Update::Unlimited).unwrap();
    for byte in 2..10 {
        assert_eq!(rig.driver.queues[0].wait_used(10).data[12], byte);
        rig.driver.queues[1].wait_used(10);
        assert_eq!(rig.hosts[0].receive().unwrap()[12], byte);
    }
}

#[test]
fn a_frame_that_the_tap_does_not_take_yet_is_counted_once() {
    let (mut net, hosts) = device(1);
    let hour = BucketConfig { size: 120, refill_time: Duration::from_secs(3_600), one_time_burst: 0 };
    net.control().limit_tx(Update::Set(BucketConfig { size: 120_000, ..hour }), Update::Set(hour)).unwrap();
    let mut driver = MockDriver::new(&net);
    let mut inline = Inline::start(net.activate(driver.activation()).unwrap()).unwrap();
    for _ in 0..128 {
        driver.queues[1].add(&[Buffer::Readable(&[1; 1_012])]);
    }
    // It is tried again and again.
    for _ in 0..50 {
        driver.queues[1].kick();
        inline.run(100).unwrap();
    }
    assert!(metric(&net, "tx_waits") >= 50);
    let mut count = 0;
    for _ in 0..10 {
        count += std::iter::from_fn(|| hosts[0].receive()).count();
        inline.run(100).unwrap();
    }
    assert_eq!((count, metric(&net, "tx_frames")), (120, 120));
}

#[test]
fn a_frame_that_was_received_is_counted_once() {
    let (mut net, hosts) = device(1);
    let hour = BucketConfig { size: 10, refill_time: Duration::from_secs(3_600), one_time_burst: 0 };
    net.control().limit_rx(Update::Set(BucketConfig { size: 10_000, ..hour }), Update::Set(hour)).unwrap();
    let mut driver = MockDriver::new(&net);
    let mut inline = Inline::start(net.activate(driver.activation()).unwrap()).unwrap();
    for _ in 0..20 {
        driver.queues[0].add(&[Buffer::Writable(70_000)]);
        hosts[0].send(&[1; 1_000]);
        inline.run(100).unwrap();
        // A sleep costs nothing either.
        inline = Inline::start(inline.stop()).unwrap();
    }
    // Ten are paid for, and one is owed.
    assert_eq!(std::iter::from_fn(|| driver.queues[0].take_used()).count(), 11);
}
