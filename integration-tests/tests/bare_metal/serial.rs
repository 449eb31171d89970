//! The serial port at the other ends it can have: a pseudo-terminal and a Unix socket.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::{Console, scaled};

use crate::process::{LIMIT, Vmm, command, images, run};

#[test]
fn a_pseudo_terminal_carries_both_directions() {
    let mut vmm = Vmm::start(&mut run("echo", &["--serial", "pty"]));
    let path = vmm.wait_for_error("vmm: the serial port is at ");
    let terminal = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap();
    let mut console = Console::new(terminal.try_clone().unwrap(), Some(Box::new(terminal)));
    // What the guest said before somebody opened the terminal is kept.
    console.wait_for("ready\n", LIMIT).unwrap();
    typed_comes_back(&mut console);
    let ended = vmm.end(0);
    assert_eq!(ended.output, "", "standard output is not the console");
}

#[test]
fn a_socket_carries_both_directions_and_is_gone_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    serves_a_socket(&mut run("echo", &["--serial", &format!("socket={}", path.display())]), &path);
}

#[test]
fn a_socket_of_the_config_file_does_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (file, path) = (folder.path().join("vm.json"), folder.path().join("console"));
    let config = serde_json::json!({
        "boot-source": { "kernel_image_path": images().guest, "boot_args": "scenario=echo" },
        "serial": { "mode": "Socket", "serial_out_path": path },
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let arguments = ["--config-file".as_ref(), file.as_os_str(), "--no-api".as_ref()];
    serves_a_socket(&mut command(&arguments), &path);
}

/// Starts a guest that echoes, talks to it through the socket, and ends it.
fn serves_a_socket(command: &mut Command, path: &Path) {
    let vmm = Vmm::start(command);
    let start = Instant::now();
    let in_time = || start.elapsed() < scaled(LIMIT);
    let client = loop {
        match UnixStream::connect(path) {
            Ok(client) => break client,
            Err(error) => assert!(in_time(), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut console = Console::new(client.try_clone().unwrap(), Some(Box::new(client)));
    // Without a client there is nobody to keep output for, and a guest that is not up yet takes no input. Once an `a`
    // has come, of its `ready` or as an echo, it listens.
    loop {
        console.send(b"a").unwrap();
        match console.wait_for("a", Duration::from_millis(100)) {
            Ok(_) => break,
            Err(error) => assert!(in_time(), "{error}"),
        }
    }
    console.send(b"\n").unwrap();
    typed_comes_back(&mut console);
    let ended = vmm.end(0);
    assert_eq!(ended.output, "", "standard output is not the console");
    console.wait_end(LIMIT).unwrap();
    assert!(!path.exists(), "the socket is left behind");
}

/// Types a line at the guest's scenario `echo`, sees it, and ends the guest.
fn typed_comes_back(console: &mut Console) {
    console.send(b"typed\n").unwrap();
    console.wait_for("typed\n", LIMIT).unwrap();
    console.send(b"q\n").unwrap();
}
