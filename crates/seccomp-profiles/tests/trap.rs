//! What a forbidden system call looks like from outside.

#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod common;

use std::sync::atomic::{AtomicI32, Ordering};

use common::in_child;
use kindling_seccomp_profiles::{EXIT_FORBIDDEN, Filters, Level, Thread, install_handler, report_to};

/// The child's end of the pipe.
static REPORT: AtomicI32 = AtomicI32::new(-1);

fn before_exit() {
    // SAFETY: writes the bytes of a string.
    unsafe { libc::write(REPORT.load(Ordering::SeqCst), c"restored\n".as_ptr().cast(), 9) };
}

/// What is written, standard error and the log both being the pipe, and the exit code, when `call` is made.
fn told(level: Level, call: impl FnOnce()) -> (String, Option<i32>) {
    let filters = Filters::embedded(level);
    let (written, status) = in_child(|report| {
        REPORT.store(report, Ordering::SeqCst);
        report_to(Some(report));
        // SAFETY: the calls take numbers, and a string that ends in NUL.
        unsafe {
            libc::dup2(report, 2);
            libc::prctl(libc::PR_SET_NAME, c"io di\x1bk".as_ptr());
        }
        if install_handler(before_exit).is_ok() && filters.install(Thread::Io).is_ok() {
            call();
        }
    });
    (String::from_utf8(written).unwrap(), status.code())
}

/// Twice, since standard error is the log here.
fn twice(line: &str) -> (String, Option<i32>) {
    (format!("restored\n{line}\n{line}\n"), Some(EXIT_FORBIDDEN.into()))
}

#[test]
fn a_forbidden_call_is_named_with_its_thread_and_ends_the_process() {
    let execve = || {
        // SAFETY: the call is forbidden; the kernel would refuse the pointers else.
        unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) };
    };
    let line = r#"vmm: the thread "io di\x1bk" made the forbidden system call execve (59)"#;
    assert_eq!(told(Level::Calls, execve), twice(line));
    assert_eq!(told(Level::Arguments, execve), twice(line));
    assert_eq!(told(Level::Off, execve), (String::new(), Some(0)));
}

#[test]
fn arguments_matter_at_the_level_that_says_so() {
    let madvise = || {
        // SAFETY: it speaks of no memory.
        unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_NORMAL) };
    };
    assert_eq!(told(Level::Calls, madvise), (String::new(), Some(0)));
    let line = r#"vmm: the thread "io di\x1bk" made the forbidden system call madvise (28)"#;
    assert_eq!(told(Level::Arguments, madvise), twice(line));
}

#[test]
fn a_number_without_a_name_is_told_as_it_is() {
    let x32 = || {
        // SAFETY: the call is forbidden, and has no arguments.
        unsafe { libc::syscall(0x4000_003b) };
    };
    let line = r#"vmm: the thread "io di\x1bk" made a forbidden system call of number 0x4000003b"#;
    assert_eq!(told(Level::Calls, x32), twice(line));
}

#[test]
fn a_signal_that_somebody_sends_ends_the_process_as_it_would_without_a_handler() {
    let (written, status) = in_child(|report| {
        REPORT.store(report, Ordering::SeqCst);
        if install_handler(before_exit).is_ok() {
            // SAFETY: the call takes a number.
            unsafe { libc::raise(libc::SIGSYS) };
        }
    });
    assert_eq!(written, b"restored\n");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSYS));
}
