//! What cannot be executed: refused with a line that says why, and nothing is left. These tests need root, as the jailer does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

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

/// Has a program start with SIGCHLD ignored, as some of those do that start others.
fn ignore_children(command: &mut Command) {
    let ignore = || {
        // SAFETY: to ignore a signal involves no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: the closure only makes a system call.
    unsafe { command.pre_exec(ignore) };
}

#[test]
fn a_program_that_the_kernel_ends_as_it_executes_it_leaves_nothing_of_the_jail() {
    let place = Place::new();
    let program = unmappable(&fs::read(place.executable()).unwrap());
    fs::write(place.executable(), program).unwrap();
    for options in [&["--daemonize"][..], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        // The kernel says that the program has been executed right before it ends it.
        for round in 0..20 {
            let before = place.listing();
            let mut jailer = place.jailer(options);
            if round % 2 == 0 {
                ignore_children(&mut jailer);
            }
            let line = failed(&jailer.output().unwrap());
            assert!(line.contains("signal 11 ended the monitor's process as it was executed"), "{line}");
            assert_eq!(place.listing(), before);
        }
    }
}

#[test]
fn a_program_that_ends_at_once_has_been_executed() {
    let place = Place::new();
    for options in [&["--daemonize"][..], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        for round in 0..20 {
            let mut jailer = place.jailer_for(options, &["mark"]);
            if round % 2 == 0 {
                ignore_children(&mut jailer);
            }
            let output = jailer.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let pid = fs::read_to_string(place.root().join("vmm.pid")).unwrap().parse().unwrap();
            wait(|| has_ended(pid));
        }
    }
}

/// Limit on the stack, of which a command line gets a quarter (execve(2)).
const STACK: u64 = 1 << 20;
const COMMAND_LINE: usize = 1 << 18;
/// Limit on one argument, with its NUL.
const ARGUMENT: usize = 128 << 10;

/// A jailer whose own command line is shorter than the one that it makes: in that, the executable's long name is twice.
fn terse_jailer(place: &Place, name: &str, options: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new("./j");
    command.current_dir(place.path()).env_clear().args(["--id=a", "--uid=1", "--gid=1"]);
    command.arg(format!("--exec-file={name}")).arg("--chroot-base-dir=jails");
    command.args(options).arg("--").args(arguments).stdin(Stdio::null());
    // Without it, a jailer whose coverage is measured complains.
    command.envs(std::env::vars_os().filter(|(name, _)| name == "LLVM_PROFILE_FILE"));
    let set_limit = || {
        let limit = libc::rlimit { rlim_cur: STACK, rlim_max: STACK };
        // SAFETY: the call reads one `rlimit`.
        match unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes a system call.
    unsafe { command.pre_exec(set_limit) };
    command
}

#[test]
fn arguments_that_just_fit_are_handed_on_and_longer_ones_leave_nothing() {
    let place = Place::new();
    let name = "n".repeat(200);
    fs::rename(place.executable(), place.path().join(&name)).unwrap();
    symlink(env!("CARGO_BIN_EXE_jailer"), place.path().join("j")).unwrap();
    let before = place.listing();
    let longest = "x".repeat(ARGUMENT - 1);
    let arguments_with = |filler: &str| -> Vec<String> {
        let arguments = [longest.as_str(), filler, "report"];
        let jailed = Jailed::start(&mut terse_jailer(&place, &name, &NONE, &arguments));
        let arguments = serde_json::from_value(jailed.report["arguments"].clone()).unwrap();
        jailed.end();
        fs::remove_dir_all(place.base()).unwrap();
        arguments
    };
    // Beside the path of the file, each argument takes its bytes, a NUL and a pointer.
    let each = |argument: &String| argument.len() + 1 + size_of::<usize>();
    let room = COMMAND_LINE - arguments_with("").iter().map(each).sum::<usize>() - "/".len() - name.len() - 1;
    // How many digits the times have that the monitor is told is not known before.
    let digits = 10;
    let fits = "y".repeat(room - digits);
    assert!(arguments_with(&fits).ends_with(&[longest.clone(), fits, "report".to_owned()]));
    let too_long = "y".repeat(room + digits);
    let arguments = [longest.as_str(), &too_long, "report"];
    for options in [&[][..], &["--daemonize"], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        let line = failed(&terse_jailer(&place, &name, options, &arguments).output().unwrap());
        assert!(line.contains("cannot execute") && line.contains("Argument list too long"), "{line}");
        assert_eq!(place.listing(), before);
    }
}
