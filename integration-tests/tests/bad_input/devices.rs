//! Options of `vmm run` that describe devices, and their sections of the config file.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{BAD_ARGUMENTS, BAD_CONFIGURATION, kernel, refused, run_with};

/// A folder with a `kernel`, a `disk` of 1 MiB and a `fifo`.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), kernel()).unwrap();
    File::create(folder.path().join("disk")).unwrap().set_len(1 << 20).unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("fifo")).status().unwrap().success());
    folder
}

/// Replaces `@` by the folder's path.
fn place(folder: &Path, text: &str) -> String {
    text.replace('@', folder.to_str().unwrap())
}

#[test]
fn options_that_describe_no_device() {
    let folder = folder();
    let long = format!("cid=3,path=/{}", "x".repeat(107));
    for (arguments, code, start, cause) in [
        ("--disk @/none", BAD_CONFIGURATION, "--disk: drives[0].path_on_host: ", "@/none: No such file"),
        ("--disk @", BAD_CONFIGURATION, "--disk: drives[0].path_on_host: ", "Is a directory"),
        ("--disk @/fifo", BAD_CONFIGURATION, "--disk: drives[0].path_on_host: ", "@/fifo is neither"),
        ("--disk @/disk,fast", BAD_ARGUMENTS, "", "\"fast\""),
        ("--disk @/disk,queues=-1", BAD_ARGUMENTS, "", "queues must be a number"),
        ("--disk @/disk,queues=17", BAD_CONFIGURATION, "--disk: drives[0].num_queues: ", "1 and 16"),
        ("--disk @/disk,queue-size=24", BAD_CONFIGURATION, "--disk: drives[0].queue_size: ", "power of two"),
        ("--disk @/disk,direct,sector=1024", BAD_CONFIGURATION, "--disk: drives[0].logical_", "512 or 4096"),
        ("--disk @/disk,partuuid=0-1", BAD_ARGUMENTS, "", "root device"),
        (
            "--disk @/disk,id=a --disk @/disk,id=a",
            BAD_CONFIGURATION,
            "--disk: drives[1].drive_id: ",
            "has a too",
        ),
        (
            "--disk @/disk,root --disk @/disk,root",
            BAD_CONFIGURATION,
            "--disk: drives[1].is_root_device: ",
            "drives[0] is the root",
        ),
        ("--net mac=06:00:00:00:00:01", BAD_ARGUMENTS, "", "tap=NAME"),
        ("--net tap=t,mac=6", BAD_ARGUMENTS, "", "mac must be"),
        ("--net tap=a/b", BAD_CONFIGURATION, "--net: network-interfaces[0].host_dev_name: ", "\"a/b\""),
        (
            "--net tap=abcdefghijklmnop",
            BAD_CONFIGURATION,
            "--net: network-interfaces[0].host_dev_name: ",
            "15",
        ),
        ("--net tap=lo", BAD_CONFIGURATION, "--net: network-interfaces[0].host_dev_name: ", "tap lo: "),
        ("--net tap=t,mtu=67", BAD_CONFIGURATION, "--net: network-interfaces[0].mtu: ", "68 and 65535"),
        ("--vsock cid=3", BAD_ARGUMENTS, "", "cid=N,path=PATH"),
        ("--vsock cid=2,path=@/socket", BAD_CONFIGURATION, "--vsock: guest_cid: ", "got 2"),
        ("--vsock cid=3,path=@/disk", BAD_CONFIGURATION, "--vsock: uds_path: ", "@/disk: Address already in"),
        (&format!("--vsock {long}"), BAD_CONFIGURATION, "--vsock: uds_path: ", "at most 107 bytes, got 108"),
        ("--vsock cid=3,path=@/s --vsock cid=4,path=@/t", BAD_ARGUMENTS, "", "multiple times"),
        ("--balloon lots", BAD_ARGUMENTS, "", "\"lots\""),
        ("--balloon 1M,fast", BAD_ARGUMENTS, "", "\"fast\""),
        ("--balloon 129M", BAD_CONFIGURATION, "--balloon: amount_mib: ", "memory of 128 MiB, got 129"),
    ] {
        let arguments = place(folder.path(), arguments);
        let more: Vec<_> = arguments.split(' ').collect();
        let line = refused(run_with(&folder.path().join("kernel"), &more), code, start);
        assert!(line.contains(&place(folder.path(), cause)), "{arguments}: {line}");
    }
    assert_eq!(
        fs::metadata(folder.path().join("disk")).unwrap().len(),
        1 << 20,
        "what was there stays there"
    );
}

#[test]
fn sections_that_describe_no_device() {
    let folder = folder();
    let path = folder.path().join("vm.json");
    for (section, start, cause) in [
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "@/none", "is_root_device": false}]"#,
            "drives[0].path_on_host: ",
            "No such file",
        ),
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "@/fifo", "is_root_device": false}]"#,
            "drives[0].path_on_host: ",
            "is neither",
        ),
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "@/disk", "is_root_device": false, "fast": true}]"#,
            "drives[0]",
            "fast",
        ),
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "@/disk", "is_root_device": true},
                          {"drive_id": "b", "path_on_host": "@/disk", "is_root_device": true}]"#,
            "drives[1].is_root_device: ",
            "drives[0]",
        ),
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "@/disk", "is_root_device": false},
                          {"drive_id": "a", "path_on_host": "@/disk", "is_root_device": false}]"#,
            "drives[1].drive_id: ",
            "has a too",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "host_dev_name": "a/b"}]"#,
            "network-interfaces[0].host_dev_name: ",
            "\"a/b\"",
        ),
        (r#""vsock": {"guest_cid": 2, "uds_path": "@/socket"}"#, "vsock.guest_cid: ", "got 2"),
        (r#""vsock": {"guest_cid": 3, "uds_path": "@/disk"}"#, "vsock.uds_path: ", "Address already in use"),
        (
            r#""entropy": {"rate_limiter": {"bandwidth": {"size": -1, "refill_time": 1}}}"#,
            "entropy.rate_limiter.bandwidth.size: ",
            "-1",
        ),
        (r#""balloon": {"amount_mib": 129, "deflate_on_oom": false}"#, "balloon.amount_mib: ", "got 129"),
    ] {
        let config = format!(r#"{{"boot-source": {{"kernel_image_path": "@/kernel"}}, {section}}}"#);
        fs::write(&path, place(folder.path(), &config)).unwrap();
        let arguments = ["--no-api".as_ref(), "--config-file".as_ref(), path.as_os_str()];
        let line = refused(arguments, BAD_CONFIGURATION, start);
        assert!(line.contains(cause), "{section}: {line}");
    }
}

#[test]
fn a_start_that_fails_leaves_no_socket() {
    let folder = folder();
    let socket = folder.path().join("socket");
    let vsock = format!("cid=3,path={}", socket.display());
    let arguments = ["--memory", "2M", "--vsock", &vsock];
    refused(run_with(&folder.path().join("kernel"), &arguments), BAD_CONFIGURATION, "--kernel: ");
    assert!(!socket.exists());
}
