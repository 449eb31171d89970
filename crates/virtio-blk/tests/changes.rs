//! What happens to a disk while it is in use: another size, another file, sleep, reset.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use kindling_virtio_blk::{Blk, BlkConfig, CacheMode, Error, FileDisk, IoEngine};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device, Interrupt, WorkerThread};

fn config(engine: IoEngine) -> BlkConfig {
    BlkConfig { engine, cache: CacheMode::Writeback, ..BlkConfig::default() }
}

/// A guest whose driver hears of changes, as a transport would have it.
fn guest(image: &Image, config: &BlkConfig) -> Guest {
    let guest = Guest::open(image, config);
    guest.device.config().set_interrupt(Some(Arc::clone(&guest.driver.interrupt) as Arc<dyn Interrupt>));
    guest
}

fn resize(image: &Image, sectors: u64) {
    OpenOptions::new().write(true).open(&image.path).unwrap().set_len(sectors * 512).unwrap();
}

#[test]
fn a_new_size_is_told_to_the_guest_and_holds() {
    for engine in ENGINES {
        let image = Image::new(16);
        let mut guest = guest(&image, &config(engine));
        let control = guest.device.control();
        let generation = guest.device.config().generation();
        assert_eq!(control.refresh().unwrap(), 16 * 512);
        assert_eq!((guest.driver.interrupt.config(), guest.metric("updates")), (0, 0), "nothing has changed");
        resize(&image, 32);
        assert_eq!(guest.call(OUT, 16, &[1; 512], 0).0, IOERR, "nobody has looked yet");
        assert_eq!(control.refresh().unwrap(), 32 * 512);
        assert_eq!((guest.capacity(), guest.driver.interrupt.config()), (32, 1));
        assert_ne!(guest.device.config().generation(), generation);
        guest.workers.run(10).unwrap();
        assert_eq!(guest.call(OUT, 31, &[1; 512], 0).0, OK);
        resize(&image, 8);
        assert_eq!(control.refresh().unwrap(), 8 * 512);
        assert_eq!((guest.capacity(), guest.driver.interrupt.config()), (8, 2));
        guest.workers.run(10).unwrap();
        assert_eq!(guest.call(OUT, 8, &[1; 512], 0).0, IOERR);
        assert_eq!(std::fs::metadata(&image.path).unwrap().len(), 8 * 512);
        assert_eq!(guest.read(7, 512), [pattern(7); 512]);
        assert_eq!(guest.metric("updates"), 2);
    }
}

#[test]
fn another_file_takes_the_place_of_the_first() {
    for engine in ENGINES {
        let (old, new) = (Image::new(16), Image::of(&[0xee; 24 * 512]));
        let mut guest = guest(&old, &config(engine));
        guest.device.control().set_path(&new.path).unwrap();
        assert_eq!((guest.capacity(), guest.driver.interrupt.config()), (24, 1));
        guest.workers.run(10).unwrap();
        assert_eq!(guest.read(20, 512), [0xee; 512]);
        assert_eq!(guest.call(OUT, 1, &[1; 512], 0).0, OK);
        assert_eq!(guest.call(FLUSH, 0, &[], 0).0, OK);
        assert_eq!(new.read(1, 512), [1; 512]);
        assert_eq!(old.read(1, 512), [pattern(1); 512]);
        assert_eq!(guest.metric("updates"), 1);
    }
}

#[test]
fn a_request_that_is_made_after_a_change_finds_it_in_force() {
    for engine in ENGINES {
        let (old, new) = (Image::new(16), Image::new(16));
        let mut guest = guest(&old, &config(engine));
        let control = guest.device.control();
        // The worker hears of the kick first, and takes both requests in one batch.
        let first = guest.add(0, GET_ID, 0, &[], 20);
        control.set_path(&new.path).unwrap();
        guest.add(0, OUT, 1, &[0x55; 512], 0);
        let used = guest.wait(0);
        assert_eq!((used.head, answer(used).0), (first, OK));
        assert_eq!(answer(guest.wait(0)).0, OK);
        assert_eq!((new.read(1, 512), old.read(1, 512)), (vec![0x55; 512], vec![pattern(1); 512]));

        guest.add(0, GET_ID, 0, &[], 20);
        resize(&new, 32);
        control.refresh().unwrap();
        guest.add(0, OUT, 31, &[0x55; 512], 0);
        assert_eq!((answer(guest.wait(0)).0, answer(guest.wait(0)).0), (OK, OK));
        assert_eq!(new.read(31, 512), [0x55; 512]);
    }
}

#[test]
fn a_file_that_cannot_be_used_leaves_everything_as_it_was() {
    for engine in ENGINES {
        let image = Image::new(16);
        let mut guest = guest(&image, &config(engine));
        let control = guest.device.control();
        assert!(matches!(control.set_path(Path::new("/dev/null")), Err(Error::Kind { .. })));
        assert!(matches!(control.set_path(&image.path.with_extension("none")), Err(Error::Open { .. })));
        guest.workers.run(10).unwrap();
        assert_eq!((guest.capacity(), guest.driver.interrupt.config(), guest.metric("updates")), (16, 0, 0));
        assert_eq!(guest.read(3, 512), [pattern(3); 512]);
    }
}

#[test]
fn a_read_only_disk_stays_so_and_a_direct_one_too() {
    let (old, new) = (Image::new(16), Image::of(&[0xee; 24 * 512]));
    let disk = FileDisk::open(&old.path, true, false).unwrap();
    let mut guest = Guest::new(Blk::new(Arc::new(disk), &config(IoEngine::Async)).unwrap());
    guest.device.control().set_path(&new.path).unwrap();
    guest.workers.run(10).unwrap();
    assert_eq!(guest.call(OUT, 1, &[1; 512], 0).0, IOERR);
    assert_eq!(guest.read(1, 512), [0xee; 512]);

    let direct = match FileDisk::open(&old.path, false, true) {
        Err(error) => {
            assert!(matches!(error, Error::NoDirect { .. }), "{error}");
            eprintln!("direct I/O is not tested, since this file system has none: {error}");
            return;
        }
        Ok(disk) => disk,
    };
    let guest = Guest::new(Blk::new(Arc::new(direct), &config(IoEngine::Sync)).unwrap());
    // /proc has no direct I/O, and nor would a disk have that forgot about it.
    let error = guest.device.control().set_path(Path::new("/proc/version")).unwrap_err();
    assert!(matches!(error, Error::NoDirect { .. } | Error::Open { .. }), "{error}");
}

#[test]
fn the_file_changes_between_requests_and_never_within_one() {
    const SECTORS: u64 = 512;
    for engine in ENGINES {
        let images =
            [Image::of(&vec![1; SECTORS as usize * 512]), Image::of(&vec![2; SECTORS as usize * 512])];
        let mut device = open(&images[0], &BlkConfig { queues: 2, ..config(engine) });
        let control = device.control();
        let mut driver = MockDriver::new(&device);
        let threads: Vec<_> = (0..2).map(|_| WorkerThread::spawn("io", || Ok(())).unwrap()).collect();
        let slots: Vec<_> = threads.iter().map(WorkerThread::slot).collect();
        for (slot, worker) in slots.iter().zip(device.activate(driver.activation()).unwrap()) {
            slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
        }
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0.. {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    control.set_path(&images[(round + 1) % 2].path).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let mut seen = [0; 3];
            let begun = Instant::now();
            // Whole files at a time, until both were seen often, however slow this machine is.
            while (seen[1] < 50 || seen[2] < 50) && begun.elapsed() < Duration::from_secs(20) {
                for queue in &mut driver.queues {
                    for _ in 0..8 {
                        let room = SECTORS as u32 * 512;
                        queue.add(&[
                            Buffer::Readable(&header(IN, 0)),
                            Buffer::Writable(room),
                            Buffer::Writable(1),
                        ]);
                    }
                }
                for queue in &mut driver.queues {
                    while queue.outstanding() > 0 {
                        let (status, data) = answer(queue.wait_used(20));
                        assert_eq!(status, OK);
                        assert!(data.iter().all(|byte| *byte == data[0]), "a read of both files");
                        seen[usize::from(data[0])] += 1;
                    }
                }
            }
            is_over.store(true, Ordering::SeqCst);
            assert!(seen[1] >= 50 && seen[2] >= 50, "{seen:?}");
        });
        assert!(!driver.interrupt.is_reset_needed());
    }
}

#[test]
fn sleep_with_a_queue_full_of_requests_loses_none() {
    for engine in ENGINES {
        for features in [COMMON_FEATURES, 1 << 32] {
            let image = Image::new(512);
            let device = open(&image, &config(engine));
            let driver = MockDriver::with_features(&device, device.features() & !COMMON_FEATURES | features);
            let mut guest = Guest::with_driver(device, driver);
            for round in 0..20 {
                let mut sectors = HashMap::new();
                // Each takes three descriptors, unless a table takes them.
                let count = if features == COMMON_FEATURES { 256 } else { 256 / 3 };
                for index in 0..count {
                    let sector = (index * 7 + round) % 512;
                    let header = header(IN, sector);
                    let buffers = [Buffer::Readable(&header), Buffer::Writable(512), Buffer::Writable(1)];
                    let queue = &mut guest.driver.queues[0];
                    let head = if features == COMMON_FEATURES {
                        queue.add_indirect(&buffers)
                    } else {
                        queue.add(&buffers)
                    };
                    assert_eq!(sectors.insert(head, sector), None);
                }
                assert_eq!(guest.driver.queues[0].outstanding(), count as usize);
                // Asleep as soon as all have begun, or before any has.
                if round % 2 == 0 {
                    guest.workers.step(0).unwrap();
                }
                guest.sleep_and_wake();
                while !sectors.is_empty() {
                    let used = guest.wait(0);
                    let sector = sectors.remove(&used.head).unwrap();
                    assert_eq!(answer(used), (OK, vec![pattern(sector); 512]));
                }
            }
        }
    }
}

#[test]
fn a_device_that_was_reset_serves_another_driver() {
    for engine in ENGINES {
        let image = Image::new(16);
        let mut guest = Guest::open(&image, &config(engine));
        assert_eq!(guest.call(OUT, 1, &[0x55; 512], 0).0, OK);
        guest.add(0, IN, 0, &[], 512);
        guest.workers.step(0).unwrap();
        for _ in 0..3 {
            let Guest { mut device, workers, .. } = guest;
            drop(workers.stop());
            device.reset();
            // It changed while there was no driver.
            resize(&image, 24);
            device.control().refresh().unwrap();
            guest = Guest::new(device);
            assert_eq!(guest.read(1, 512), [0x55; 512]);
            assert_eq!(guest.read(23, 512), [0; 512]);
        }
    }
}

#[test]
fn a_guest_that_breaks_the_ring_needs_a_reset_and_its_finished_requests_are_kept() {
    for engine in ENGINES {
        let image = Image::new(16);
        let mut guest = Guest::open(&image, &config(engine));
        guest.add(0, OUT, 1, &[0x55; 512], 0);
        // A chain that is no chain.
        let queue = &mut guest.driver.queues[0];
        let head = queue.prepare(&[Buffer::Readable(&header(IN, 0)), Buffer::Writable(1)], false);
        queue.write_descriptor(queue.state.config.descriptor_table, head, u64::MAX, 16, 0, 0);
        queue.offer(head);
        queue.kick();
        assert!(guest.workers.step(100).is_err());
        let asleep = guest.workers.stop();
        assert_eq!(asleep[0].queues()[0].next_used, 1);
        assert_eq!(answer(guest.driver.queues[0].take_used().unwrap()).0, OK);
        assert_eq!(image.read(1, 512), [0x55; 512]);
    }
}

#[test]
fn traffic_on_real_threads_survives_sleeps() {
    for engine in ENGINES {
        let image = Image::new(256);
        let mut device = open(&image, &BlkConfig { queues: 2, ..config(engine) });
        let mut driver = MockDriver::new(&device);
        let threads: Vec<_> = (0..2).map(|_| WorkerThread::spawn("io", || Ok(())).unwrap()).collect();
        let slots: Vec<_> = threads.iter().map(WorkerThread::slot).collect();
        let mut workers = device.activate(driver.activation()).unwrap();
        for round in 0..50 {
            // On another thread each time.
            for (slot, worker) in slots.iter().zip(workers.drain(..).rev()) {
                slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
            }
            for queue in &mut driver.queues {
                for index in 0..16 {
                    let header = header(IN, (round + index) % 256);
                    queue.add(&[Buffer::Readable(&header), Buffer::Writable(512), Buffer::Writable(1)]);
                }
            }
            let stopping: Vec<_> = slots.iter().map(|slot| slot.stop()).collect();
            for stopping in stopping {
                workers.extend(stopping.wait(Instant::now() + Duration::from_secs(20)).unwrap());
            }
            for worker in &workers {
                assert!(worker.queues().iter().all(|queue| queue.next_available == queue.next_used));
            }
            for (slot, worker) in slots.iter().zip(workers.drain(..)) {
                slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
            }
            for queue in &mut driver.queues {
                while queue.outstanding() > 0 {
                    assert_eq!(answer(queue.wait_used(20)).0, OK);
                }
            }
            for slot in &slots {
                workers.extend(slot.stop().wait(Instant::now() + Duration::from_secs(20)).unwrap());
            }
        }
        assert_eq!(metric(&device, "reads"), 50 * 32);
        assert!(!driver.interrupt.is_reset_needed());
    }
}
