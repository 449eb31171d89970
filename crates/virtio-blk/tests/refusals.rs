//! The asynchronous engine where the kernel takes no requests for a while, as it does when it is short of memory. Here it is a
//! supervisor of the thread's system calls that answers in its place (seccomp_unotify(2)).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use kindling_rate_limiter::BucketConfig;
use kindling_virtio_blk::{BlkConfig, IoEngine};
use kindling_virtio_device::Device;

/// Has another thread decide on what the calling thread wants of io_uring_enter(2) from now on. Returns its descriptor.
fn supervise() -> RawFd {
    let instruction = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = [
        // The number of the system call is what `struct seccomp_data` begins with.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_enter as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the second call reads the program, which lives across it; the first takes numbers.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    assert!(result >= 0, "cannot supervise: {}", std::io::Error::last_os_error());
    result as RawFd
}

/// Answers calls until the test has `ended`: the next ones with error `number`, for as long as there are `refusals`; the kernel
/// has the others.
fn decide(listener: RawFd, number: i32, refusals: &AtomicUsize, ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        // SAFETY: a structure of numbers.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // A call goes away when the ring interrupts it, and is made again.
        // SAFETY: the kernel writes one structure, which lives across the call.
        if unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } != 0 {
            continue;
        }
        let is_refused =
            refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let (error, flags) =
            if is_refused { (-number, 0) } else { (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32) };
        let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error, flags };
        // SAFETY: the kernel reads one structure, which lives across the call.
        unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }
}

/// Runs a test on a thread of its own, whose calls are refused while there are refusals.
fn refused_with(number: i32, test: impl FnOnce(&AtomicUsize) + Send + 'static) {
    let ended = Arc::new(AtomicBool::new(false));
    let has_ended = Arc::clone(&ended);
    let on_thread = move || {
        let refusals = Arc::new(AtomicUsize::new(0));
        let listener = supervise();
        let theirs = Arc::clone(&refusals);
        std::thread::spawn(move || decide(listener, number, &theirs, &has_ended));
        test(&refusals);
    };
    let result = std::thread::spawn(on_thread).join();
    ended.store(true, Ordering::SeqCst);
    result.unwrap();
}

fn config() -> BlkConfig {
    BlkConfig { engine: IoEngine::Async, ..BlkConfig::default() }
}

#[test]
fn requests_that_the_kernel_does_not_take_at_once_are_done_later() {
    for number in [libc::EAGAIN, libc::EBUSY] {
        refused_with(number, |refusals| {
            let image = Image::new(16);
            let mut guest = Guest::open(&image, &config());
            for round in 0..20 {
                refusals.store(round, Ordering::SeqCst);
                assert_eq!(guest.call(OUT, 1, &[round as u8; 512], 0).0, OK);
                assert_eq!(guest.read(1, 512), [round as u8; 512]);
                assert_eq!(refusals.load(Ordering::SeqCst), 0, "they were asked for");
            }
        });
    }
}

#[test]
fn a_request_is_done_later_though_the_next_one_waits_for_the_limiter() {
    refused_with(libc::EAGAIN, |refusals| {
        let image = Image::new(16);
        let once = BucketConfig { size: 1, refill_time: Duration::from_secs(3600), one_time_burst: 0 };
        let mut guest = Guest::open(&image, &BlkConfig { ops: Some(once), ..config() });
        refusals.store(3, Ordering::SeqCst);
        guest.add(0, IN, 1, &[], 512);
        guest.add(0, IN, 2, &[], 512);
        assert_eq!(answer(guest.wait(0)), (OK, vec![pattern(1); 512]));
    });
}

#[test]
fn a_sleep_loses_no_request_that_the_kernel_does_not_take_at_once() {
    refused_with(libc::EAGAIN, |refusals| {
        let image = Image::new(16);
        let mut guest = Guest::open(&image, &config());
        for refused in 1..10 {
            refusals.store(refused, Ordering::SeqCst);
            for sector in 1..5 {
                guest.add(0, IN, sector, &[], 512);
            }
            guest.workers.step(0).unwrap();
            guest.sleep_and_wake();
            for sector in 1..5 {
                assert_eq!(answer(guest.wait(0)), (OK, vec![pattern(sector); 512]));
            }
        }
    });
}

#[test]
fn a_file_is_not_exchanged_under_a_request_that_the_kernel_does_not_take() {
    refused_with(libc::EAGAIN, |refusals| {
        let (old, new) = (Image::new(16), Image::new(16));
        let mut guest = Guest::open(&old, &config());
        refusals.store(usize::MAX, Ordering::SeqCst);
        guest.add(0, OUT, 1, &[0x55; 512], 0);
        guest.workers.step(0).unwrap();
        guest.device.control().set_path(&new.path).unwrap();
        let error = guest.workers.run(10).unwrap_err();
        assert!(error.to_string().contains("finish the requests"), "{error}");
        // It takes requests again, and the guest resets the device.
        refusals.store(0, Ordering::SeqCst);
        let Guest { mut device, driver, workers } = guest;
        drop(workers.stop());
        drop(driver);
        device.reset();
        assert_eq!((old.read(1, 512), new.read(1, 512)), (vec![0x55; 512], vec![pattern(1); 512]));
        let mut guest = Guest::new(device);
        assert_eq!(guest.call(OUT, 2, &[0x66; 512], 0).0, OK);
        assert_eq!(new.read(2, 512), [0x66; 512]);
    });
}

#[test]
fn a_kernel_that_never_takes_requests_holds_up_a_stop_for_a_while_only() {
    refused_with(libc::EAGAIN, |refusals| {
        let image = Image::new(16);
        let mut guest = Guest::open(&image, &config());
        refusals.store(usize::MAX, Ordering::SeqCst);
        guest.add(0, IN, 1, &[], 512);
        for _ in 0..10 {
            assert_eq!(guest.workers.step(0).unwrap(), 1, "it comes back to what is left");
        }
        let begun = Instant::now();
        drop(guest.workers.stop());
        assert!(begun.elapsed() < Duration::from_secs(20));
    });
}
