//! A guest with a disk, whose workers run on the calling thread.

// Not every test uses everything.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_virtio_blk::{Blk, BlkConfig, FileDisk, IoEngine};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver, Used};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub const ENGINES: [IoEngine; 2] = [IoEngine::Sync, IoEngine::Async];

/// A file that is gone when the test is over, on a real file system: direct I/O and holes are for those.
pub struct Image {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl Image {
    /// An image whose sector `n` is filled with [`pattern`]`(n)`.
    pub fn new(sectors: u64) -> Self {
        let mut content = vec![0; sectors as usize * 512];
        for (sector, bytes) in (0..).zip(content.chunks_mut(512)) {
            bytes.fill(pattern(sector));
        }
        Self::of(&content)
    }

    pub fn of(content: &[u8]) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("disk.img");
        fs::write(&path, content).unwrap();
        Self { _folder: folder, path }
    }

    pub fn read(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        fs::File::open(&self.path).unwrap().read_exact_at(&mut data, sector * 512).unwrap();
        data
    }
}

pub fn pattern(sector: u64) -> u8 {
    (sector % 251) as u8 + 1
}

/// The header of a request (VIRTIO 1.2, 5.2.6).
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    (u128::from(kind) | u128::from(sector) << 64).to_le_bytes()
}

/// A segment to discard or zero.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    (u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96).to_le_bytes()
}

/// A device over the image, through the page cache.
pub fn open(image: &Image, config: &BlkConfig) -> Blk {
    Blk::new(Arc::new(FileDisk::open(&image.path, false, false).unwrap()), config).unwrap()
}

pub struct Guest {
    pub device: Blk,
    pub driver: MockDriver,
    pub workers: Inline,
}

impl Guest {
    pub fn new(device: Blk) -> Self {
        let driver = MockDriver::new(&device);
        Self::with_driver(device, driver)
    }

    pub fn with_driver(mut device: Blk, driver: MockDriver) -> Self {
        let workers = Inline::start(device.activate(driver.activation()).unwrap()).unwrap();
        Self { device, driver, workers }
    }

    pub fn open(image: &Image, config: &BlkConfig) -> Self {
        Self::new(open(image, config))
    }

    /// Makes a request of a header, data and a status, each in a descriptor of its own.
    pub fn add(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], room: u32) -> u16 {
        let header = header(kind, sector);
        let mut buffers = vec![Buffer::Readable(&header)];
        if !out.is_empty() {
            buffers.push(Buffer::Readable(out));
        }
        if room > 0 {
            buffers.push(Buffer::Writable(room));
        }
        buffers.push(Buffer::Writable(1));
        self.driver.queues[queue].add(&buffers)
    }

    /// Lets the workers run until a request of `queue` is done.
    pub fn wait(&mut self, queue: usize) -> Used {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(used) = self.driver.queues[queue].take_used() {
                return used;
            }
            assert!(Instant::now() < end, "the device gave nothing back");
            self.workers.step(100).unwrap();
        }
    }

    /// Makes a request and waits for it. Returns the status and what was read.
    pub fn call(&mut self, kind: u32, sector: u64, out: &[u8], room: u32) -> (u8, Vec<u8>) {
        let head = self.add(0, kind, sector, out, room);
        let used = self.wait(0);
        assert_eq!(used.head, head);
        answer(used)
    }

    pub fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let (status, data) = self.call(IN, sector, &[], len);
        assert_eq!(status, OK);
        data
    }

    pub fn metric(&self, name: &str) -> u64 {
        metric(&self.device, name)
    }

    pub fn capacity(&self) -> u64 {
        u64::from_le_bytes(self.config(0))
    }

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.config().read(offset, &mut bytes);
        bytes
    }

    /// Puts the workers to sleep, checks that nothing is in flight, and wakes them again.
    pub fn sleep_and_wake(&mut self) {
        let asleep = std::mem::replace(&mut self.workers, Inline::start(Vec::new()).unwrap()).stop();
        for worker in &asleep {
            for state in worker.queues() {
                assert_eq!(state.next_available, state.next_used, "something is in flight");
            }
        }
        self.workers = Inline::start(asleep).unwrap();
    }
}

/// Status and data of a request that is done. All of it must count as written.
pub fn answer(used: Used) -> (u8, Vec<u8>) {
    assert_eq!(used.written as usize, used.data.len());
    let mut data = used.data;
    let status = data.pop().unwrap();
    (status, data)
}

pub fn metric(device: &Blk, name: &str) -> u64 {
    device.metrics().value(name).unwrap_or_else(|| panic!("no metric {name}")).number()
}
