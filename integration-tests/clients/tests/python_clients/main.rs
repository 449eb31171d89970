//! Clients of Firecracker's API from the Python package index, unchanged, against the real `vmm` with the bare-metal
//! guest, directly on this machine: it has the interpreter, and any `/dev/kvm` will do.
//!
//! `cargo verify` runs this binary with an interpreter that has the clients.
#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kindling_integration_tests::bare_metal::Images;
use kindling_integration_tests::harness::{Process, Tap, on_host, scaled, vmm_path};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::python;
use kindling_integration_tests::run::die_with_parent;
use kindling_integration_tests::workspace;
use tempfile::TempDir;

/// Far beyond what anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

const DISK: &str = "interrupts=0 scenario=blk queues=1 size=4096 depth=4 random=0 write=1";
const NETWORK: &str = "interrupts=0 scenario=net size=64 depth=16 send=1";

/// What is on the disk where the guest has not written zeros.
static UNWRITTEN: [u8; 1 << 20] = [0xff; 1 << 20];
const HALF: u64 = UNWRITTEN.len() as u64 / 2;

/// Has a client run a guest that does as `words` say until it is told to end, and waits until it has done `much` more by then,
/// as `count` counts at the host.
fn run(client: &str, words: &str, count: fn(&Tap, &Path) -> u64, much: u64) {
    let tap = Tap::new("10.0.0.1/24", &[]).unwrap();
    let folder = folder();
    let (socket, disk) = (folder.path().join("api.socket"), folder.path().join("data.img"));
    fs::write(&disk, UNWRITTEN).unwrap();
    // On a thread of its own, which the monitor does not outlive.
    let test = || {
        let mut command = Command::new(vmm_path().unwrap());
        command.arg("--api-sock").arg(&socket).arg("--log-path").arg(folder.path().join("log"));
        command.stdin(Stdio::null());
        let mut monitor = Process::new(die_with_parent(&mut command).spawn().unwrap(), "the monitor");
        wait_until(|| socket.exists() || monitor.status().unwrap().is_some());
        drive(client, &socket, words, &disk);
        // From here on: after the pause.
        File::options().write(true).open(&disk).unwrap().write_all(&UNWRITTEN).unwrap();
        let before = count(&tap, &disk);
        wait_until(|| count(&tap, &disk) >= before + much);
        // As the clients do.
        monitor.signal(SIGTERM).unwrap();
        assert_eq!(monitor.wait(LIMIT).unwrap().code(), Some(128 + SIGTERM));
        // They remove these themselves.
        for left in ["api.socket", "api.socket.vsock"] {
            fs::remove_file(folder.path().join(left)).unwrap();
        }
    };
    tap.inside(test).unwrap();
}

const SIGTERM: i32 = 15;

/// A new folder without a capital in its path: firecracker-python asks for the path of a socket in small letters.
fn folder() -> TempDir {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("kindling-clients-{}-{count}", std::process::id());
    tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir_in("/tmp").unwrap()
}

/// Runs the client's script to its end.
fn drive(client: &str, socket: &Path, words: &str, disk: &Path) {
    let python = python::from_environment().unwrap();
    let folder = workspace::root().join("integration-tests/clients/tests/python_clients");
    let images = Images::build(&Progress::new()).unwrap();
    // For longer than anybody waits.
    let boot_args = format!("ticks=1000000000000000 {words}");
    let paths = [&folder.join(client), socket, &images.guest];
    let [script, socket, kernel] = paths.map(|path| path.to_str().unwrap());
    let arguments = [script, socket, kernel, &boot_args, disk.to_str().unwrap(), Tap::NAME];
    on_host(python.to_str().unwrap(), &arguments, LIMIT).unwrap();
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + scaled(LIMIT);
    while !is_so() {
        assert!(Instant::now() < deadline, "it is not so after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of zeros on the disk.
fn written(_: &Tap, disk: &Path) -> u64 {
    fs::read(disk).unwrap().iter().filter(|byte| **byte == 0).count() as u64
}

/// Frames that the host has received.
fn frames(tap: &Tap, _: &Path) -> u64 {
    let shown = tap.run("ip", &["-json", "-statistics", "link", "show", "dev", Tap::NAME], LIMIT).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[test]
fn firecracker_python_runs_a_guest_that_writes_its_disk() {
    run("firecracker_python.py", DISK, written, HALF);
}

#[test]
fn firecracker_python_runs_a_guest_that_sends_frames() {
    run("firecracker_python.py", NETWORK, frames, 1000);
}

#[test]
fn smolvm_runs_a_guest_that_writes_its_disk() {
    run("smolvm.py", DISK, written, HALF);
}

#[test]
fn smolvm_runs_a_guest_that_sends_frames() {
    run("smolvm.py", NETWORK, frames, 1000);
}
