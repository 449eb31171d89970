//! No more than one process lives in a jail, no more than one jailer builds it, and nobody else can pretend to. These tests
//! need root, as the jailer does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Jailed, Place, STRANGER, UID, command, give, has_ended, wait};
use kindling_integration_tests::harness::Process;

const NONE: [&str; 0] = [];

/// Starts a jailer that the calling thread traces, and stops it when it has forked and done nothing else yet. Returns it and its
/// child, which goes on by itself.
fn stopped_at_fork(command: &mut Command) -> (Process, libc::pid_t) {
    let trace_me = || {
        // SAFETY: the call takes numbers.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes a system call.
    let jailer = unsafe { command.pre_exec(trace_me) }.spawn().unwrap();
    let pid = jailer.id().cast_signed();
    let jailer = Process::new(jailer, "jailer");
    let stopped = |pid, by| {
        let mut status = 0;
        // SAFETY: the call writes one number. The process is traced by this thread.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }, pid);
        assert!(libc::WIFSTOPPED(status) && status >> 8 == by, "{status:x}");
    };
    stopped(pid, libc::SIGTRAP);
    let mut child: libc::c_ulong = 0;
    // SAFETY: the calls take numbers, and the last one writes one. The process is traced by this thread, and stopped.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_TRACEFORK), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_CONT, pid, 0, 0), 0);
        stopped(pid, libc::SIGTRAP | libc::PTRACE_EVENT_FORK << 8);
        assert_eq!(libc::ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut child), 0);
    }
    let child = libc::pid_t::try_from(child).unwrap();
    stopped(child, libc::SIGSTOP);
    // SAFETY: as above, for the child.
    assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, child, 0, 0) }, 0);
    (jailer, child)
}

/// What jailers lock.
fn lock_file(place: &Place) -> PathBuf {
    place.base().join("vmm/a/lock")
}

#[test]
fn a_jail_that_somebody_lives_in_is_refused_until_it_ends() {
    for options in [&[][..], &["--daemonize", "--new-pid-ns"]] {
        let place = Place::new();
        let jailed = if options.is_empty() {
            Jailed::start(&mut place.jailer(options))
        } else {
            Jailed::detached(&place, options)
        };
        let line = place.refused(&NONE);
        assert!(line.contains(&format!("is in use: process {} lives in it", jailed.pid)), "{line}");
        // What the monitor itself can reach does not matter.
        fs::remove_file(place.root().join("vmm.pid")).unwrap();
        assert!(place.refused(&["--daemonize"]).contains("is in use"));
        drop(jailed);
        Jailed::start(&mut place.jailer(&NONE)).end();
    }
}

#[test]
fn a_jail_is_lived_in_until_the_last_thread_ends_and_not_only_the_first() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer_for(&NONE, &["headless"]));
    wait(|| jailed.status("State")[0] == "Z");
    let line = place.refused(&NONE);
    assert!(line.contains(&format!("is in use: process {} lives in it", jailed.pid)), "{line}");
    jailed.end();
    Jailed::start(&mut place.jailer(&NONE)).end();
}

#[test]
fn a_jailer_that_is_killed_before_it_records_the_monitor_leaves_none() {
    for options in [&["--daemonize"][..], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        let place = Place::new();
        let report = place.root().join("report");
        let (jailer, child) = stopped_at_fork(&mut place.jailer_for(options, &["/report"]));
        let child = child.unsigned_abs();
        // The child has come as far as it does: it runs the probe, or waits for a byte.
        let waiting = format!("{} ", libc::SYS_read);
        let call = || fs::read_to_string(format!("/proc/{child}/syscall")).unwrap_or_default();
        wait(|| report.exists() || call().starts_with(&waiting));
        assert!(!place.root().join("vmm.pid").exists(), "the jailer is stopped");
        drop(jailer);
        wait(|| report.exists() || has_ended(child));
        assert!(!report.exists(), "a monitor runs that nobody knows of");
        Jailed::start(&mut place.jailer(&NONE)).end();
    }
}

#[test]
fn a_jailer_that_is_still_at_it_keeps_the_second_out() {
    let place = Place::new();
    Jailed::start(&mut place.jailer(&NONE)).end();
    let lock = fs::File::open(lock_file(&place)).unwrap();
    lock.lock().unwrap();
    assert!(place.refused(&NONE).contains("is being used by another jailer right now"));
    drop(lock);
    // A child that another test has just forked has the descriptor, too, until it executes its program.
    wait(|| place.jailer_for(&NONE, &["mark"]).output().unwrap().status.success());
}

#[test]
fn a_user_who_locks_what_can_be_opened_keeps_no_guest_from_starting() {
    let place = Place::new();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    let folder = place.make_root().parent().unwrap().to_owned();
    let path = CString::new(folder.as_os_str().as_bytes()).unwrap();
    let take = move || {
        // SAFETY: the path is a string that ends in NUL. The descriptor is handed on, and the lock with it.
        let locked = unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY);
            libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB)
        };
        if locked < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    let mut stranger = Command::new("sleep");
    // SAFETY: the closure only makes system calls. It runs as the user that is given.
    let stranger = unsafe { stranger.arg("60").uid(STRANGER).gid(STRANGER).pre_exec(take) };
    let _stranger = Process::new(stranger.spawn().unwrap(), "sleep");
    Jailed::start(&mut place.jailer(&NONE)).end();
    let meta = fs::metadata(lock_file(&place)).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o600), "nobody else can open, and so lock it");
}

#[test]
fn a_lock_that_others_could_take_is_refused() {
    for (uid, mode, fault) in [
        (STRANGER, 0o600, "belongs to another user"),
        (UID, 0o600, "belongs to another user"),
        (0, 0o604, "can be opened by others"),
    ] {
        let place = Place::new();
        place.make_root();
        fs::write(lock_file(&place), "").unwrap();
        give(&lock_file(&place), uid, 0);
        fs::set_permissions(lock_file(&place), Permissions::from_mode(mode)).unwrap();
        let line = place.refused(&NONE);
        assert!(line.contains(&format!("{} {fault}", lock_file(&place).display())), "{line}");
    }
}

#[test]
fn many_at_once_with_one_id_start_one_and_with_many_ids_all() {
    let place = Place::new();
    let mut children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = place.jailer_for(&["--daemonize"], &["/report"]);
            command.stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let started =
        children.iter_mut().filter_map(|child| child.wait().unwrap().success().then_some(())).count();
    assert_eq!(started, 1);
    let place = Place::new();
    let commands = (0..8).map(|number| {
        let mut command = command(&number.to_string(), &place.executable(), &place.base());
        command.args(["--", "mark"]).stdout(Stdio::null()).spawn().unwrap()
    });
    let children: Vec<_> = commands.collect();
    assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
}
