//! The rate limiter, on the clock.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use kindling_rate_limiter::{BucketConfig, Update};
use kindling_virtio_blk::{Blk, BlkConfig, IoEngine};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{Device, Interrupt, WorkerSlot, WorkerThread};

/// `per_second` tokens, and a tenth of that at once.
fn rate(per_second: u64) -> Option<BucketConfig> {
    let refill_time = Duration::from_millis(100);
    Some(BucketConfig { size: per_second / 10, refill_time, one_time_burst: 0 })
}

fn start(device: &mut Blk, driver: &MockDriver) -> Vec<WorkerSlot> {
    let workers = device.activate(driver.activation()).unwrap();
    let start = |worker| {
        let slot = WorkerThread::spawn("io", || Ok(())).unwrap().slot();
        slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
        slot
    };
    workers.into_iter().map(start).collect()
}

/// Keeps `depth` reads of `len` bytes on each queue busy until `total` are done; returns how long that took.
fn read(driver: &mut MockDriver, depth: usize, len: u32, total: usize) -> Duration {
    let begun = Instant::now();
    let (mut added, mut done) = (0, 0);
    while done < total {
        for queue in &mut driver.queues {
            while added < total && queue.outstanding() < depth {
                queue.add(&[Buffer::Readable(&header(IN, 0)), Buffer::Writable(len), Buffer::Writable(1)]);
                added += 1;
            }
            while let Some(used) = queue.take_used() {
                assert_eq!(answer(used).0, OK);
                done += 1;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{done} of {total} are done");
        std::thread::sleep(Duration::from_micros(200));
    }
    begun.elapsed()
}

/// Makes `total` reads of `len` bytes, `depth` at a time on each queue, on a new device with such limits, which must take
/// so many seconds. Less never: more, when this machine has other things to do, is tried again.
fn assert_takes(image: &Image, config: &BlkConfig, depth: usize, len: u32, total: usize, seconds: f64) {
    let mut ratios = Vec::new();
    while ratios.len() < 5 {
        let mut device = open(image, config);
        let mut driver = MockDriver::new(&device);
        let _slots = start(&mut device, &driver);
        let ratio = read(&mut driver, depth, len, total).as_secs_f64() / seconds;
        assert!(metric(&device, "throttled") > 0);
        assert!(ratio > 0.98, "{config:?}: faster than allowed, at {ratio:.3} of the time");
        if ratio < 1.02 {
            return;
        }
        ratios.push(ratio);
    }
    panic!("{config:?}: slower than allowed, at {ratios:.3?} of the time");
}

#[test]
fn bytes_and_requests_keep_to_their_limits_on_one_queue_and_on_four() {
    const RATE: u64 = 16 << 20;
    const LEN: u32 = 64 << 10;
    let image = Image::new(256);
    for engine in ENGINES {
        for queues in [1, 4] {
            // What is in the bucket comes at once.
            let config = BlkConfig { engine, queues, bandwidth: rate(RATE), ..BlkConfig::default() };
            let bytes = 400 * u64::from(LEN);
            assert_takes(&image, &config, 4, LEN, 400, (bytes - RATE / 10) as f64 / RATE as f64);
            let config = BlkConfig { engine, queues, ops: rate(1_000), ..BlkConfig::default() };
            assert_takes(&image, &config, 8, 512, 1_600, 1.5);
        }
    }
}

#[test]
fn a_big_request_is_not_starved_by_small_ones_of_another_queue() {
    let image = Image::new(4096);
    let config = BlkConfig { queues: 2, bandwidth: rate(4 << 20), ..BlkConfig::default() };
    let mut device = open(&image, &config);
    let mut driver = MockDriver::new(&device);
    let _slots = start(&mut device, &driver);
    let add = |driver: &mut MockDriver, queue: usize, len| {
        driver.queues[queue].add(&[
            Buffer::Readable(&header(IN, 0)),
            Buffer::Writable(len),
            Buffer::Writable(1),
        ]);
    };
    let begun = Instant::now();
    let mut is_added = false;
    loop {
        while driver.queues[0].outstanding() < 32 {
            add(&mut driver, 0, 4096);
        }
        while driver.queues[0].take_used().is_some() {}
        if !is_added && begun.elapsed() > Duration::from_millis(200) {
            // All that the bucket holds, which is what the others never leave there.
            add(&mut driver, 1, (4 << 20) / 10 / 512 * 512);
            is_added = true;
        }
        if is_added && driver.queues[1].take_used().is_some() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "the big request starves");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_request_that_waits_is_judged_by_new_limits() {
    for engine in ENGINES {
        let image = Image::new(256);
        let slow = BucketConfig { size: 512, refill_time: Duration::from_secs(3_600), one_time_burst: 0 };
        let config = BlkConfig { engine, bandwidth: Some(slow), ..BlkConfig::default() };
        let mut guest = Guest::open(&image, &config);
        let control = guest.device.control();
        assert_eq!(guest.read(0, 512), [pattern(0); 512]);
        guest.add(0, IN, 1, &[], 512);
        guest.add(0, IN, 2, &[], 512);
        assert!(guest.workers.run(100).unwrap() < 100, "the worker is not idle");
        // A driver may kick as it likes.
        guest.driver.queues[0].kick();
        assert!(guest.workers.run(100).unwrap() < 100, "the worker is not idle");
        assert!(guest.driver.queues[0].take_used().is_none());
        assert_eq!(guest.metric("throttled"), 1);
        // As slow as before: it still waits.
        control.set_limits(Update::Keep, Update::Unlimited).unwrap();
        assert!(guest.workers.run(100).unwrap() < 100, "the worker is not idle");
        assert!(guest.driver.queues[0].take_used().is_none());
        // Enough for one.
        control.set_limits(Update::Set(slow), Update::Keep).unwrap();
        assert_eq!(answer(guest.wait(0)), (OK, vec![pattern(1); 512]));
        guest.workers.run(100).unwrap();
        assert!(guest.driver.queues[0].take_used().is_none());
        control.set_limits(Update::Unlimited, Update::Keep).unwrap();
        assert_eq!(answer(guest.wait(0)), (OK, vec![pattern(2); 512]));
        let wrong = BucketConfig { size: 0, ..slow };
        assert!(control.set_limits(Update::Set(wrong), Update::Keep).is_err());
        assert_eq!(guest.read(3, 512), [pattern(3); 512]);
        assert_eq!(guest.metric("updates"), 3);
    }
}

#[test]
fn a_request_that_waits_goes_to_sleep_untaken_and_costs_nothing_when_it_is_forgotten() {
    for engine in ENGINES {
        let image = Image::new(256);
        // One read at once, the next after an hour.
        let slow = BucketConfig { size: 8192, refill_time: Duration::from_secs(3_600), one_time_burst: 0 };
        let config = BlkConfig { engine, bandwidth: Some(slow), ..BlkConfig::default() };
        let mut guest = Guest::open(&image, &config);
        assert_eq!(guest.read(0, 4096).len(), 4096);
        guest.add(0, IN, 0, &[], 8192);
        guest.workers.run(100).unwrap();
        guest.sleep_and_wake();
        assert!(guest.driver.queues[0].take_used().is_none());
        // Another driver finds what was left.
        let Guest { device, workers, .. } = guest;
        drop(workers.stop());
        let mut guest = Guest::new(device);
        assert_eq!(guest.read(0, 4096).len(), 4096);
    }
}

#[test]
fn a_request_that_grows_while_it_waits_pays_for_what_it_is() {
    for engine in ENGINES {
        let image = Image::new(256);
        let bucket = BucketConfig { size: 512, refill_time: Duration::from_millis(20), one_time_burst: 0 };
        let config = BlkConfig { engine, bandwidth: Some(bucket), ..BlkConfig::default() };
        let mut guest = Guest::open(&image, &config);
        guest.read(0, 512);
        let header = header(IN, 0);
        let queue = &mut guest.driver.queues[0];
        let head = queue.prepare(&[Buffer::Readable(&header), Buffer::Writable(64 << 10)], false);
        // The buffer is a sector and a status at first.
        let table = queue.state.config.descriptor_table;
        let memory = Arc::clone(&guest.driver.memory);
        let next = read_u16(&memory, table + 16 * u64::from(head) + 14);
        let len_at = table + 16 * u64::from(next) + 8;
        write_u32(&memory, len_at, 513);
        queue.offer(head);
        queue.kick();
        guest.workers.run(100).unwrap();
        assert_eq!(guest.metric("throttled"), 1);
        write_u32(&memory, len_at, 20 * 512 + 1);
        guest.wait(0);
        let begun = Instant::now();
        // It was bigger than the bucket, and has to be paid before anything else: 20 times what the bucket holds.
        guest.read(0, 512);
        assert!(begun.elapsed() > Duration::from_millis(350), "{:?}", begun.elapsed());
    }
}

fn read_u16(memory: &kindling_virtio_device::GuestMemory, at: u64) -> u16 {
    vm_memory::Bytes::read_obj(memory, vm_memory::GuestAddress(at)).unwrap()
}

fn write_u32(memory: &kindling_virtio_device::GuestMemory, at: u64, value: u32) {
    vm_memory::Bytes::write_obj(memory, value, vm_memory::GuestAddress(at)).unwrap();
}

#[test]
fn what_is_not_limited_does_not_wait() {
    let mut guest = Guest::open(
        &Image::new(16),
        &BlkConfig { engine: IoEngine::Sync, ops: rate(1_000_000), ..BlkConfig::default() },
    );
    for _ in 0..100 {
        guest.read(0, 512);
    }
    assert_eq!(guest.metric("throttled"), 0);
}
