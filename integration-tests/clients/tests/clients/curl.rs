//! `curl`, in the way of documents that show how to get started with Firecracker: a command per request, and no header
//! but those that it sends by itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::{Process, Tap, on_host, scaled};
use kindling_integration_tests::run::die_with_parent;
use serde_json::{Value, json};

use super::{END_LIMIT, SOON, Setup, Shell, boot_args, names, use_disk_and_network};

/// A monitor and its guest, as a person has them in a terminal.
struct Terminal<'a> {
    socket: &'a Path,
}

impl Terminal<'_> {
    /// The status and the body of the reply to a request.
    fn curl(&self, method: &str, path: &str, body: &Value) -> (String, Value) {
        let (socket, url) = (self.socket.to_str().unwrap(), format!("http://localhost{path}"));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut arguments = vec!["--silent", "--show-error", "--unix-socket", socket, "--request", method];
        if !body.is_empty() {
            arguments.extend(["--data", &body]);
        }
        arguments.extend(["--write-out", "\n%{http_code}", &url]);
        let output = on_host("curl", &arguments, SOON).unwrap();
        let (body, status) = output.rsplit_once('\n').unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
        (status.to_owned(), body)
    }

    /// Has a request done that answers nothing.
    fn put(&self, path: &str, body: &Value) {
        assert_eq!(self.curl("PUT", path, body), ("204".to_owned(), Value::Null), "{path} {body}");
    }

    fn patch(&self, path: &str, body: &Value) {
        assert_eq!(self.curl("PATCH", path, body), ("204".to_owned(), Value::Null), "{path} {body}");
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.curl("GET", path, &Value::Null);
        assert_eq!(status, "200", "{path}: {body}");
        body
    }
}

/// Describes the guest of every document: a kernel, a root disk, a network interface; and a disk of its own besides.
fn describe(terminal: &Terminal<'_>, setup: &Setup) {
    terminal.put("/logger", &json!({"log_path": setup.path("log"), "level": "Debug", "show_level": true}));
    terminal.put(
        "/boot-source",
        &json!({
            "kernel_image_path": setup.image.vmlinux(),
            "initrd_path": setup.image.initramfs(),
            "boot_args": boot_args(&[]),
        }),
    );
    let root = |path: &Path| json!({"drive_id": "rootfs", "path_on_host": path, "is_root_device": true, "is_read_only": true});
    let (status, body) = terminal.curl("PUT", "/drives/rootfs", &root(&setup.path("nothing")));
    let message = body["fault_message"].as_str().unwrap();
    assert!(status == "400" && message.contains("path_on_host"), "{status} {body}");
    terminal.put("/drives/rootfs", &root(&setup.root));
    let data = json!({"drive_id": "data", "path_on_host": setup.path("data.img"), "is_root_device": false});
    terminal.put("/drives/data", &data);
    terminal.put(
        "/network-interfaces/net1",
        &json!({"iface_id": "net1", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": Tap::NAME}),
    );
    terminal.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 512}));
}

#[test]
fn curl_runs_a_guest_as_documents_for_beginners_do() {
    let setup = Setup::new();
    // On a thread of its own, which the monitor does not outlive.
    setup.tap.inside(|| run(&setup)).unwrap();
}

fn run(setup: &Setup) {
    let socket = setup.path("firecracker.socket");
    let mut command = Command::new(setup.path("firecracker"));
    command.arg("--api-sock").arg(&socket).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = die_with_parent(&mut command).spawn().unwrap();
    let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut monitor = Process::new(child, "the monitor");
    let deadline = Instant::now() + scaled(SOON);
    while !socket.exists() {
        assert!(Instant::now() < deadline && monitor.status().unwrap().is_none(), "there is no socket");
        std::thread::sleep(Duration::from_millis(5));
    }

    let terminal = Terminal { socket: &socket };
    let state = || terminal.get("/")["state"].as_str().unwrap().to_owned();
    describe(&terminal, setup);
    assert_eq!(state(), "Not started");
    terminal.put("/actions", &json!({"action_type": "InstanceStart"}));
    assert_eq!(state(), "Running");
    let mut shell = Shell::new(output, input);
    use_disk_and_network(&mut shell, &setup.path("data.img"), &setup.tap);
    assert_eq!(shell.output("nproc; cat /sys/class/net/eth0/address"), "2\n06:00:ac:10:00:02");
    assert_eq!(terminal.get("/vm/config")["network-interfaces"][0]["iface_id"], "net1");

    terminal.patch("/vm", &json!({"state": "Paused"}));
    assert_eq!(state(), "Paused");
    terminal.patch("/vm", &json!({"state": "Resumed"}));
    shell.output("true");
    let (status, body) =
        terminal.curl("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 512}));
    assert!(status == "400" && body["fault_message"].is_string(), "{status} {body}");

    terminal.put("/actions", &json!({"action_type": "SendCtrlAltDel"}));
    assert_eq!(monitor.wait(END_LIMIT).unwrap().code(), Some(0));
    // Those who follow documents begin again with `rm -f` of the socket.
    assert_eq!(names(setup.folder.path()), ["data.img", "firecracker", "firecracker.socket", "log"]);
}
