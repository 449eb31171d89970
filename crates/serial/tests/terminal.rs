//! The terminal is as it was on every way out. Each test runs one of the ways in a child process (this same program)
//! whose standard input is a terminal.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use common::{PATIENCE, mode, terminal};
use kindling_serial::terminal::{RawMode, is_raw, restore, restore_on_fatal_signals};
use kindling_serial::{Backend, Error};

const WAY_OUT: &str = "KINDLING_TEST_WAY_OUT";

/// What the child does; not a test of its own.
#[test]
fn child() {
    let Ok(way_out) = std::env::var(WAY_OUT) else { return };
    let before = mode(&std::io::stdin());
    if way_out == "background" {
        in_the_background(|| {
            assert!(RawMode::enable().unwrap().is_none());
            assert_eq!(Backend::stdio().unwrap().input_fd(), None);
            assert_eq!(mode(&std::io::stdin()), before);
        });
        std::process::exit(42);
    }
    let guard = RawMode::enable().unwrap().expect("a terminal");
    assert!(is_raw());
    assert_ne!(mode(&std::io::stdin()), before);
    assert_eq!(mode(&std::io::stdin())[3] & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
    restore_on_fatal_signals().unwrap();
    match way_out.as_str() {
        "drop" => drop(guard),
        "background drop" => in_the_background(|| drop(guard)),
        "unwinding" => {
            let result = std::panic::catch_unwind(move || {
                let _guard = guard;
                panic!("on purpose");
            });
            assert!(result.is_err());
        }
        "exit" => {
            restore();
            restore();
            assert!(!is_raw());
            std::mem::forget(guard);
        }
        "abort" => std::process::abort(),
        // SAFETY: nothing safe about it, and that is the point: page zero is never mapped.
        "fault" => unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) },
        signal => {
            // SAFETY: raise touches no memory of ours.
            unsafe { libc::raise(signal.parse().unwrap()) };
        }
    }
    std::process::exit(42);
}

/// Does something while another process group has the terminal at standard input.
fn in_the_background(act: impl FnOnce()) {
    let mut other = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
    let group = i32::try_from(other.id()).unwrap();
    // SAFETY: tcsetpgrp touches no memory of ours.
    assert_eq!(unsafe { libc::tcsetpgrp(0, group) }, 0);
    act();
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Runs the child as the leader of a session with `slave` as its terminal.
fn run(way_out: &str, slave: &File) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(WAY_OUT, way_out).env("RUST_BACKTRACE", "0");
    command.stdin(slave.try_clone().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure calls nothing but async-signal-safe functions.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            // No core dumps.
            libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{way_out}: the child hangs, or was stopped");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn is_restored_after(way_out: &str) -> ExitStatus {
    let (_master, slave) = terminal();
    let before = mode(&slave);
    let status = run(way_out, &slave);
    assert_eq!(mode(&slave), before, "{way_out}");
    status
}

#[test]
fn the_terminal_is_restored_when_the_guard_is_dropped_and_when_a_panic_unwinds() {
    for way_out in ["drop", "unwinding", "exit"] {
        assert_eq!(is_restored_after(way_out).code(), Some(42), "{way_out}");
    }
}

#[test]
fn the_terminal_is_restored_before_a_fatal_signal_kills_with_its_own_number() {
    assert_eq!(is_restored_after("abort").signal(), Some(libc::SIGABRT));
    assert_eq!(is_restored_after("fault").signal(), Some(libc::SIGSEGV));
    let others = [libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGXCPU];
    for signal in [libc::SIGSEGV, libc::SIGABRT].into_iter().chain(others) {
        assert_eq!(is_restored_after(&signal.to_string()).signal(), Some(signal));
    }
}

#[test]
fn the_terminal_is_restored_from_the_background_without_being_stopped() {
    assert_eq!(is_restored_after("background drop").code(), Some(42));
}

#[test]
fn a_terminal_that_another_job_has_is_neither_changed_nor_read() {
    assert_eq!(is_restored_after("background").code(), Some(42));
}

#[test]
fn raw_mode_can_be_had_once_at_a_time_and_again() {
    let (_master, slave) = terminal();
    let before = mode(&slave);
    for _ in 0..2 {
        let guard = RawMode::enable_on(slave.try_clone().unwrap().into()).unwrap();
        let second = RawMode::enable_on(slave.try_clone().unwrap().into());
        assert!(matches!(second, Err(Error::AlreadyRaw)));
        assert!(is_raw());
        assert_ne!(mode(&slave), before);
        drop(guard);
        assert!(!is_raw());
        assert_eq!(mode(&slave), before);
    }
}

#[test]
fn what_is_no_terminal_is_left_alone() {
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(RawMode::enable_on(null.into()), Err(Error::Terminal(_))));
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_without_a_terminal", "--nocapture"])
        .env(WAY_OUT, "none")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(42));
}

/// What the child without a terminal does; not a test of its own.
#[test]
fn child_without_a_terminal() {
    if std::env::var_os(WAY_OUT).is_some() {
        assert!(RawMode::enable().unwrap().is_none());
        assert!(!is_raw());
        std::process::exit(42);
    }
}
