//! What the monitor does when something is wrong with itself: crashes, and memory that it does not get.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;

use kindling_integration_tests::harness::{Guest, Stdio};
use serde_json::json;

use crate::api::Api;
use crate::ending::started_with;
use crate::process::{LIMIT, command, images, program};

/// A guest that spins, at a terminal that it has to itself.
pub fn spinning_at_a_terminal(folder: &Path) -> Guest {
    let config = folder.join("config.json");
    let text = json!({
        "boot-source": { "kernel_image_path": images().guest, "boot_args": "scenario=spin" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
    });
    fs::write(&config, text.to_string()).unwrap();
    let mut guest =
        Guest::builder().program(program()).config_file(&config).stdio(Stdio::Pty).start().unwrap();
    guest.wait_for("spinning", LIMIT).unwrap();
    assert_ne!(guest.terminal().unwrap(), guest.terminal_before().unwrap());
    guest
}

#[test]
fn a_crash_leaves_the_terminal_as_it_was_and_is_the_end_that_others_see() {
    let folder = tempfile::tempdir().unwrap();
    let crashes = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT];
    for signal in crashes.into_iter().chain([libc::SIGXCPU]) {
        let mut guest = spinning_at_a_terminal(folder.path());
        guest.signal(signal).unwrap();
        let status = guest.wait_exit(LIMIT).unwrap();
        assert_eq!(status.signal(), Some(signal), "{}", guest.console());
        assert_eq!(guest.terminal().unwrap(), guest.terminal_before().unwrap());
    }
}

#[test]
fn a_monitor_without_memory_ends_though_the_signal_for_that_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let mut vmm = command(&["--http-api-max-payload-size", "1000000000", "--api-sock"]);
    vmm.arg(folder.path().join("api"));
    let limit = libc::rlimit { rlim_cur: 96 << 20, rlim_max: 96 << 20 };
    let set = move || {
        // SAFETY: the call reads the limits that it is given.
        match unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { vmm.pre_exec(set) };
    // A backtrace would take what no thread may do.
    vmm.env("RUST_BACKTRACE", "1");
    let mut api = Api::start(started_with(&mut vmm, libc::SIGABRT, libc::SIG_IGN), folder);
    api.done("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 32}));
    api.boot("spin");
    api.action("InstanceStart");
    api.vmm.wait_for("spinning");

    // There is nobody to answer.
    let _ = api.client.put("/mmds", &json!({"large": "x".repeat(64 << 20)}));
    let ended = api.vmm.end_by(libc::SIGABRT);
    assert!(ended.errors.contains("memory allocation of "), "{ended:?}");
}

#[test]
fn a_large_document_is_kept_where_the_limit_allows_it() {
    let mut api = Api::new(&["--http-api-max-payload-size", "8388608"]);
    api.boot("spin");
    api.action("InstanceStart");
    api.vmm.wait_for("spinning");
    let large = "\u{e9}\"x".repeat(1 << 19);
    let document = json!({"large": large, "small": "x"});
    api.done("PUT", "/mmds", &document);
    api.done("PATCH", "/mmds", &json!({"small": "y"}));
    let kept = api.get("/mmds");
    assert!(kept["large"] == document["large"] && kept["small"] == "y");
    api.terminate();
}
