//! What can be a disk and what cannot, and what the driver is told of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use common::*;
use kindling_rate_limiter::BucketConfig;
use kindling_virtio_blk::{Blk, BlkConfig, CacheMode, Disk, Error, FileDisk};
use kindling_virtio_device::{Device, Workers};

fn make_fifo(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

#[test]
fn only_files_and_block_devices_are_disks_and_a_fifo_does_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    make_fifo(&fifo);
    for path in [&fifo, folder.path(), Path::new("/dev/null"), Path::new("/dev/zero")] {
        let error = FileDisk::open(path, true, false).unwrap_err();
        assert!(matches!(error, Error::Kind { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(matches!(FileDisk::open(&fifo, false, false).unwrap_err(), Error::Kind { .. }));
    let missing = folder.path().join("missing");
    let error = FileDisk::open(&missing, false, false).unwrap_err();
    assert!(matches!(&error, Error::Open { path, .. } if *path == missing), "{error}");
    assert!(!missing.exists());
}

#[test]
fn the_file_waits_for_its_disk_once_it_is_open() {
    let disk = FileDisk::open(&Image::new(1).path, false, false).unwrap();
    // SAFETY: the call takes no pointers.
    let flags = unsafe { libc::fcntl(disk.as_fd().as_raw_fd(), libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0);
    assert_eq!(flags & libc::O_ACCMODE, libc::O_RDWR);
}

#[test]
fn direct_io_is_used_where_the_file_system_has_it_and_refused_elsewhere() {
    let image = Image::new(16);
    let refused = |error: Error| {
        assert!(matches!(error, Error::NoDirect { .. }), "{error}");
        eprintln!("no direct I/O here: {error}");
    };
    match FileDisk::open(&image.path, false, true) {
        Err(error) => refused(error),
        Ok(disk) => {
            // SAFETY: the call takes no pointers.
            let flags = unsafe { libc::fcntl(disk.as_fd().as_raw_fd(), libc::F_GETFL) };
            assert_ne!(flags & libc::O_DIRECT, 0);
            let needed = disk.info().alignment.offset;
            assert!(needed >= 512);
            for block_size in [512, 4096] {
                let config = BlkConfig { block_size, ..BlkConfig::default() };
                let disk = FileDisk::open(&image.path, false, true).unwrap();
                match Blk::new(Arc::new(disk), &config) {
                    Ok(_) => assert_eq!(block_size % needed, 0),
                    Err(error) => assert!(
                        block_size % needed != 0 && matches!(error, Error::DirectBlockSize { .. }),
                        "{error}"
                    ),
                }
            }
        }
    }
}

#[test]
fn configurations_out_of_range_are_refused() {
    let image = Image::new(16);
    let refuse = |config: BlkConfig, text: &str| {
        let disk = FileDisk::open(&image.path, false, false).unwrap();
        let error = Blk::new(Arc::new(disk), &config).err().expect("an error");
        assert!(error.to_string().contains(text), "{error}");
    };
    for queues in [0, 17] {
        refuse(BlkConfig { queues, ..BlkConfig::default() }, "queues are not from 1 to 16");
    }
    for queue_size in [0, 8, 100, 2048] {
        refuse(BlkConfig { queue_size, ..BlkConfig::default() }, "queue size");
    }
    for block_size in [0, 1, 1024, 8192] {
        refuse(BlkConfig { block_size, ..BlkConfig::default() }, "block size");
    }
    let empty = BucketConfig { size: 0, refill_time: std::time::Duration::from_secs(1), one_time_burst: 0 };
    refuse(BlkConfig { bandwidth: Some(empty), ..BlkConfig::default() }, "cannot limit");
    refuse(BlkConfig { ops: Some(empty), ..BlkConfig::default() }, "cannot limit");
}

#[test]
fn the_configuration_space_says_what_the_device_does() {
    let image = Image::new(80);
    let config = BlkConfig {
        queues: 4,
        queue_size: 128,
        block_size: 4096,
        cache: CacheMode::Writeback,
        ..BlkConfig::default()
    };
    let guest = Guest::open(&image, &config);
    let bits: u64 = [1, 2, 6, 9, 10, 12, 13, 14].iter().map(|bit| 1_u64 << bit).sum();
    assert_eq!(guest.device.features(), bits);
    assert_eq!(guest.device.device_type(), 2);
    assert_eq!(guest.device.workers(), Workers::Own(4));
    assert_eq!(guest.device.queue_sizes(), [128; 4]);
    let u32_at = |offset| u32::from_le_bytes(guest.config(offset));
    assert_eq!(guest.capacity(), 80);
    assert_eq!(u32_at(8), 256 << 10, "size_max");
    assert_eq!(u32_at(12), 126, "seg_max");
    assert_eq!(u32_at(16), 0, "geometry");
    assert_eq!(u32_at(20), 4096, "blk_size");
    let block = std::os::unix::fs::MetadataExt::blksize(&std::fs::metadata(&image.path).unwrap()) as u32;
    assert_eq!(u32::from(guest.config::<1>(24)[0]), (block / 4096).ilog2(), "physical_block_exp");
    assert_eq!(guest.config(25), [0], "alignment_offset");
    assert_eq!(u32::from(u16::from_le_bytes(guest.config(26))), block / 4096, "min_io_size");
    assert_eq!(u32_at(28), 0, "opt_io_size");
    assert_eq!(guest.config(32), [0, 0], "writeback");
    assert_eq!(u16::from_le_bytes(guest.config(34)), 4, "num_queues");
    assert_eq!(u32_at(36), 4 << 20, "max_discard_sectors");
    assert_eq!(u32_at(40), 16, "max_discard_seg");
    assert_eq!(u32_at(44), 8, "discard_sector_alignment");
    assert_eq!(u32_at(48), 64 << 10, "max_write_zeroes_sectors");
    assert_eq!(u32_at(52), 16, "max_write_zeroes_seg");
    assert_eq!(guest.config(56), [1, 0, 0, 0], "write_zeroes_may_unmap");
    assert_eq!(u32_at(60), 0, "the end");
}

#[test]
fn what_is_not_wanted_is_not_offered() {
    let guest = Guest::open(&Image::new(16), &BlkConfig { discard: false, ..BlkConfig::default() });
    let bits: u64 = [1, 2, 6, 10, 14].iter().map(|bit| 1_u64 << bit).sum();
    assert_eq!(guest.device.features(), bits);
    assert_eq!(guest.config(36), [0; 12]);
}

#[test]
fn a_disk_without_a_first_queue_cannot_be_activated() {
    let image = Image::new(16);
    for engine in ENGINES {
        let mut device = open(&image, &BlkConfig { queues: 2, engine, ..BlkConfig::default() });
        let driver = kindling_virtio_device::test_utils::MockDriver::new(&device);
        let mut activation = driver.activation();
        drop(activation.take_queue(0).unwrap());
        assert!(device.activate(activation).is_err());
        let mut activation = driver.activation();
        drop(activation.take_queue(1).unwrap());
        assert_eq!(device.activate(activation).unwrap().len(), 1, "the others are optional");
    }
}
