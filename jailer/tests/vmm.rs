//! The monitor itself in a jail, with the guest without an operating system. These tests need root, as the jailer does, and
//! /dev/kvm; where there is none, KINDLING_NO_KVM=1 has them do nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use common::{GID, LIMIT, Place, UID, give, has_ended, wait};
use kindling_integration_tests::bare_metal::Images;
use kindling_integration_tests::harness::{Process, vmm_path};
use kindling_integration_tests::landlock::is_complete;
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::VMM;

/// A place with the monitor as its executable and the guest's image in the jail, if there is a KVM.
fn place() -> Option<Place> {
    static FILES: OnceLock<(PathBuf, Images)> = OnceLock::new();
    if std::env::var_os("KINDLING_NO_KVM").is_some() {
        eprintln!("KINDLING_NO_KVM is set: skipped");
        return None;
    }
    let (vmm, images) = FILES.get_or_init(|| {
        let progress = Progress::new();
        (vmm_path().or_else(|_| VMM.build(&progress)).unwrap(), Images::build(&progress).unwrap())
    });
    let place = Place::with(vmm);
    let kernel = place.make_root().join("guest");
    fs::copy(&images.guest, &kernel).unwrap();
    give(&kernel, UID, GID);
    Some(place)
}

/// One request to the API and its answer.
fn request(socket: &Path, method: &str, path: &str, body: &str) -> String {
    let start = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < LIMIT, "{}: {error}", socket.display()),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[track_caller]
fn put(socket: &Path, path: &str, body: &str) {
    let answer = request(socket, "PUT", path, body);
    assert!(answer.contains(" 204"), "{path}: {answer}");
}

/// Has the API at `socket` start the guest.
fn start_guest(socket: &Path, scenario: &str) {
    assert!(request(socket, "GET", "/", "").contains(r#""id":"a""#));
    let boot = format!(r#"{{"kernel_image_path": "guest", "boot_args": "scenario={scenario}"}}"#);
    put(socket, "/boot-source", &boot);
    put(socket, "/actions", r#"{"action_type": "InstanceStart"}"#);
}

/// The output of a monitor that ends well.
#[track_caller]
fn output_of(mut child: Child) -> String {
    let mut stdout = child.stdout.take().unwrap();
    let mut process = Process::new(child, "vmm");
    let status = process.wait(LIMIT);
    // What it said is in the pipe; one that goes on says no more.
    drop(process);
    let mut output = String::new();
    stdout.read_to_string(&mut output).unwrap();
    assert!(status.as_ref().is_ok_and(ExitStatus::success), "{status:?}: {output}");
    output
}

#[test]
fn the_monitor_serves_its_api_in_the_jail_and_boots_a_guest() {
    let Some(place) = place() else { return };
    let child = place.jailer_for(&[""; 0], &[""; 0]).stdout(Stdio::piped()).spawn().unwrap();
    let socket = place.root().join("run/firecracker.socket");
    start_guest(&socket, "hello");
    assert!(output_of(child).contains("hello by the "));
}

#[test]
fn the_monitor_boots_a_guest_from_options_in_the_jail() {
    let Some(place) = place() else { return };
    let options = ["run", "--kernel", "guest", "--cmdline", "scenario=hello", "--seccomp-level", "1"];
    let child = place.jailer_for(&[""; 0], &options).stdout(Stdio::piped()).spawn().unwrap();
    assert!(output_of(child).contains("hello by the "));
    let mut both = place.jailer_for(&["--seccomp-level", "2"], &options);
    let output = both.output().unwrap();
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(153) && line.contains("--seccomp-level"), "{output:?}");
}

#[test]
fn monitor_and_jailer_speak_of_the_same_version_of_the_api() {
    let Some(place) = place() else { return };
    let version = |program: &Path| {
        let output = Command::new(program).arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        (words[0].to_owned(), words[1].to_owned())
    };
    let (name, level) = version(Path::new(env!("CARGO_BIN_EXE_jailer")));
    assert_eq!(name, "Jailer");
    assert_eq!(version(&place.executable()), ("Firecracker".to_owned(), level));
}

#[test]
fn a_config_file_in_the_jail_is_found_by_a_relative_path() {
    let Some(place) = place() else { return };
    let config = r#"{"boot-source": {"kernel_image_path": "/guest", "boot_args": "scenario=hello"}}"#;
    fs::write(place.root().join("vm.json"), config).unwrap();
    let mut command =
        place.jailer_for(&["--resource-limit", "no-file=64"], &["--config-file", "vm.json", "--no-api"]);
    assert!(output_of(command.stdout(Stdio::piped()).spawn().unwrap()).contains("hello by the "));
}

#[test]
fn a_monitor_in_the_background_is_ended_by_a_signal_to_the_number_that_it_left() {
    let Some(place) = place() else { return };
    for options in [&["--daemonize"][..], &["--new-pid-ns"], &["--daemonize", "--new-pid-ns"]] {
        let status = place.jailer_for(options, &["--api-sock", "api.socket"]).stdout(Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(0));
        let pid: u32 = fs::read_to_string(place.base().join("vmm/a/pid")).unwrap().parse().unwrap();
        let socket = place.root().join("api.socket");
        start_guest(&socket, "spin");
        // A thread names itself.
        wait(|| {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let names = threads.map(|thread| fs::read_to_string(thread?.path().join("comm")));
            names.flatten().any(|name| name == "vcpu 0\n")
        });
        // SAFETY: the call takes numbers; the process is this test's.
        assert_eq!(unsafe { libc::kill(pid.cast_signed(), libc::SIGTERM) }, 0);
        wait(|| has_ended(pid));
        fs::remove_file(socket).unwrap();
    }
}

#[test]
fn the_jail_and_landlock_hold_together() {
    let Some(place) = place() else { return };
    if !is_complete() {
        return;
    }
    for disk in ["disk", "other"] {
        let path = place.root().join(disk);
        fs::write(&path, [0; 4096]).unwrap();
        give(&path, UID, GID);
    }
    for (options, status) in [(&["--landlock"][..], "400"), (&[], "204")] {
        let mut child = place.jailer_for(&[""; 0], options).stdout(Stdio::piped()).spawn().unwrap();
        let socket = place.root().join("run/firecracker.socket");
        let disk =
            |path| format!(r#"{{"drive_id": "a", "is_root_device": false, "path_on_host": "{path}"}}"#);
        request(&socket, "GET", "/", "");
        put(&socket, "/drives/a", &disk("disk"));
        start_guest(&socket, "spin");
        for (path, status) in [("disk", "204"), ("other", status)] {
            let change = format!(r#"{{"drive_id": "a", "path_on_host": "{path}"}}"#);
            let answer = request(&socket, "PATCH", "/drives/a", &change);
            assert!(answer.contains(&format!(" {status} ")), "{path}, {options:?}: {answer}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
