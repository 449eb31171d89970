//! Options of `vmm run`, the config file, and the command line itself.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;

use kindling_integration_tests::harness::Vmm;

use super::stranger::Stranger;
use super::{BAD_ARGUMENTS, BAD_CONFIGURATION, LIMIT, file, kernel, one_line, refused, run_with};

fn option_refused(option: &str, value: &str) -> String {
    let (_folder, path) = file("kernel", kernel());
    refused(run_with(&path, &[option, value]), BAD_CONFIGURATION, &format!("{option}: "))
}

#[test]
fn command_line_too_long() {
    let line = option_refused("--cmdline", &"x".repeat(2049));
    assert_eq!(line, "must be at most 2048 bytes, got 2049");
}

#[test]
fn command_line_with_a_line_feed() {
    assert!(option_refused("--cmdline", "quiet\npanic=1").contains("control character"));
}

#[test]
fn no_memory() {
    assert!(option_refused("--memory", "0").contains("must be between 1 and"));
}

#[test]
fn memory_too_small_for_the_kernel() {
    let (_folder, path) = file("kernel", kernel());
    let line = refused(run_with(&path, &["--memory", "2M"]), BAD_CONFIGURATION, "--kernel: ");
    assert!(line.contains("beyond the end of RAM"), "{line}");
}

#[test]
fn memory_too_small_for_any_kernel() {
    let line = option_refused("--memory", "1M");
    assert!(line.contains("must reach from 0 past 1 MiB"), "{line}");
}

#[test]
fn more_memory_than_addresses_reach() {
    // The most that can be asked for is 52 bits of addresses, none of them left for the gap below 4 GiB.
    assert!(option_refused("--memory", "4096T").contains("physical addresses"));
}

#[test]
fn more_memory_than_the_host_can_map() {
    let (_folder, path) = file("kernel", kernel());
    let mut vmm = Vmm::new(run_with(&path, &["--memory", "1G"])).unwrap();
    let limit = libc::rlimit { rlim_cur: 512 << 20, rlim_max: 512 << 20 };
    let set = move || {
        // SAFETY: the call reads the limits that it is given.
        let result = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { vmm.command().pre_exec(set) };
    let line = one_line(&vmm.run(LIMIT).unwrap(), BAD_CONFIGURATION, "--memory: ");
    assert!(line.contains("1073741824 bytes") && line.contains("Cannot allocate memory"), "{line}");
}

#[test]
fn memory_that_is_not_a_size() {
    assert!(option_refused("--memory", "lots").contains("got \"lots\""));
}

#[test]
fn no_processors() {
    assert_eq!(option_refused("--cpus", "0"), "must be between 1 and 254, got 0");
}

#[test]
fn too_many_processors() {
    assert_eq!(option_refused("--cpus", "255"), "must be between 1 and 254, got 255");
}

#[test]
fn serial_port_into_a_directory() {
    assert!(option_refused("--serial", "file=/tmp").contains("/tmp"));
}

#[test]
fn serial_port_at_a_socket_that_exists() {
    let (_folder, path) = file("socket", "");
    let line = option_refused("--serial", &format!("socket={}", path.display()));
    assert!(line.contains(path.to_str().unwrap()), "{line}");
    assert!(path.exists(), "what was there stays there");
}

#[test]
fn path_for_metrics_that_is_no_text() {
    let path = OsStr::from_bytes(b"/tmp/\xff");
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let arguments = ["--api-sock".as_ref(), socket.as_os_str(), "--metrics-path".as_ref(), path];
    assert_eq!(refused(arguments, BAD_CONFIGURATION, "metrics.metrics_path: "), "must be UTF-8");
    assert!(!socket.exists());
}

#[test]
fn log_into_a_folder_that_is_not_there() {
    assert!(option_refused("--log-path", "/nonexistent/log").contains("No such file"));
}

#[test]
fn level_that_does_not_exist() {
    assert!(option_refused("--level", "Loud").contains("Loud"));
}

#[test]
fn unknown_option_and_missing_kernel_are_bad_arguments() {
    assert!(refused(["run", "--kernel", "x", "--bogus"], BAD_ARGUMENTS, "").contains("--bogus"));
    assert!(refused(["run"], BAD_ARGUMENTS, "").contains("--kernel"));
    assert!(refused(["run", "--kernel", "x", "--cpus", "many"], BAD_ARGUMENTS, "").contains("--cpus"));
    assert!(refused(["--no-api"], BAD_ARGUMENTS, "").contains("--config-file"));
}

fn config_refused(text: &str, start: &str) -> String {
    let (_folder, path) = file("vm.json", text);
    refused(["--no-api".as_ref(), "--config-file".as_ref(), path.as_os_str()], BAD_CONFIGURATION, start)
}

#[test]
fn unknown_key_in_the_config_file() {
    let text = r#"{"boot-source": {"kernel_image_path": "/vmlinux"}, "machine-config": {"vcpu_count": 1, "vcpus": 2}}"#;
    assert!(config_refused(text, "machine-config").contains("vcpus"));
    let text = r#"{"boot-source": {"kernel_image_path": "/vmlinux"}, "bogus": {}}"#;
    assert!(config_refused(text, "").contains("bogus"));
}

#[test]
fn values_out_of_range_in_the_config_file() {
    let config = |cpus: &str, memory: &str| {
        format!(
            r#"{{"boot-source": {{"kernel_image_path": "/vmlinux"}},
                "machine-config": {{"vcpu_count": {cpus}, "mem_size_mib": {memory}}}}}"#
        )
    };
    let line = config_refused(&config("255", "128"), "machine-config.vcpu_count: ");
    assert_eq!(line, "must be between 1 and 254, got 255");
    let line = config_refused(&config("0", "128"), "machine-config.vcpu_count: ");
    assert_eq!(line, "must be between 1 and 254, got 0");
    let line = config_refused(&config("-1", "128"), "machine-config.vcpu_count: ");
    assert!(line.contains("`-1`") && line.contains("between 1 and 254"), "{line}");
    let line = config_refused(&config("1", "0"), "machine-config.mem_size_mib: ");
    assert_eq!(line, "must be between 1 and 4294967296, got 0");
    let line = config_refused(&config("1", "1e9"), "machine-config.mem_size_mib: ");
    assert!(line.contains("between 1 and 4294967296"), "{line}");
}

#[test]
fn config_file_that_is_not_json() {
    assert!(config_refused("{\"boot-source\": ", "").contains("line 1"));
    assert!(config_refused("", "").contains("EOF"));
}

#[test]
fn config_file_without_a_kernel() {
    assert!(config_refused("{}", "").contains("boot-source"));
}

#[test]
fn config_file_that_cannot_be_read() {
    let missing = ["--no-api", "--config-file", "/nonexistent/vm.json"];
    assert!(refused(missing, BAD_CONFIGURATION, "").contains("No such file"));
    assert!(
        refused(["--no-api", "--config-file", "/tmp"], BAD_CONFIGURATION, "").contains("not a regular file")
    );
}

#[test]
fn config_file_that_is_not_permitted() {
    let stranger = Stranger::new();
    stranger.closed_file("vm.json", "{}");
    let line = stranger.refused(["--no-api", "--config-file", "vm.json"], BAD_CONFIGURATION, "");
    assert!(line.contains("vm.json") && line.contains("Permission denied"), "{line}");
}

#[test]
fn socket_of_the_api_where_something_is_already() {
    let (_folder, path) = file("socket", "");
    let arguments = ["--api-sock".as_ref(), path.as_os_str()];
    let line = refused(arguments, BAD_CONFIGURATION, "--api-sock: ");
    assert!(line.contains("exists already"), "{line}");
    assert!(path.exists(), "what was there stays there");
}

#[test]
fn a_filter_file_that_is_none() {
    let (_folder, path) = file("filter", "[]");
    let line = option_refused("--seccomp-filter", path.to_str().unwrap());
    assert!(line.starts_with("this is no filter file"), "{line}");
    assert!(option_refused("--seccomp-filter", "/nonexistent").contains("cannot open /nonexistent"));
}

#[test]
fn a_filter_file_that_was_cut_off() {
    let (_folder, path) =
        file("filter", [&b"KNDLSECC\x02\0\0\0\x3e\0\0\xc0"[..], &[1, 0, 0, 0].repeat(5)].concat());
    let line = option_refused("--seccomp-filter", path.to_str().unwrap());
    assert_eq!(line, "the filter file has 36 bytes, where it says 76");
}

#[test]
fn a_filter_file_of_another_version() {
    let (_folder, path) = file("filter", b"KNDLSECC\x01\0\0\0\x3e\0\0\xc0");
    let line = option_refused("--seccomp-filter", path.to_str().unwrap());
    assert_eq!(line, "a filter file of version 1, where version 2 is understood");
}

#[test]
fn filters_that_cannot_be_compiled() {
    let (folder, path) = file("filters.json", r#"{ "vmm": {} }"#);
    let output = folder.path().join("out");
    let compile =
        ["seccomp", "compile", "--input", path.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let line = refused(compile, BAD_CONFIGURATION, "--input: ");
    assert_eq!(line, "vmm.filter must be an array of objects");
    assert!(!output.exists());
}

#[test]
fn a_level_of_filters_that_is_none() {
    let (_folder, path) = file("kernel", kernel());
    refused(
        run_with(&path, &["--seccomp-level", "3"]),
        BAD_ARGUMENTS,
        "invalid value '3' for '--seccomp-level",
    );
}
