//! A block device of the host. It takes privileges to make one: without them, these tests say so and check nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::*;
use kindling_virtio_blk::{Blk, BlkConfig, CacheMode, Disk, Error, FileDisk, IoEngine};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::MockDriver;

/// A loop device over an image.
struct Loop {
    path: PathBuf,
    image: Image,
}

impl Loop {
    fn new(image: Image) -> Option<Self> {
        Self::with(image, &[])
    }

    fn with(image: Image, options: &[&str]) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).args(options).arg(&image.path).output();
        match made {
            Ok(made) if made.status.success() => {
                let path = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
                Some(Self { path, image })
            }
            other => {
                eprintln!("block devices are not tested, since none can be made: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let gone = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(gone.is_ok_and(|status| status.success()), "{} is left behind", self.path.display());
    }
}

fn guest(path: &Path, direct: bool, engine: IoEngine) -> Guest {
    let config = BlkConfig { engine, cache: CacheMode::Writeback, ..BlkConfig::default() };
    let disk = FileDisk::open(path, false, direct).unwrap();
    assert!(disk.info().is_block_device);
    Guest::new(Blk::new(Arc::new(disk), &config).unwrap())
}

#[test]
fn a_block_device_is_read_written_and_cleared() {
    for engine in ENGINES {
        for direct in [false, true] {
            let Some(disk) = Loop::new(Image::new(4096)) else { return };
            let mut guest = guest(&disk.path, direct, engine);
            assert_eq!(guest.capacity(), 4096);
            assert_eq!(guest.device.features() >> 10 & 1, 1, "its topology is known");
            assert_eq!(guest.config(56), [0], "zeroing does not free anything");
            assert_eq!(guest.read(5, 4096), disk.image.read(5, 4096));
            assert_eq!(guest.call(OUT, 6, &[9; 1024], 0).0, OK);
            assert_eq!(guest.call(FLUSH, 0, &[], 0).0, OK);
            assert_eq!(disk.image.read(6, 1024), [9; 1024]);
            let list = [segment(6, 1, 0), segment(100, 200, 1)].concat();
            assert_eq!(guest.call(WRITE_ZEROES, 0, &list, 0).0, OK);
            assert_eq!(guest.read(6, 1024), [[0; 512], [9; 512]].concat());
            assert_eq!(guest.read(100, 200 * 512), vec![0; 200 * 512]);
            std::fs::File::open(&disk.image.path).unwrap().sync_all().unwrap();
            let blocks = || std::fs::metadata(&disk.image.path).unwrap().blocks();
            let before = blocks();
            assert_eq!(guest.call(DISCARD, 0, &segment(2048, 1024, 0), 0).0, OK);
            assert!(blocks() <= before - 1024, "{} of {before} blocks are still there", blocks());
            assert_eq!(guest.call(IN, 4096, &[], 512).0, IOERR);
        }
    }
}

#[test]
fn less_than_a_block_of_the_host_is_zeroed_too() {
    for engine in ENGINES {
        let Some(disk) = Loop::with(Image::new(4096), &["--sector-size", "4096"]) else { return };
        let mut guest = guest(&disk.path, false, engine);
        let before = guest.read(0, 24 * 512);
        assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(3, 10, 0), 0).0, OK);
        assert_eq!(
            guest.read(0, 24 * 512),
            [&before[..3 * 512], &[0; 10 * 512], &before[13 * 512..]].concat()
        );
    }
}

#[test]
fn a_block_device_that_grows_is_found_to_be_bigger() {
    let Some(disk) = Loop::new(Image::new(4096)) else { return };
    let mut guest = guest(&disk.path, false, IoEngine::Async);
    std::fs::OpenOptions::new().write(true).open(&disk.image.path).unwrap().set_len(8192 * 512).unwrap();
    let looked = Command::new("losetup").arg("--set-capacity").arg(&disk.path).status().unwrap();
    assert!(looked.success());
    assert_eq!(guest.device.control().refresh().unwrap(), 8192 * 512);
    guest.workers.run(10).unwrap();
    assert_eq!(guest.capacity(), 8192);
    assert_eq!(guest.read(8191, 512), [0; 512]);
}

/// What the kernel counts of a block device (`/sys/block/*/stat`): writes that were done, flushes that were done.
fn counts(disk: &Loop) -> (u64, u64) {
    let name = disk.path.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (numbers[4], numbers[15])
}

#[test]
fn a_flush_is_done_when_the_disk_has_all_that_was_written() {
    for engine in ENGINES {
        let Some(disk) = Loop::new(Image::new(4096)) else { return };
        let mut guest = guest(&disk.path, false, engine);
        let before = counts(&disk);
        assert_eq!(guest.call(OUT, 8, &[9; 4096], 0).0, OK);
        assert_eq!(guest.call(FLUSH, 0, &[], 0).0, OK);
        let after = counts(&disk);
        assert!(after.0 > before.0 && after.1 > before.1, "{before:?} before, {after:?} after");
    }
}

#[test]
fn without_flushes_a_write_is_done_when_the_disk_has_it() {
    for engine in ENGINES {
        let Some(disk) = Loop::new(Image::new(4096)) else { return };
        let file = FileDisk::open(&disk.path, false, false).unwrap();
        let config = BlkConfig { engine, cache: CacheMode::Writeback, ..BlkConfig::default() };
        let device = Blk::new(Arc::new(file), &config).unwrap();
        let driver = MockDriver::with_features(&device, device.features() & !(1 << 9) | 1 << 32);
        let mut guest = Guest::with_driver(device, driver);
        let before = counts(&disk);
        assert_eq!(guest.call(OUT, 8, &[9; 4096], 0).0, OK);
        let written = counts(&disk);
        assert!(written.0 > before.0 && written.1 > before.1, "{before:?} before, {written:?} after");
        assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(8, 8, 0), 0).0, OK);
        let zeroed = counts(&disk);
        assert!(zeroed.1 > written.1, "{written:?} before, {zeroed:?} after");
    }
}

#[test]
fn direct_io_keeps_to_the_blocks_of_the_disk() {
    let Some(big) = Loop::with(Image::new(4096), &["--sector-size", "4096"]) else { return };
    let disk = FileDisk::open(&big.path, false, true).unwrap();
    let error = Blk::new(Arc::new(disk), &BlkConfig::default()).err().expect("blocks are too small");
    assert!(matches!(error, Error::DirectBlockSize { needed: 4096, block_size: 512 }), "{error}");
    for engine in ENGINES {
        let Some(small) = Loop::new(Image::new(4096)) else { return };
        let disk = FileDisk::open(&small.path, false, true).unwrap();
        let config = BlkConfig { engine, block_size: 4096, ..BlkConfig::default() };
        let mut guest = Guest::new(Blk::new(Arc::new(disk), &config).unwrap());
        assert_eq!(guest.read(1, 512), [pattern(1); 512]);
        guest.device.control().set_path(&big.path).unwrap();
        guest.workers.run(10).unwrap();
        for (sector, room) in [(1, 512), (1, 4096), (0, 512)] {
            assert_eq!(guest.call(IN, sector, &[], room).0, IOERR, "{room} bytes at {sector}");
        }
        assert_eq!(guest.metric("invalid_requests"), 3);
        assert_eq!(guest.read(8, 4096), big.image.read(8, 4096));
    }
}
