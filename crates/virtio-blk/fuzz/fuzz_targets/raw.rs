#![no_main]
//! A guest's rings and buffers are any bytes. Input: a byte of options, the descriptor table, two available rings (one
//! after the other has been worked off), and the buffers.

#![allow(clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use kindling_virtio_blk::{Blk, BlkConfig, CacheMode, FileDisk, IoEngine};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Area, Inline, MockDriver};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// Sectors of the disk.
const SECTORS: usize = 64;
/// Entries of the queue.
const ENTRIES: usize = 16;
/// Bytes of an available ring, without the event behind it.
const RING: usize = 4 + 2 * ENTRIES;
/// Where the buffers go. The seeds know this.
const BUFFERS: u64 = 0x10000;
/// Longer buffers run through the same code, only slower, until they are too long.
const LEN_MASK: u8 = 0x03;
/// The highest byte of a length that is too long.
const TOO_LONG: u8 = 0x02;

/// It has no name but this, and so nothing of it stays behind.
static DISK: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut file = tempfile::tempfile_in("/dev/shm").expect("a file");
    file.write_all(&[0x5a; SECTORS * 512]).expect("a disk");
    format!("/proc/self/fd/{}", file.into_raw_fd()).into()
});

fuzz_target!(|data: &[u8]| {
    let Some((options, rest)) = data.split_first() else { return };
    let has = |bit: u8| options >> bit & 1 == 1;
    let disk = FileDisk::open(&DISK, has(0), false).expect("a disk");
    let config = BlkConfig {
        engine: if has(1) { IoEngine::Async } else { IoEngine::Sync },
        cache: if has(2) { CacheMode::Writeback } else { CacheMode::Unsafe },
        block_size: if has(3) { 4096 } else { 512 },
        queue_size: ENTRIES as u16,
        ..BlkConfig::default()
    };
    let mut device = Blk::new(Arc::new(disk), &config).expect("a device");
    // Version 1 with all else, or without anything else.
    let features = if has(4) { u64::MAX } else { 1 << 32 };
    let offered = device.features() | kindling_virtio_device::COMMON_FEATURES;
    let driver = MockDriver::with_features(&device, features & offered);

    let (table, rest) = rest.split_at(rest.len().min(16 * ENTRIES));
    let (first, rest) = rest.split_at(rest.len().min(RING));
    let (second, buffers) = rest.split_at(rest.len().min(RING));
    let mut table = table.to_vec();
    for descriptor in table.chunks_exact_mut(16) {
        if descriptor[11] == TOO_LONG {
            continue;
        }
        descriptor[10] &= LEN_MASK;
        descriptor[11] = 0;
    }
    let queue = &driver.queues[0];
    queue.overwrite(Area::Descriptors, 0, &table);
    queue.overwrite(Area::Available, 0, first);
    driver.memory.write_slice(buffers, GuestAddress(BUFFERS)).expect("guest memory");

    let workers = device.activate(driver.activation()).expect("workers");
    queue.kick();
    let Ok(mut workers) = Inline::start(workers) else { return };
    let mut went_on = workers.run(64).is_ok();
    if went_on {
        queue.overwrite(Area::Available, 0, second);
        queue.kick();
        went_on = workers.run(64).is_ok();
    }
    // Nothing is in flight, and all that was given back has been published.
    let state = workers.stop()[0].queues()[0];
    let used: u16 =
        driver.memory.read_obj(GuestAddress(queue.state.config.used_ring + 2)).expect("guest memory");
    assert_eq!(used, state.next_used);
    assert!(used == state.next_available || !went_on);
    assert_eq!(std::fs::metadata(&*DISK).expect("the disk").len(), (SECTORS * 512) as u64);
});
