//! Which system calls the threads of `vmm` may make, and what becomes of one that makes another.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use kindling_api::client::Client;
use kindling_integration_tests::harness::{Guest, Stdio, jail};
use serde_json::{Value, json};

use crate::process::{LIMIT, Vmm, command, finish, finish_run, images, program, run, until};

/// The profiles as they are written.
const PROFILES: [&str; 6] = [
    include_str!("../../../crates/seccomp-profiles/profiles/x86_64/every.json"),
    include_str!("../../../crates/seccomp-profiles/profiles/x86_64/vmm.json"),
    include_str!("../../../crates/seccomp-profiles/profiles/x86_64/api.json"),
    include_str!("../../../crates/seccomp-profiles/profiles/x86_64/vcpu.json"),
    include_str!("../../../crates/seccomp-profiles/profiles/x86_64/io.json"),
    include_str!("../../../crates/seccomp-profiles/profiles/x86_64/vsock.json"),
];

/// `KVM_RUN`.
const KVM_RUN: u64 = 0xae80;

/// A number in a file of `/proc`.
fn number(status: &str, field: &str) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().parse().unwrap()
}

fn filters_of(status: &Path) -> u32 {
    number(&std::fs::read_to_string(status).unwrap(), "Seccomp_filters")
}

/// How many filters each thread is bound to, beyond those that this process has.
fn filters(vmm: &Vmm) -> BTreeMap<String, u32> {
    let ours = filters_of(Path::new("/proc/self/status"));
    let of_thread = |(name, folder): (String, PathBuf)| (name, filters_of(&folder.join("status")) - ours);
    // KVM has a thread of its own in the process, which runs nothing of it.
    let is_ours = |(name, _): &(String, PathBuf)| !name.starts_with("kvm-");
    vmm.tasks().into_iter().filter(is_ours).map(of_thread).collect()
}

#[test]
fn every_thread_is_bound_to_a_filter_of_its_own_while_the_guest_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, socket) = (folder.path().join("disk"), folder.path().join("api.socket"));
    std::fs::write(&disk, [0; 4096]).unwrap();
    let disk = disk.to_str().unwrap();
    let socket = socket.to_str().unwrap();
    for (level, count) in [("0", 0), ("1", 1), ("2", 1)] {
        let options =
            ["--disk", disk, "--rng", "--api-sock", socket, "--cpus", "2", "--seccomp-level", level];
        let mut vmm = Vmm::start(&mut run("spin", &options));
        vmm.wait_for("spinning");
        let filters = filters(&vmm);
        for name in ["api", "io disk0", "io quiet", "vcpu 0", "vcpu 1"] {
            assert!(filters.contains_key(name), "{name}: {filters:?}");
        }
        // The first thread has the name of its program's file.
        assert!(
            filters.len() == 6 && filters.values().all(|bound| *bound == count),
            "level {level}: {filters:?}"
        );
        vmm.signal(libc::SIGTERM);
        vmm.end(143);
    }
}

#[test]
fn the_monitor_is_in_a_jail_if_the_tests_say_so_and_bound_in_any_case() {
    let mut vmm = Vmm::start(&mut run("spin", &[]));
    vmm.wait_for("spinning");
    let folder = PathBuf::from(format!("/proc/{}", vmm.id()));
    let status = std::fs::read_to_string(folder.join("status")).unwrap();
    let root =
        |path: &Path| std::fs::metadata(path.join("root")).map(|meta| (meta.dev(), meta.ino())).unwrap();
    let shares_our_root = root(&folder) == root(Path::new("/proc/self"));
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next());
    let is_jails_user = uid == Some(&jail::USER.to_string());
    assert_eq!((shares_our_root, is_jails_user), (!jail::is_used(), jail::is_used()), "{status}");
    assert_eq!((number(&status, "Seccomp"), number(&status, "NoNewPrivs")), (2, 1), "{status}");
    if jail::is_used() {
        assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
    }
    vmm.signal(libc::SIGTERM);
    vmm.end(143);
}

#[test]
fn a_guest_runs_and_ends_at_every_level() {
    for options in [&["--no-seccomp"][..], &["--seccomp-level", "0"], &["--seccomp-level", "1"]] {
        let ended = finish_run("hello", options, 0);
        assert!(ended.output.contains("hello by the ") && ended.errors.is_empty(), "{ended:?}");
    }
}

/// A file with the filters of the profiles, changed by `change`.
fn filter_file(folder: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut all = json!({});
    for text in PROFILES {
        let profile: BTreeMap<String, Value> = serde_json::from_str(text).unwrap();
        profile.into_iter().for_each(|(name, filter)| all[name] = filter);
    }
    change(&mut all);
    let (input, output) = (folder.join("filters.json"), folder.join("filters.bpf"));
    std::fs::write(&input, all.to_string()).unwrap();
    let mut compile = command(&["seccomp", "compile", "--input"]);
    finish(compile.arg(input).arg("--output").arg(&output), 0);
    output
}

/// Takes the one rule out of the filter for this kind of thread that is meant.
fn take_rule(filters: &mut Value, kind: &str, is_meant: impl Fn(&Value) -> bool) {
    let rules = filters[kind]["filter"].as_array_mut().unwrap();
    let before = rules.len();
    rules.retain(|rule| !is_meant(rule));
    assert_eq!(rules.len(), before - 1);
}

/// The filters without the one thing that a vCPU is for.
fn without_kvm_run(filters: &mut Value) {
    take_rule(filters, "vcpu", |rule| rule["args"][0]["val"] == json!(KVM_RUN));
}

/// The filters without a system call that this kind of thread has a single rule for.
fn without(kind: &str, call: &str) -> impl FnOnce(&mut Value) {
    move |filters| take_rule(filters, kind, |rule| rule["syscall"] == call)
}

#[test]
fn filters_of_ones_own_serve_like_the_embedded_ones() {
    let folder = tempfile::tempdir().unwrap();
    let file = filter_file(folder.path(), |_| ());
    let ended = finish_run("hello", &["--seccomp-filter", file.to_str().unwrap()], 0);
    assert!(ended.output.contains("hello by the ") && ended.errors.is_empty(), "{ended:?}");
}

#[test]
fn the_sockets_device_has_a_filter_of_its_own_and_a_disk_has_that_of_devices() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("disk"), [0; 4096]).unwrap();
    let disk = ["--disk", &path("disk")];
    let vsock = ["--vsock", &format!("cid=3,path={}", path("vsock"))];
    for (kind, others, device, thread) in [("io", vsock, disk, "disk0"), ("vsock", disk, vsock, "vsock")] {
        let file = filter_file(folder.path(), without(kind, "epoll_wait"));
        let options = ["--seccomp-filter", file.to_str().unwrap()];
        let ended = finish_run("hello", &[options, others].concat(), 0);
        assert!(ended.output.contains("hello by the ") && ended.errors.is_empty(), "{ended:?}");
        let ended = finish_run("spin", &[options, device].concat(), 148);
        let line =
            format!("vmm: the thread \"io {thread}\" made the forbidden system call epoll_wait (232)\n");
        assert_eq!(ended.errors, line);
    }
}

#[test]
fn a_forbidden_call_is_reported_and_ends_the_process_with_its_own_code() {
    const LINE: &str = "vmm: the thread \"vcpu 0\" made the forbidden system call ioctl (16)\n";
    let folder = tempfile::tempdir().unwrap();
    let file = filter_file(folder.path(), without_kvm_run);
    let log = folder.path().join("log");
    let options = ["--seccomp-filter", file.to_str().unwrap(), "--log-path", log.to_str().unwrap()];
    let ended = finish_run("hello", &options, 148);
    assert_eq!((ended.output.as_str(), ended.errors.as_str()), ("", LINE));
    assert_eq!(std::fs::read_to_string(log).unwrap(), LINE);
}

#[test]
fn before_the_guest_starts_a_forbidden_call_is_in_the_log_that_there_is_by_then() {
    const LINE: &str = "vmm: the thread \"api\" made the forbidden system call writev (20)\n";
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // It cannot answer, and so what it was asked for is done by then.
    let file = filter_file(folder.path(), without("api", "writev"));
    let start = |socket: &Path| {
        let mut vmm = command(&["--api-sock"]);
        vmm.arg(socket).arg("--seccomp-filter").arg(&file).arg("--log-path").arg(path("log"));
        let vmm = Vmm::start(&mut vmm);
        until("the API is there", || UnixStream::connect(socket).is_ok());
        (vmm, Client::new(socket).with_timeout(LIMIT))
    };
    let log = |name: &str| std::fs::read_to_string(path(name)).unwrap();

    let (vmm, client) = start(&path("first.socket"));
    client.get("/").unwrap_err();
    assert_eq!((vmm.end(148).errors.as_str(), log("log").as_str()), (LINE, LINE));

    let (vmm, client) = start(&path("second.socket"));
    client.put("/logger", &json!({ "log_path": path("other") })).unwrap_err();
    assert_eq!((vmm.end(148).errors.as_str(), log("other").as_str()), (LINE, LINE));
    assert_eq!(log("log"), LINE, "from before");
}

#[test]
fn a_forbidden_call_leaves_the_terminal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let filters = filter_file(folder.path(), without_kvm_run);
    let config = folder.path().join("config.json");
    let kernel = json!({ "kernel_image_path": images().guest, "boot_args": "scenario=hello" });
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": 64 });
    let text = json!({ "boot-source": kernel, "machine-config": machine }).to_string();
    std::fs::write(&config, text).unwrap();
    let builder = Guest::builder().program(program()).config_file(config).stdio(Stdio::Pty);
    let mut guest = builder.arg("--seccomp-filter").arg(filters).start().unwrap();
    let status = guest.wait_exit(LIMIT).unwrap();
    assert_eq!(status.code(), Some(148), "{}", guest.console());
    assert_eq!(guest.terminal().unwrap(), guest.terminal_before().unwrap());
    assert!(
        guest.console().contains("\"vcpu 0\" made the forbidden system call ioctl"),
        "{}",
        guest.console()
    );
}
