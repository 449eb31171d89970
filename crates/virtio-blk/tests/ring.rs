//! The asynchronous engine where the kernel takes its time or does less than asked: on a pipe, which its ring reads
//! from and writes to in the place of a file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use kindling_virtio_blk::{
    Alignment, Blk, BlkConfig, CacheMode, Clear, Disk, DiskInfo, Error, IoEngine, Segments,
};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{Device, Interrupt, StopError, WorkerThread};

/// A disk of which there is only the descriptor.
struct Descriptor(OwnedFd);

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Disk for Descriptor {
    fn info(&self) -> &DiskInfo {
        &DiskInfo { read_only: false, is_block_device: false, alignment: Alignment::NONE, topology: None }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }

    fn read(&self, _: Segments<'_>, _: u64) -> io::Result<usize> {
        panic!("past the ring")
    }

    fn write(&self, _: Segments<'_>, _: u64, _: bool) -> io::Result<usize> {
        panic!("past the ring")
    }

    fn flush(&self) -> io::Result<()> {
        panic!("past the ring")
    }

    fn clear(&self, _: Clear, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: the pointer is to two numbers, which are descriptors of nobody else afterwards.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

fn device(file: &File) -> Blk {
    let config = BlkConfig { engine: IoEngine::Async, cache: CacheMode::Writeback, ..BlkConfig::default() };
    Blk::new(Arc::new(Descriptor(file.as_fd().try_clone_to_owned().unwrap())), &config).unwrap()
}

/// Has the kernel refuse rings to the calling thread from now on.
fn forbid_rings() -> io::Result<()> {
    let instruction = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = [
        // The number of the system call is what `struct seccomp_data` begins with.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the second call reads the program, which lives across it; the first takes numbers.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn a_ring_that_cannot_be_had_is_an_error_when_the_device_is_made() {
    forbid_rings().unwrap();
    let config = BlkConfig { engine: IoEngine::Async, ..BlkConfig::default() };
    let error = Blk::new(Arc::new(Descriptor(pipe().0.into())), &config).err().expect("no ring");
    assert!(matches!(error, Error::Ring(_)), "{error}");
    assert!(error.to_string().contains("io_uring"), "{error}");
}

#[test]
fn a_thread_that_may_make_no_ring_serves_one_driver_after_the_other() {
    let image = Image::new(16);
    let config = BlkConfig { engine: IoEngine::Async, queues: 2, ..BlkConfig::default() };
    let mut device = open(&image, &config);
    let threads: Vec<_> = (0..2)
        .map(|queue| {
            let set_up = device.set_up_thread(queue).expect("a ring to make");
            WorkerThread::spawn("io", || set_up().and_then(|()| forbid_rings())).unwrap()
        })
        .collect();
    for driver in 0..3 {
        let mut driver_side = MockDriver::new(&device);
        let workers = device.activate(driver_side.activation()).unwrap();
        let slots: Vec<_> = threads.iter().map(WorkerThread::slot).collect();
        for (slot, worker) in slots.iter().zip(workers) {
            slot.start(worker, Arc::clone(&driver_side.interrupt) as Arc<dyn Interrupt>);
        }
        for (queue, sector) in driver_side.queues.iter_mut().zip([3, 9]) {
            queue.add(&[Buffer::Readable(&header(IN, sector)), Buffer::Writable(512), Buffer::Writable(1)]);
            assert_eq!(answer(queue.wait_used(20)), (OK, image.read(sector, 512)), "driver {driver}");
        }
        for slot in &slots {
            drop(slot.stop().wait(Instant::now() + Duration::from_secs(20)).unwrap());
        }
        device.reset();
    }
}

#[test]
fn a_read_that_comes_in_pieces_is_put_together() {
    let (from, mut to) = pipe();
    let mut guest = Guest::new(device(&from));
    guest.add(0, IN, 0, &[], 1024);
    guest.workers.run(10).unwrap();
    for piece in [&[1; 300][..], &[2; 700], &[3; 24]] {
        assert!(guest.driver.queues[0].take_used().is_none());
        to.write_all(piece).unwrap();
        guest.workers.step(1_000).unwrap();
    }
    let (status, data) = answer(guest.wait(0));
    assert_eq!((status, data), (OK, [vec![1; 300], vec![2; 700], vec![3; 24]].concat()));
}

#[test]
fn a_read_that_ends_too_soon_is_an_error() {
    let (from, mut to) = pipe();
    let mut guest = Guest::new(device(&from));
    guest.add(0, IN, 0, &[], 1024);
    guest.workers.run(10).unwrap();
    to.write_all(&[1; 300]).unwrap();
    drop(to);
    let (status, data) = answer(guest.wait(0));
    assert_eq!((status, data), (IOERR, [vec![1; 300], vec![0; 724]].concat()));
    assert_eq!(guest.metric("read_errors"), 1);
}

#[test]
fn a_write_that_is_taken_in_pieces_is_whole_and_one_that_fails_is_an_error() {
    let (mut from, to) = pipe();
    let mut guest = Guest::new(device(&to));
    // More than a pipe holds.
    let data: Vec<u8> = (0..300_u32 << 10).map(|byte| (byte % 251) as u8).collect();
    guest.add(0, OUT, 0, &data, 0);
    guest.workers.run(10).unwrap();
    let reader = std::thread::spawn(move || {
        let mut taken = vec![0; 300 << 10];
        from.read_exact(&mut taken).unwrap();
        taken
    });
    assert_eq!(answer(guest.wait(0)).0, OK);
    assert!(reader.join().unwrap() == data);
    // Nobody reads any more.
    assert_eq!(guest.call(OUT, 0, &[1; 512], 0).0, IOERR);
    assert_eq!((guest.metric("writes"), guest.metric("write_errors")), (1, 1));
}

#[test]
fn what_a_file_cannot_do_in_the_ring_fails_like_the_same_outside() {
    let (_from, to) = pipe();
    let mut guest = Guest::new(device(&to));
    assert_eq!(guest.call(FLUSH, 0, &[], 0).0, IOERR);
    assert_eq!(guest.call(DISCARD, 0, &segment(0, 1, 0), 0).0, IOERR);
    assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(0, 1, 0), 0).0, IOERR);
    for name in ["flush_errors", "discard_errors", "write_zeroes_errors"] {
        assert_eq!(guest.metric(name), 1, "{name}");
    }
}

#[test]
fn other_requests_overtake_one_that_hangs_and_a_stop_waits_for_it() {
    let (from, mut to) = pipe();
    let mut device = device(&from);
    let mut driver = MockDriver::new(&device);
    let worker = device.activate(driver.activation()).unwrap().remove(0);
    let thread = WorkerThread::spawn("io", || Ok(())).unwrap();
    let slot = thread.slot();
    slot.start(worker, Arc::clone(&driver.interrupt) as Arc<dyn Interrupt>);
    let hanging =
        driver.queues[0].add(&[Buffer::Readable(&header(IN, 0)), Buffer::Writable(512), Buffer::Writable(1)]);
    for _ in 0..1_000 {
        let quick = driver.queues[0].add(&[Buffer::Readable(&header(GET_ID, 0)), Buffer::Writable(21)]);
        assert_eq!(driver.queues[0].wait_used(20).head, quick);
    }
    let stopping = slot.stop();
    assert!(matches!(stopping.wait(Instant::now() + Duration::from_millis(50)), Err(StopError::Deadline)));
    to.write_all(&[7; 512]).unwrap();
    let worker = stopping.wait(Instant::now() + Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!(worker.queues()[0].next_used, 1_001);
    let used = driver.queues[0].take_used().unwrap();
    assert_eq!(used.head, hanging);
    assert_eq!(answer(used), (OK, vec![7; 512]));
}

#[test]
fn a_worker_that_is_dropped_waits_for_its_requests() {
    let (from, mut to) = pipe();
    let mut guest = Guest::new(device(&from));
    guest.add(0, IN, 0, &[], 512);
    guest.workers.run(10).unwrap();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        to.write_all(&[7; 512]).unwrap();
    });
    let begun = Instant::now();
    let Guest { driver, workers, .. } = guest;
    drop(workers);
    assert!(begun.elapsed() >= Duration::from_millis(40), "the kernel still has the guest's memory");
    writer.join().unwrap();
    drop(driver);
}
