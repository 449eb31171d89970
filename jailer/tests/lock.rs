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

use common::{Jailed, Place, STRANGER, UID, command, give, wait};
use kindling_integration_tests::harness::Process;

const NONE: [&str; 0] = [];

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
