//! What `vmm` can reach of its host when Landlock restricts it, and what becomes of it where the kernel has none.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kindling_api::client::Client;
use kindling_integration_tests::harness::scaled;
use kindling_integration_tests::landlock::is_complete;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::intruder::Intruder;
use crate::process::{LIMIT, Vmm, command, filter, finish, images, run, until};

/// A folder with two disks, of which the guest is given the first.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Host(tempfile::tempdir().unwrap());
        for disk in ["disk", "other"] {
            fs::write(host.path(disk), [0; 4096]).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// `vmm run` with the first disk, an API and these options besides.
    fn run(&self, options: &[&str]) -> Vmm {
        let (disk, api) = (self.text("disk"), self.text("api"));
        let mut vmm = Vmm::start(run("spin", &["--disk", &disk, "--api-sock", &api]).args(options));
        vmm.wait_for("spinning");
        vmm
    }

    /// `vmm` with an API and these options besides.
    fn serve(&self, options: &[&str]) -> Vmm {
        let vmm = Vmm::start(command(&["--api-sock"]).arg(self.path("api")).args(options));
        until("the API is there", || self.client().get("/").is_ok());
        vmm
    }

    fn put(&self, path: &str, body: &Value) {
        let response = self.client().put(path, body).unwrap();
        assert_eq!(response.status, 204, "{path}: {}", response.body);
    }

    fn client(&self) -> Client {
        Client::new(self.path("api")).with_timeout(LIMIT)
    }

    /// Has the guest's disk be this file: the status, and the body.
    fn change_disk(&self, name: &str) -> (u16, String) {
        let body = json!({ "drive_id": "disk0", "path_on_host": self.path(name) });
        let response = self.client().patch("/drives/disk0", &body).unwrap();
        (response.status, response.body)
    }
}

fn terminate(mut vmm: Vmm) {
    let start = Instant::now();
    vmm.signal(libc::SIGTERM);
    vmm.end(143);
    assert!(start.elapsed() < scaled(Duration::from_secs(10)), "a vCPU does not leave its guest");
}

/// What whoever takes over a thread gets: whether it can read a file of the host, write to the guest's disk, and signal
/// another process.
fn reached(host: &Host, thread: &Path) -> [bool; 3] {
    let thread: libc::pid_t = thread.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let intruder = Intruder::new(thread);
    [
        intruder.open(Path::new("/etc/passwd"), libc::O_RDONLY),
        intruder.open(&host.path("disk"), libc::O_RDWR),
        intruder.kill(std::process::id() as libc::pid_t, 0),
    ]
    .map(|result| match result {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
        Err(error) => panic!("{error}"),
    })
}

fn reached_by_each(host: &Host, vmm: &Vmm) -> BTreeMap<String, [bool; 3]> {
    // KVM has a thread of its own in the process, which runs nothing of it.
    let tasks = vmm.tasks().into_iter().filter(|(name, _)| !name.starts_with("kvm-"));
    tasks.map(|(name, task)| (name, reached(host, &task))).collect()
}

#[test]
fn whoever_takes_over_a_thread_of_vmm_run_reaches_the_disk_at_most() {
    if !is_complete() {
        return;
    }
    let host = Host::new();
    let options = ["--rng", "--cpus", "2", "--no-seccomp"];
    let vmm = host.run(&options);
    let reached = reached_by_each(&host, &vmm);
    assert_eq!(reached.len(), 6, "{reached:?}");
    for (thread, reached) in reached {
        // What is served to clients needs no file at all.
        assert_eq!(reached, [false, thread != "api", false], "{thread}");
    }
    terminate(vmm);

    let vmm = host.run(&[&options[..], &["--landlock=off"]].concat());
    let reached = reached_by_each(&host, &vmm);
    assert!(reached.len() == 6 && reached.values().all(|reached| *reached == [true; 3]), "{reached:?}");
    terminate(vmm);
}

#[test]
fn a_running_guests_disk_can_be_a_file_of_the_configuration_only() {
    if !is_complete() {
        return;
    }
    let host = Host::new();
    let vmm = host.run(&[]);
    assert_eq!(host.change_disk("disk"), (204, String::new()));
    let (status, fault) = host.change_disk("other");
    assert_eq!(status, 400, "{fault}");
    for part in ["path_on_host", "Permission denied", "with --landlock, "] {
        assert!(fault.contains(part), "{fault}");
    }
    let missing = host.change_disk("missing");
    assert!(missing.0 == 400 && missing.1.contains("No such file"), "{missing:?}");
    assert_eq!(host.change_disk("disk"), (204, String::new()));
    terminate(vmm);

    let vmm = host.run(&["--landlock=off"]);
    assert_eq!(host.change_disk("other"), (204, String::new()));
    terminate(vmm);
}

#[test]
fn vmm_alone_is_restricted_when_it_is_asked_to_and_its_guest_starts() {
    if !is_complete() {
        return;
    }
    for (options, changed) in [(&["--landlock"][..], 400), (&["--landlock=require"], 400), (&[], 204)] {
        let host = Host::new();
        let mut vmm = host.serve(options);
        let put = |path: &str, body: Value| host.put(path, &body);
        // Until then, files can be named that the command line does not.
        put("/logger", json!({ "log_path": host.path("log") }));
        put("/metrics", json!({ "metrics_path": host.path("metrics") }));
        put("/serial", json!({ "serial_out_path": host.path("serial") }));
        put("/boot-source", boot_source());
        put("/drives/disk0", drive(&host.path("other")));
        put("/drives/disk0", drive(&host.path("disk")));
        put("/actions", json!({ "action_type": "InstanceStart" }));
        until("the guest spins", || fs::read_to_string(host.path("serial")).unwrap().contains("spinning"));
        assert_eq!(host.change_disk("disk").0, 204, "{options:?}");
        assert_eq!(host.change_disk("other").0, changed, "{options:?}");
        put("/actions", json!({ "action_type": "FlushMetrics" }));
        assert_eq!(fs::read_to_string(host.path("metrics")).unwrap().lines().count(), 1);
        vmm.signal(libc::SIGTERM);
        vmm.end(143);
        assert!(fs::read_to_string(host.path("log")).unwrap().contains("received signal 15"));
        assert!(host.path("api").exists(), "the socket stays behind");
    }
}

#[test]
fn the_disk_that_is_open_can_be_reached_and_not_what_its_path_leads_to_when_the_guest_starts() {
    if !is_complete() {
        return;
    }
    let host = Host::new();
    let mut vmm = host.serve(&["--landlock"]);
    host.put("/serial", &json!({ "serial_out_path": host.path("serial") }));
    host.put("/boot-source", &boot_source());
    host.put("/drives/disk0", &drive(&host.path("disk")));
    fs::rename(host.path("disk"), host.path("moved")).unwrap();
    symlink("other", host.path("disk")).unwrap();
    host.put("/actions", &json!({ "action_type": "InstanceStart" }));
    until("the guest spins", || fs::read_to_string(host.path("serial")).unwrap().contains("spinning"));
    for name in ["disk", "other"] {
        let (status, fault) = host.change_disk(name);
        assert!(status == 400 && fault.contains("Permission denied"), "{name}: {status} {fault}");
    }
    assert_eq!(host.change_disk("moved"), (204, String::new()));
    vmm.signal(libc::SIGTERM);
    vmm.end(143);
}

fn boot_source() -> Value {
    json!({ "kernel_image_path": images().guest, "boot_args": "scenario=spin" })
}

fn drive(path: &Path) -> Value {
    json!({ "drive_id": "disk0", "is_root_device": false, "path_on_host": path })
}

#[test]
fn a_restricted_vmm_removes_its_sockets_and_knows_its_size() {
    if !is_complete() {
        return;
    }
    let host = Host::new();
    let (serial, vsock) = (format!("socket={}", host.text("serial")), host.text("vsock"));
    let vsock = format!("cid=3,path={vsock}");
    let api = host.text("api");
    let options = ["--serial", &serial, "--vsock", &vsock, "--api-sock", &api, "--landlock=require"];
    let vmm = Vmm::start(&mut run("spin", &options));
    until("the API is there", || host.client().get("/").is_ok());
    let metrics = host.client().get("/metrics").unwrap().body;
    assert!(metrics.contains("\nkindling_process_resident_memory_bytes "), "{metrics}");
    for socket in ["api", "vsock", "serial"] {
        assert!(host.path(socket).exists(), "{socket}");
    }
    terminate(vmm);
    for socket in ["api", "vsock", "serial"] {
        assert!(!host.path(socket).exists(), "{socket}");
    }
}

/// Has the command run as on a kernel without Landlock.
fn without_landlock(command: &mut Command) -> &mut Command {
    let without = || {
        let action = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        let mut filter = filter(libc::SYS_landlock_create_ruleset, action);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the first call takes numbers, the second reads the program, which lives across it.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(without) }
}

const NONE: &str = "the kernel has no Landlock: Function not implemented (os error 38)";

#[test]
fn a_kernel_without_landlock_gets_a_warning_and_the_guest_runs() {
    for options in [&[][..], &["--landlock"]] {
        let ended = finish(without_landlock(&mut run("hello", options)), 0);
        assert!(ended.output.contains("hello by the "), "{ended:?}");
        assert!(ended.errors.ends_with(&format!(" vmm: {NONE}\n")), "{ended:?}");
        assert_eq!(ended.errors.lines().count(), 1, "{ended:?}");
    }
    let host = Host::new();
    let log = host.text("log");
    let ended = finish(without_landlock(&mut run("hello", &["--log-path", &log])), 0);
    assert_eq!(ended.errors, "");
    assert!(fs::read_to_string(log).unwrap().contains(NONE));
    let ended = finish(without_landlock(&mut run("hello", &["--landlock=off"])), 0);
    assert_eq!(ended.errors, "");
}

#[test]
fn a_kernel_without_landlock_is_refused_where_it_is_required() {
    for command in [&mut run("hello", &["--landlock=require"]), &mut command(&["--landlock=require"])] {
        let ended = finish(without_landlock(command), 152);
        assert_eq!((ended.output.as_str(), ended.errors), ("", format!("vmm: --landlock: {NONE}\n")));
    }
}
