//! The balloon as guest and host see it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use kindling_virtio_balloon::{Balloon, Config, Error};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device, Interrupt, WorkerThread};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const ALL: Config = Config {
    amount_mib: 0,
    deflate_on_oom: true,
    statistics_interval_s: 1,
    free_page_hinting: true,
    free_page_reporting: true,
};

/// Queues of a balloon with all abilities.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const HINTING: usize = 3;
const REPORTING: usize = 4;

/// Memory that no queue of a mock driver uses, at its very end.
const SPARE: u64 = 255 << 20;

fn count(balloon: &Balloon, wanted: &str) -> u64 {
    balloon.metrics().value(wanted).unwrap().number()
}

fn start(balloon: &mut Balloon) -> (MockDriver, Inline) {
    let driver = MockDriver::new(balloon);
    let workers = Inline::start(balloon.activate(driver.activation()).unwrap()).unwrap();
    (driver, workers)
}

/// Makes `pages` pages from `address` on resident.
fn fill(driver: &MockDriver, address: u64, pages: usize) {
    driver.memory.write_slice(&vec![7; pages * 4096], GuestAddress(address)).unwrap();
}

/// Which of so many pages from `address` on are resident.
fn resident(driver: &MockDriver, address: u64, pages: usize) -> Vec<bool> {
    let slice = driver.memory.get_slice(GuestAddress(address), pages * 4096).unwrap();
    let mut present = vec![0_u8; pages];
    // SAFETY: the range is mapped, and there is a byte for each of its pages.
    let result =
        unsafe { libc::mincore(slice.ptr_guard_mut().as_ptr().cast(), pages * 4096, present.as_mut_ptr()) };
    assert_eq!(result, 0);
    present.into_iter().map(|present| present & 1 == 1).collect()
}

fn numbers(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(|number| u32::try_from(number).unwrap().to_le_bytes()).collect()
}

#[test]
fn inflating_gives_exactly_those_pages_to_the_host() {
    for features in [COMMON_FEATURES, 1 << 32] {
        let mut balloon = Balloon::new(Config::default()).unwrap();
        let mut driver = MockDriver::with_features(&balloon, features);
        let mut workers = Inline::start(balloon.activate(driver.activation()).unwrap()).unwrap();
        fill(&driver, SPARE, 8);
        assert_eq!(resident(&driver, SPARE, 8), [true; 8]);
        let page = SPARE >> 12;
        // In any order, in pieces of any size.
        let bytes = numbers([page + 5, page + 1, page + 2]);
        driver.queues[INFLATE].add(&[Buffer::Readable(&bytes[..3]), Buffer::Readable(&bytes[3..])]);
        workers.run(10).unwrap();
        let given_up = [false, true, true, false, false, true, false, false];
        assert_eq!(resident(&driver, SPARE, 8), given_up.map(|given_up| !given_up));
        assert_eq!(driver.queues[INFLATE].take_used().unwrap().written, 0);
        assert_eq!(count(&balloon, "inflated"), 3);

        driver.queues[DEFLATE].add(&[Buffer::Readable(&bytes)]);
        workers.run(10).unwrap();
        assert!(driver.queues[DEFLATE].take_used().is_some());
        assert_eq!(count(&balloon, "deflated"), 3);
        let mut byte = [1];
        driver.memory.read_slice(&mut byte, GuestAddress(SPARE + 4096)).unwrap();
        assert_eq!(byte, [0]);
    }
}

#[test]
fn pages_that_the_guest_does_not_have_are_counted_and_nothing_else() {
    let mut balloon = Balloon::new(Config::default()).unwrap();
    let (mut driver, mut workers) = start(&mut balloon);
    fill(&driver, SPARE, 1);
    let last = (256 << 20 >> 12) - 1;
    let bytes = numbers([u64::from(u32::MAX), last, last + 1, 1 << 30, u64::from(u32::MAX) - 1]);
    driver.queues[INFLATE].add(&[Buffer::Readable(&bytes), Buffer::Writable(4)]);
    // Not a whole number, and none at all.
    driver.queues[INFLATE].add(&[Buffer::Readable(&[1, 2, 3])]);
    driver.queues[INFLATE].add(&[Buffer::Writable(100)]);
    workers.run(10).unwrap();
    assert_eq!(std::iter::from_fn(|| driver.queues[INFLATE].take_used()).count(), 3);
    assert_eq!((count(&balloon, "inflated"), count(&balloon, "bad_pages")), (1, 4));
    assert_eq!(resident(&driver, SPARE, 1), [true]);
}

#[test]
fn a_request_larger_than_any_buffer_of_the_device_is_served_whole() {
    let mut balloon = Balloon::new(Config::default()).unwrap();
    let (mut driver, mut workers) = start(&mut balloon);
    let first = (200_u64 << 20) >> 12;
    fill(&driver, 200 << 20, 1000);
    driver.queues[INFLATE].add(&[Buffer::Readable(&numbers((first..first + 1000).rev()))]);
    workers.run(10).unwrap();
    assert_eq!(count(&balloon, "inflated"), 1000);
    assert!(!resident(&driver, 200 << 20, 1000).contains(&true));
}

#[test]
fn one_request_cannot_keep_the_worker_busy() {
    let mut balloon = Balloon::new(Config::default()).unwrap();
    let (mut driver, mut workers) = start(&mut balloon);
    let bytes = vec![0xff; 30 << 20];
    driver.queues[INFLATE].add(&[Buffer::Readable(&bytes)]);
    workers.run(10).unwrap();
    assert!(driver.queues[INFLATE].take_used().is_some());
    assert_eq!(count(&balloon, "bad_pages"), 30 << 18);
}

#[test]
fn the_guest_is_told_of_a_new_size_and_tells_what_it_has_given() {
    let mut balloon = Balloon::new(Config { amount_mib: 2, ..Config::default() }).unwrap();
    let control = balloon.control();
    let driver = MockDriver::new(&balloon);
    balloon.config().set_interrupt(Some(Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>));
    let num_pages = |balloon: &Balloon| {
        let mut bytes = [0; 4];
        balloon.config().read(0, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!(num_pages(&balloon), 512);
    control.set_amount_mib(64).unwrap();
    assert_eq!((num_pages(&balloon), driver.interrupt.config()), (64 * 256, 1));
    assert_eq!(control.set_amount_mib(1 << 24), Err(Error::Amount(1 << 24)));
    assert_eq!((num_pages(&balloon), control.target_pages()), (64 * 256, 64 * 256));

    balloon.write_config(4, &100_u32.to_le_bytes());
    assert_eq!((control.actual_pages(), driver.interrupt.config()), (100, 1));
    // Nothing else is the driver's to write.
    balloon.write_config(0, &1_u32.to_le_bytes());
    balloon.write_config(4, &[1]);
    balloon.write_config(u64::MAX, &[0; 4]);
    assert_eq!((num_pages(&balloon), control.actual_pages()), (64 * 256, 100));
    balloon.reset();
    assert_eq!((num_pages(&balloon), control.actual_pages()), (64 * 256, 0));
}

#[test]
fn statistics_are_asked_for_at_each_interval() {
    let mut balloon = Balloon::new(ALL).unwrap();
    let control = balloon.control();
    let (mut driver, mut workers) = start(&mut balloon);
    assert_eq!(control.statistics(), Ok(None));
    let statistics = |free: u64| {
        let mut bytes = [&[4, 0][..], &free.to_le_bytes()].concat();
        // A tag of the future.
        bytes.extend([0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes
    };
    driver.queues[STATISTICS].add(&[Buffer::Readable(&statistics(1000))]);
    workers.run(10).unwrap();
    assert!(driver.queues[STATISTICS].take_used().is_none(), "the device keeps the buffer");
    let told: Vec<_> = control.statistics().unwrap().unwrap().iter().collect();
    assert_eq!(told, [("free_memory", 1000)]);

    // A second later the buffer comes back, as the question.
    while driver.queues[STATISTICS].take_used().is_none() {
        assert_ne!(workers.step(3000).unwrap(), 0, "no question in three seconds");
    }
    driver.queues[STATISTICS].add(&[Buffer::Readable(&statistics(2000))]);
    workers.run(10).unwrap();
    assert_eq!(control.statistics().unwrap().unwrap().get("free_memory"), Some(2000));
    assert_eq!(count(&balloon, "statistics_updates"), 2);

    // Nonsense changes nothing; the buffer that was held goes back for the one that came.
    driver.queues[STATISTICS].add(&[Buffer::Readable(&[4, 0, 1])]);
    workers.run(10).unwrap();
    assert!(driver.queues[STATISTICS].take_used().is_some());
    assert_eq!(control.statistics().unwrap().unwrap().get("free_memory"), Some(2000));
    assert_eq!(count(&balloon, "bad_statistics"), 1);

    assert_eq!(control.set_statistics_interval(0).unwrap_err(), Error::Switch);
    control.set_statistics_interval(3600).unwrap();
    workers.run(10).unwrap();
    assert_eq!(workers.step(1500).unwrap(), 0, "nobody asks before the new interval is over");
    // A sleep gives the buffer back, and the guest tells anew.
    let mut workers = Inline::start(workers.stop()).unwrap();
    assert!(driver.queues[STATISTICS].take_used().is_some());
    driver.queues[STATISTICS].add(&[Buffer::Readable(&statistics(3000))]);
    workers.run(10).unwrap();
    assert_eq!(control.statistics().unwrap().unwrap().get("free_memory"), Some(3000));
}

#[test]
fn abilities_that_were_not_asked_for_are_refused() {
    let balloon = Balloon::new(Config::default()).unwrap();
    assert_eq!((balloon.features(), balloon.queue_sizes().len()), (0, 2));
    let control = balloon.control();
    assert_eq!(control.statistics(), Err(Error::Unable("statistics")));
    assert!(control.set_statistics_interval(1).is_err());
    assert!(
        control.start_hinting(true).is_err() && control.stop_hinting().is_err() && control.hinting().is_err()
    );
    let balloon = Balloon::new(ALL).unwrap();
    assert_eq!((balloon.features(), balloon.queue_sizes().len()), (0b10_1110, 5));
}

#[test]
fn reported_memory_goes_to_the_host_in_whole_pages() {
    let mut balloon = Balloon::new(ALL).unwrap();
    let (mut driver, mut workers) = start(&mut balloon);
    fill(&driver, SPARE, 8);
    // Half a page, then two, then half a page; and a buffer that is no page at all.
    let table = driver.queues[REPORTING].state.config.descriptor_table;
    let head = driver.queues[REPORTING].prepare(&[Buffer::Writable(1), Buffer::Writable(1)], false);
    let next = head + 1;
    driver.queues[REPORTING].write_descriptor(table, head, SPARE + 0x800, 0x3000, 0b11, next);
    driver.queues[REPORTING].write_descriptor(table, next, SPARE + 0x5001, 0xffe, 0b10, 0);
    driver.queues[REPORTING].offer(head);
    driver.queues[REPORTING].kick();
    workers.run(10).unwrap();
    assert!(driver.queues[REPORTING].take_used().is_some());
    assert_eq!(resident(&driver, SPARE, 8), [true, false, false, true, true, true, true, true]);
    assert_eq!(count(&balloon, "reported_bytes"), 0x2000);
}

#[test]
fn hinted_memory_is_taken_only_in_the_run_that_asked_for_it() {
    let mut balloon = Balloon::new(ALL).unwrap();
    let control = balloon.control();
    let (mut driver, mut workers) = start(&mut balloon);
    let command = |balloon: &Balloon| {
        let mut bytes = [0; 4];
        balloon.config().read(8, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let hint = |driver: &mut MockDriver, workers: &mut Inline| {
        fill(driver, SPARE, 1);
        let table = driver.queues[HINTING].state.config.descriptor_table;
        let head = driver.queues[HINTING].prepare(&[Buffer::Writable(1)], false);
        driver.queues[HINTING].write_descriptor(table, head, SPARE, 4096, 0b10, 0);
        driver.queues[HINTING].offer(head);
        driver.queues[HINTING].kick();
        workers.run(10).unwrap();
        driver.queues[HINTING].take_used().unwrap();
        !resident(driver, SPARE, 1)[0]
    };
    let say = |driver: &mut MockDriver, workers: &mut Inline, value: u32| {
        driver.queues[HINTING].add(&[Buffer::Readable(&value.to_le_bytes())]);
        workers.run(10).unwrap();
        driver.queues[HINTING].take_used().unwrap();
    };
    assert!(!hint(&mut driver, &mut workers), "nobody asked");

    control.start_hinting(false).unwrap();
    let first = command(&balloon);
    assert!(first >= 2);
    assert!(!hint(&mut driver, &mut workers), "the guest has not begun");
    say(&mut driver, &mut workers, first);
    assert!(hint(&mut driver, &mut workers));
    control.stop_hinting().unwrap();
    assert_eq!(command(&balloon), 1, "done");
    assert!(!hint(&mut driver, &mut workers), "the guest has its pages back");

    control.start_hinting(true).unwrap();
    let second = command(&balloon);
    assert!(second > first);
    assert!(!hint(&mut driver, &mut workers), "what is left of the first run");
    say(&mut driver, &mut workers, second);
    assert!(hint(&mut driver, &mut workers));
    say(&mut driver, &mut workers, 0);
    assert_eq!(command(&balloon), 1, "acknowledged by itself");
    assert_eq!(control.hinting().unwrap().guest_command, Some(0));
    assert_eq!(count(&balloon, "hinted_bytes"), 8192);
}

#[test]
fn what_the_guest_writes_when_it_has_its_memory_back_stays() {
    const BUFFERS: usize = 32;
    let mut balloon = Balloon::new(ALL).unwrap();
    let control = balloon.control();
    let mut driver = MockDriver::new(&balloon);
    let thread = WorkerThread::spawn("io quiet", || Ok(())).unwrap();
    let slot = thread.slot();
    for worker in balloon.activate(driver.activation()).unwrap() {
        slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    }
    // Where the buffers of the queue are: a page behind its used ring.
    let buffers = driver.queues[HINTING].state.config.used_ring + 4096;
    let last = GuestAddress(buffers + ((BUFFERS as u64) << 20) - 4096);
    for _ in 0..5 {
        control.start_hinting(false).unwrap();
        let run = control.hinting().unwrap().host_command;
        driver.queues[HINTING].add(&[Buffer::Readable(&run.to_le_bytes())]);
        driver.queues[HINTING].wait_used(20);
        // All of it is resident, so that taking it needs some time.
        driver.queues[HINTING].add(&[Buffer::Writable(1 << 20); BUFFERS]);
        while resident(&driver, buffers, 1)[0] {}
        control.stop_hinting().unwrap();
        let mut command = [0; 4];
        while command != 1_u32.to_le_bytes() {
            balloon.config().read(8, &mut command);
        }
        driver.memory.write_slice(&[9; 4096], last).unwrap();
        let used = driver.queues[HINTING].wait_used(20);
        assert!(used.data.ends_with(&[9; 4096]));
    }
    drop(slot.stop().wait(std::time::Instant::now() + Duration::from_secs(20)).unwrap());
}

#[test]
fn queues_of_abilities_that_the_driver_does_not_know_are_left_out() {
    let mut balloon = Balloon::new(ALL).unwrap();
    // Reporting only: its queue is the third then.
    let mut driver = MockDriver::with_features(&balloon, COMMON_FEATURES | 1 << 5);
    let mut workers = Inline::start(balloon.activate(driver.activation()).unwrap()).unwrap();
    driver.queues[2].add(&[Buffer::Writable(8192)]);
    workers.run(10).unwrap();
    assert!(driver.queues[2].take_used().is_some());
    assert!(count(&balloon, "reported_bytes") >= 4096);
}

#[test]
fn it_serves_from_a_thread() {
    let mut balloon = Balloon::new(Config::default()).unwrap();
    let mut driver = MockDriver::new(&balloon);
    let thread = WorkerThread::spawn("io quiet", || Ok(())).unwrap();
    let slot = thread.slot();
    for worker in balloon.activate(driver.activation()).unwrap() {
        slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    }
    for page in 0..100 {
        driver.queues[INFLATE].add(&[Buffer::Readable(&numbers([(SPARE >> 12) + page]))]);
        driver.queues[INFLATE].wait_used(10);
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let worker = slot.stop().wait(deadline).unwrap().unwrap();
    assert_eq!(worker.queues()[0].next_used, 100);
    assert_eq!(count(&balloon, "inflated"), 100);
}

#[test]
fn a_queue_of_large_requests_is_served_in_parts() {
    let mut balloon = Balloon::new(Config::default()).unwrap();
    let (mut driver, mut workers) = start(&mut balloon);
    // No two are neighbours, so that each has to be given back on its own.
    let request = numbers((0..16_384).map(|page| (SPARE >> 12) + page % 128 * 2));
    for _ in 0..20 {
        driver.queues[INFLATE].add(&[Buffer::Readable(&request)]);
    }
    for served in 1..=20 {
        workers.step(0).unwrap();
        assert_eq!(count(&balloon, "inflated"), served * 16_384);
    }
    assert_eq!(std::iter::from_fn(|| driver.queues[INFLATE].take_used()).count(), 20);
}
