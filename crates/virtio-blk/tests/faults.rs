//! Faults of the host that cannot be provoked otherwise, and the order of what reaches the disk: on a disk that records
//! its calls and fails when told to. It is for the synchronous engine, since a ring goes past it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::*;
use kindling_virtio_blk::{Alignment, Blk, BlkConfig, CacheMode, Clear, Disk, DiskInfo, FileDisk, Segments};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device, Interrupt, StopError, WorkerThread};

/// A call to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Read(u64),
    Write { offset: u64, durable: bool },
    Flush,
    Clear(Clear, u64, u64),
}

/// What becomes of one.
#[derive(Clone, Copy)]
enum Fault {
    /// It fails with this number.
    Error(i32),
    /// It moves only so many bytes.
    Short(usize),
    /// Nothing is wrong.
    None,
}

struct FaultyDisk {
    inner: FileDisk,
    info: DiskInfo,
    calls: Mutex<Vec<Call>>,
    /// For the next calls; there are none for those after.
    faults: Mutex<VecDeque<Fault>>,
    /// Calls that may go on; the others wait.
    permits: Mutex<usize>,
    permitted: Condvar,
}

impl FaultyDisk {
    fn new(image: &Image) -> Arc<Self> {
        Self::with_alignment(image, Alignment::NONE)
    }

    fn with_alignment(image: &Image, alignment: Alignment) -> Arc<Self> {
        let inner = FileDisk::open(&image.path, false, false).unwrap();
        Arc::new(Self {
            info: DiskInfo { alignment, ..*inner.info() },
            inner,
            calls: Mutex::default(),
            faults: Mutex::default(),
            permits: Mutex::new(usize::MAX),
            permitted: Condvar::new(),
        })
    }

    fn fail(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// Whether the device keeps to the disk's alignment.
    fn check(&self, segments: Segments<'_>) {
        let Alignment { memory, offset } = self.info.alignment;
        for iovec in segments.iovecs() {
            assert_eq!(iovec.iov_base.addr() % memory as usize, 0);
            assert_eq!(iovec.iov_len % offset as usize, 0);
        }
    }

    /// Lets so many calls go on from now on.
    fn permit(&self, calls: usize) {
        *self.permits.lock().unwrap() = calls;
        self.permitted.notify_all();
    }

    /// Waits until so many calls were made.
    fn wait_for_calls(&self, count: usize) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.calls.lock().unwrap().len() < count {
            assert!(Instant::now() < end, "request {count} does not reach the disk");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn call(&self, call: Call, act: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        self.calls.lock().unwrap().push(call);
        let permits = self.permits.lock().unwrap();
        *self.permitted.wait_while(permits, |permits| *permits == 0).unwrap() -= 1;
        match self.faults.lock().unwrap().pop_front().unwrap_or(Fault::None) {
            Fault::Error(number) => Err(io::Error::from_raw_os_error(number)),
            Fault::Short(bytes) => act().map(|count| count.min(bytes)),
            Fault::None => act(),
        }
    }
}

impl AsFd for FaultyDisk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Disk for FaultyDisk {
    fn info(&self) -> &DiskInfo {
        &self.info
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read(&self, to: Segments<'_>, offset: u64) -> io::Result<usize> {
        self.check(to);
        self.call(Call::Read(offset), || self.inner.read(to, offset))
    }

    fn write(&self, from: Segments<'_>, offset: u64, durable: bool) -> io::Result<usize> {
        self.check(from);
        self.call(Call::Write { offset, durable }, || self.inner.write(from, offset, durable))
    }

    fn flush(&self) -> io::Result<()> {
        self.call(Call::Flush, || self.inner.flush().map(|()| 0)).map(drop)
    }

    fn clear(&self, how: Clear, offset: u64, len: u64) -> io::Result<()> {
        self.call(Call::Clear(how, offset, len), || self.inner.clear(how, offset, len).map(|()| 0)).map(drop)
    }
}

fn config() -> BlkConfig {
    BlkConfig { cache: CacheMode::Writeback, ..BlkConfig::default() }
}

fn guest(disk: &Arc<FaultyDisk>) -> Guest {
    Guest::new(Blk::new(Arc::clone(disk) as Arc<dyn Disk>, &config()).unwrap())
}

#[test]
fn errors_of_the_host_reach_the_guest_and_the_next_request_is_served() {
    let disk = FaultyDisk::new(&Image::new(16));
    let mut guest = guest(&disk);
    disk.fail(&[Fault::Error(libc::EIO); 5]);
    assert_eq!(guest.call(IN, 0, &[], 512), (IOERR, vec![0; 512]));
    assert_eq!(guest.call(OUT, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(guest.call(FLUSH, 0, &[], 0).0, IOERR);
    assert_eq!(guest.call(DISCARD, 0, &segment(0, 1, 0), 0).0, IOERR);
    assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(0, 1, 0), 0).0, IOERR);
    for name in ["read_errors", "write_errors", "flush_errors", "discard_errors", "write_zeroes_errors"] {
        assert_eq!(guest.metric(name), 1, "{name}");
    }
    disk.fail(&[Fault::Error(libc::ENOSPC)]);
    assert_eq!(guest.call(OUT, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(guest.read(0, 512), [pattern(0); 512]);
    assert_eq!(guest.metric("invalid_requests"), 0);
}

#[test]
fn what_the_host_cannot_clear_is_unsupported() {
    let disk = FaultyDisk::new(&Image::new(16));
    let mut guest = guest(&disk);
    disk.fail(&[Fault::Error(libc::EOPNOTSUPP)]);
    assert_eq!(guest.call(DISCARD, 0, &segment(0, 1, 0), 0).0, UNSUPP);
    assert_eq!(guest.metric("unsupported_requests"), 1);
    // Of other requests, it is an error like any.
    disk.fail(&[Fault::Error(libc::EOPNOTSUPP)]);
    assert_eq!(guest.call(IN, 0, &[], 512).0, IOERR);
}

#[test]
fn short_transfers_go_on_until_nothing_more_moves() {
    let image = Image::new(16);
    let disk = FaultyDisk::new(&image);
    let mut guest = guest(&disk);
    disk.fail(&[Fault::Short(700), Fault::Short(1)]);
    assert_eq!(guest.read(2, 2048), image.read(2, 2048));
    assert_eq!(disk.calls(), [Call::Read(1024), Call::Read(1724), Call::Read(1725)]);
    disk.fail(&[Fault::Short(700), Fault::Short(0)]);
    assert_eq!(guest.call(IN, 2, &[], 2048).0, IOERR);
    assert_eq!(disk.calls(), [Call::Read(1024), Call::Read(1724)]);

    disk.fail(&[Fault::Short(600), Fault::None]);
    assert_eq!(guest.call(OUT, 4, &[8; 1024], 0).0, OK);
    assert_eq!(image.read(4, 1024), [8; 1024]);
    disk.fail(&[Fault::Short(600), Fault::Short(0)]);
    assert_eq!(guest.call(OUT, 4, &[8; 1024], 0).0, IOERR);
    assert_eq!((guest.metric("reads"), guest.metric("read_errors")), (1, 1));
    assert_eq!((guest.metric("writes"), guest.metric("write_errors")), (1, 1));
}

#[test]
fn buffers_that_are_not_aligned_go_through_aligned_memory_in_pieces() {
    let image = Image::new(256);
    let disk = FaultyDisk::with_alignment(&image, Alignment { memory: 4096, offset: 512 });
    let mut guest = guest(&disk);
    assert_eq!(guest.read(2, 100 << 10), image.read(2, 100 << 10));
    assert_eq!(disk.calls(), [Call::Read(1024), Call::Read(1024 + (64 << 10))]);
    let data: Vec<u8> = (0..100_u32 << 10).map(|byte| (byte % 251) as u8).collect();
    assert_eq!(guest.call(OUT, 2, &data, 0).0, OK);
    assert!(image.read(2, 100 << 10) == data);
    assert_eq!(disk.calls().len(), 2);
    disk.fail(&[Fault::Short(1024), Fault::None]);
    assert_eq!(guest.read(3, 4096), image.read(3, 4096));
    // What a short write leaves of a piece cannot be written any more.
    disk.fail(&[Fault::Short(1024)]);
    assert_eq!(guest.call(OUT, 2, &[7; 4096], 0).0, IOERR);
    // Less than the disk's blocks is refused.
    let disk = FaultyDisk::with_alignment(&image, Alignment { memory: 512, offset: 4096 });
    let config = BlkConfig { block_size: 4096, ..config() };
    let mut guest = Guest::new(Blk::new(Arc::clone(&disk) as Arc<dyn Disk>, &config).unwrap());
    assert_eq!(guest.call(OUT, 8, &[7; 512], 0).0, IOERR);
    assert_eq!(guest.call(OUT, 1, &[7; 4096], 0).0, IOERR);
    assert_eq!(disk.calls(), []);
    assert_eq!(guest.call(OUT, 8, &[7; 4096], 0).0, OK);
}

#[test]
fn requests_reach_the_disk_in_their_order_and_a_flush_is_not_answered_before_it_is_done() {
    let disk = FaultyDisk::new(&Image::new(16));
    let mut guest = guest(&disk);
    guest.add(0, OUT, 1, &[1; 512], 0);
    guest.add(0, FLUSH, 0, &[], 0);
    guest.add(0, OUT, 2, &[1; 512], 0);
    for _ in 0..3 {
        assert_eq!(answer(guest.wait(0)).0, OK);
    }
    let write = |sector: u64| Call::Write { offset: sector * 512, durable: false };
    assert_eq!(disk.calls(), [write(1), Call::Flush, write(2)]);

    // On a thread of its own, the flush takes as long as the disk likes.
    let Guest { mut device, workers, .. } = guest;
    drop(workers);
    let mut driver = MockDriver::new(&device);
    let thread = WorkerThread::spawn("io", || Ok(())).unwrap();
    let slot = thread.slot();
    let worker = device.activate(driver.activation()).unwrap().remove(0);
    slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    disk.permit(0);
    driver.queues[0].add(&[Buffer::Readable(&header(FLUSH, 0)), Buffer::Writable(1)]);
    disk.wait_for_calls(1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.queues[0].take_used(), None, "it is not done");
    disk.permit(usize::MAX);
    assert_eq!(answer(driver.queues[0].wait_used(20)).0, OK);
    assert_eq!(disk.calls(), [Call::Flush]);
}

#[test]
fn without_flushes_a_driver_that_could_have_them_gets_durable_writes() {
    let disk = FaultyDisk::new(&Image::new(16));
    let device = Blk::new(Arc::clone(&disk) as Arc<dyn Disk>, &config()).unwrap();
    let features = (device.features() | COMMON_FEATURES) & !(1 << 9);
    let driver = MockDriver::with_features(&device, features);
    let mut guest = Guest::with_driver(device, driver);
    assert_eq!(guest.call(OUT, 1, &[1; 512], 0).0, OK);
    assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(4, 2, 1), 0).0, OK);
    let zero = Call::Clear(Clear::Zero { unmap: true }, 2048, 1024);
    assert_eq!(disk.calls(), [Call::Write { offset: 512, durable: true }, zero, Call::Flush]);
}

#[test]
fn a_disk_that_does_not_answer_holds_up_its_own_worker_only() {
    let image = Image::new(16);
    let disk = FaultyDisk::new(&image);
    let mut device =
        Blk::new(Arc::clone(&disk) as Arc<dyn Disk>, &BlkConfig { queues: 2, ..config() }).unwrap();
    let control = device.control();
    let mut driver = MockDriver::new(&device);
    let threads: Vec<_> = (0..2).map(|_| WorkerThread::spawn("io", || Ok(())).unwrap()).collect();
    let slots: Vec<_> = threads.iter().map(WorkerThread::slot).collect();
    for (slot, worker) in slots.iter().zip(device.activate(driver.activation()).unwrap()) {
        slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    }
    disk.permit(0);
    let read = [Buffer::Readable(&header(IN, 3)), Buffer::Writable(512), Buffer::Writable(1)];
    driver.queues[0].add(&read);
    disk.wait_for_calls(1);
    // The other queue answers what needs no disk, and changes are not held up.
    driver.queues[1].add(&[Buffer::Readable(&header(GET_ID, 0)), Buffer::Writable(21)]);
    assert_eq!(answer(driver.queues[1].wait_used(20)).0, OK);
    assert_eq!(control.refresh().unwrap(), 16 * 512);
    let stopping = slots[0].stop();
    let soon = Instant::now() + Duration::from_millis(50);
    assert!(matches!(stopping.wait(soon), Err(StopError::Deadline)));
    assert!(slots[1].stop().wait(Instant::now() + Duration::from_secs(20)).unwrap().is_some());
    // It answers at last.
    disk.permit(usize::MAX);
    let worker = stopping.wait(Instant::now() + Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!(worker.queues()[0].next_used, 1);
    assert_eq!(answer(driver.queues[0].take_used().unwrap()), (OK, image.read(3, 512)));
}

#[test]
fn a_write_that_is_made_after_a_change_goes_to_the_new_file_though_a_batch_is_under_way() {
    let (old, new) = (Image::new(16), Image::new(16));
    let disk = FaultyDisk::new(&old);
    let mut device = Blk::new(Arc::clone(&disk) as Arc<dyn Disk>, &config()).unwrap();
    let control = device.control();
    let mut driver = MockDriver::new(&device);
    let thread = WorkerThread::spawn("io", || Ok(())).unwrap();
    let slot = thread.slot();
    let worker = device.activate(driver.activation()).unwrap().remove(0);
    slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    disk.permit(0);
    let write = |sector| header(OUT, sector);
    let queue = &mut driver.queues[0];
    queue.add(&[Buffer::Readable(&write(1)), Buffer::Readable(&[1; 512]), Buffer::Writable(1)]);
    disk.wait_for_calls(1);
    control.set_path(&new.path).unwrap();
    queue.add(&[Buffer::Readable(&write(2)), Buffer::Readable(&[2; 512]), Buffer::Writable(1)]);
    disk.permit(usize::MAX);
    assert_eq!((answer(queue.wait_used(20)).0, answer(queue.wait_used(20)).0), (OK, OK));
    assert_eq!((old.read(1, 512), old.read(2, 512)), (vec![1; 512], vec![pattern(2); 512]));
    assert_eq!((new.read(1, 512), new.read(2, 512)), (vec![pattern(1); 512], vec![2; 512]));
}

#[test]
fn a_batch_on_a_slow_disk_is_answered_piece_by_piece() {
    let disk = FaultyDisk::new(&Image::new(16));
    let mut device = Blk::new(Arc::clone(&disk) as Arc<dyn Disk>, &config()).unwrap();
    let mut driver = MockDriver::new(&device);
    let worker = device.activate(driver.activation()).unwrap().remove(0);
    let read = [Buffer::Readable(&header(IN, 3)), Buffer::Writable(512), Buffer::Writable(1)];
    for _ in 0..4 {
        driver.queues[0].add(&read);
    }
    disk.permit(0);
    let thread = WorkerThread::spawn("io", || Ok(())).unwrap();
    let slot = thread.slot();
    slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    for done in 1..4 {
        disk.wait_for_calls(done);
        std::thread::sleep(Duration::from_millis(1));
        disk.permit(1);
        disk.wait_for_calls(done + 1);
        assert!(driver.queues[0].take_used().is_some(), "request {done} of 4");
    }
    disk.permit(usize::MAX);
    assert_eq!(answer(driver.queues[0].wait_used(20)).0, OK);
}

#[test]
fn a_stop_does_not_wait_for_the_rest_of_a_slow_batch() {
    let image = Image::new(16);
    let disk = FaultyDisk::new(&image);
    let mut device = Blk::new(Arc::clone(&disk) as Arc<dyn Disk>, &config()).unwrap();
    let mut driver = MockDriver::new(&device);
    let worker = device.activate(driver.activation()).unwrap().remove(0);
    let read = [Buffer::Readable(&header(IN, 3)), Buffer::Writable(512), Buffer::Writable(1)];
    for _ in 0..50 {
        driver.queues[0].add(&read);
    }
    disk.permit(0);
    let thread = WorkerThread::spawn("io", || Ok(())).unwrap();
    let slot = thread.slot();
    slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    disk.wait_for_calls(1);
    let stopping = slot.stop();
    std::thread::sleep(Duration::from_millis(20));
    disk.permit(usize::MAX);
    let worker = stopping.wait(Instant::now() + Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!(disk.calls(), [Call::Read(3 * 512)]);
    // The others are not lost.
    slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    for _ in 0..50 {
        assert_eq!(answer(driver.queues[0].wait_used(20)), (OK, image.read(3, 512)));
    }
}
