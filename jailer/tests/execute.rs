//! What cannot be executed: refused with a line that says why, and nothing is left. These tests need root, as the jailer does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Jailed, Place, command, failed, has_ended, run, wait};

const NONE: [&str; 0] = [];

#[test]
fn an_executable_that_is_none_is_refused() {
    let place = Place::new();
    let with = |path: &Path| {
        let before = place.listing();
        let line = failed(&command("a", path, &place.base()).output().unwrap());
        assert_eq!(place.listing(), before, "{line}");
        line
    };
    let path = |name: &str| place.path().join(name);
    assert!(with(&path("nowhere")).contains("cannot open executable"));
    fs::create_dir(path("folder")).unwrap();
    assert!(with(&path("folder")).contains("folder is not an executable file"));
    run("mkfifo", &["-m", "755", path("fifo").to_str().unwrap()]);
    assert!(with(&path("fifo")).contains("fifo is not an executable file"));
    fs::write(path("data"), "x").unwrap();
    fs::set_permissions(path("data"), Permissions::from_mode(0o644)).unwrap();
    assert!(with(&path("data")).contains("data is not an executable file"));
    fs::set_permissions(path("data"), Permissions::from_mode(0o757)).unwrap();
    assert!(with(&path("data")).contains("can be written by anybody"));
    fs::set_permissions(path("data"), Permissions::from_mode(0o755)).unwrap();
    // The kernel's own answer, when nothing is left to do but this.
    assert!(with(&path("data")).contains("cannot execute"));
    fs::write(path("run"), "x").unwrap();
    fs::set_permissions(path("run"), Permissions::from_mode(0o755)).unwrap();
    assert!(with(&path("run")).contains("--exec-file"));
}

#[test]
fn what_the_kernel_will_not_execute_leaves_nothing_of_jail_or_cgroup() {
    for options in [&[][..], &["--daemonize"], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        let place = Place::new();
        fs::write(place.executable(), "no program").unwrap();
        let line = place.refused(options);
        assert!(
            line.contains("cannot execute (it has to be a static program") && line.contains("/vmm"),
            "{line}"
        );
        // What a client has made stays as it was, with its owner.
        fs::write(place.make_root().join("disk"), "disk").unwrap();
        place.refused(options);
    }
}

/// An ELF file for this machine whose only segment would lie in the kernel's half of the addresses.
fn unmappable(program: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    let mut elf = program[..HEADER].to_vec();
    elf[16..18].copy_from_slice(&libc::ET_EXEC.to_le_bytes());
    elf[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
    elf[56..58].copy_from_slice(&1_u16.to_le_bytes());
    let address = 0xffff_8000_0000_0000;
    for half in [libc::PT_LOAD, libc::PF_R | libc::PF_X] {
        elf.extend(half.to_le_bytes());
    }
    // Offset, virtual and physical address, sizes in file and memory, alignment.
    for field in [0_u64, address, address, 64, 64, 4096] {
        elf.extend(field.to_le_bytes());
    }
    elf
}

#[test]
fn a_program_that_the_kernel_ends_as_it_executes_it_leaves_nothing_of_the_jail() {
    let place = Place::new();
    let program = unmappable(&fs::read(place.executable()).unwrap());
    fs::write(place.executable(), program).unwrap();
    for options in [&["--daemonize"][..], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        // The kernel says that the program has been executed right before it ends it.
        for _ in 0..20 {
            let line = place.refused(options);
            assert!(line.contains("signal 11 ended the monitor's process as it was executed"), "{line}");
        }
    }
}

#[test]
fn a_program_that_ends_at_once_has_been_executed() {
    let place = Place::new();
    for options in [&["--daemonize"][..], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        for _ in 0..20 {
            let output = place.jailer_for(options, &["mark"]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let pid = fs::read_to_string(place.root().join("vmm.pid")).unwrap().parse().unwrap();
            wait(|| has_ended(pid));
        }
    }
}

#[test]
fn arguments_that_are_too_long_for_the_kernel_leave_nothing() {
    let place = Place::new();
    // Just what fits into one argument, and into all of them, without what the jailer adds.
    let long = "x".repeat((128 << 10) - 1);
    let jailed = Jailed::start(&mut place.jailer_for(&NONE, &[long.as_str(), "report"]));
    assert!(jailed.report["arguments"].to_string().contains(&long));
    jailed.end();
    let place = Place::new();
    let many = vec!["y"; 100_000];
    let mut arguments = many.clone();
    arguments.push("report");
    Jailed::start(&mut place.jailer_for(&NONE, &arguments)).end();
}
