//! Files, sockets and taps that requests name: opened at once, released when they are replaced, and told apart from those
//! that cannot be had.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use kindling_integration_tests::harness::{Tap, jail};
use serde_json::{Value, json};

use super::{Api, boot_source, tap};
use crate::process::{command, images, until};

fn drive(path: impl serde::Serialize) -> Value {
    json!({"drive_id": "a", "is_root_device": false, "path_on_host": path})
}

fn vsock(path: impl serde::Serialize) -> Value {
    json!({"guest_cid": 3, "uds_path": path})
}

fn interface() -> Value {
    json!({"iface_id": "n", "host_dev_name": Tap::NAME})
}

/// Takes every capability from the command, so that root in it is a user like any other. In a jail it has none.
fn without_capabilities(command: &mut Command) {
    if jail::is_used() {
        return;
    }
    let drop_all = || {
        for capability in 0..64 {
            // SAFETY: the call takes numbers. It fails where there is no such capability.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                let error = io::Error::last_os_error();
                // A user who is not root has none to lose.
                return match error.raw_os_error() {
                    Some(libc::EINVAL | libc::EPERM) => Ok(()),
                    _ => Err(error),
                };
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(drop_all) };
}

#[test]
fn what_cannot_be_opened_is_refused_by_field_and_cause() {
    let folder = tempfile::tempdir().unwrap();
    let mut vmm = command(&["--api-sock"]);
    without_capabilities(vmm.arg(folder.path().join("api")));
    let api = Api::start(&mut vmm, folder);
    let disk = api.disk("disk");
    for (path, body) in [("/drives/a", drive(&disk)), ("/vsock", vsock(api.path("v")))] {
        api.done("PUT", path, &body);
    }
    api.boot("spin");

    let missing = api.path("missing");
    let directory = api.path("");
    let locked = api.disk("locked");
    fs::set_permissions(&locked, Permissions::from_mode(0o000)).unwrap();
    let looping = api.path("loop");
    symlink(&looping, &looping).unwrap();
    let taken = api.path("taken");
    let _taken = UnixListener::bind(&taken).unwrap();
    let special = api.path("fifo");
    assert!(Command::new("mkfifo").arg(&special).status().unwrap().success());
    let special = special.as_path();
    let nowhere = missing.join("file");
    let kernel = |path: &Path| json!({ "kernel_image_path": path });
    let with_initrd = |path: &Path| json!({ "kernel_image_path": images().guest, "initrd_path": path });
    let serial = |path: &Path| json!({ "serial_out_path": path });
    let log = |path: &Path| json!({ "log_path": path });
    let metrics = |path: &Path| json!({ "metrics_path": path });
    for (path, body, field, cause) in [
        ("/boot-source", kernel(&missing), "kernel_image_path", "No such file"),
        ("/boot-source", kernel(&directory), "kernel_image_path", "is a directory"),
        ("/boot-source", kernel(&locked), "kernel_image_path", "Permission denied"),
        ("/boot-source", kernel(special), "kernel_image_path", "not a regular file"),
        ("/boot-source", with_initrd(&missing), "initrd_path", "No such file"),
        ("/drives/a", drive(&missing), "path_on_host", "No such file"),
        ("/drives/a", drive(&directory), "path_on_host", "Is a directory"),
        ("/drives/a", drive(&locked), "path_on_host", "Permission denied"),
        ("/drives/a", drive(&looping), "path_on_host", "symbolic links"),
        ("/drives/a", drive(special), "path_on_host", "neither"),
        ("/vsock", vsock(&taken), "uds_path", "Address already in use"),
        ("/vsock", vsock(&nowhere), "uds_path", "No such file"),
        ("/network-interfaces/n", interface(), "host_dev_name", "not permitted"),
        ("/serial", serial(&directory), "serial_out_path", "Is a directory"),
        ("/serial", serial(&locked), "serial_out_path", "Permission denied"),
        ("/logger", log(&directory), "log_path", "Is a directory"),
        ("/logger", log(&locked), "log_path", "Permission denied"),
        ("/metrics", metrics(&directory), "metrics_path", "Is a directory"),
        ("/metrics", metrics(&nowhere), "metrics_path", "No such file"),
    ] {
        let message = api.refused("PUT", path, &body);
        assert!(message.contains(field) && message.contains(cause), "{path} {body}: {message}");
        // What was there before is there still, and open.
        assert!(api.has_open(&disk) && api.has_open(&images().guest), "{path} {body}");
        assert!(api.path("v").exists(), "{path} {body}");
    }
    assert!(taken.exists());
    // The metrics' path can be set once, but none has been.
    api.done("PUT", "/metrics", &metrics(&api.path("metrics")));
    api.terminate();
}

#[test]
fn a_refused_request_takes_nothing_away_that_was_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut api = Api::start(command(&["--api-sock"]).arg(folder.path().join("api")), folder);
    let (kernel, disk) = (api.path("kernel"), api.disk("disk"));
    fs::copy(&images().guest, &kernel).unwrap();
    let mut source = boot_source("spin");
    source["kernel_image_path"] = json!(kernel);
    api.done("PUT", "/boot-source", &source);
    api.done("PUT", "/drives/a", &drive(&disk));
    api.done("PUT", "/vsock", &vsock(api.path("v")));
    // By their names, they could not be opened again.
    fs::remove_file(kernel).unwrap();
    fs::remove_file(disk).unwrap();
    api.refused("PUT", "/boot-source", &json!({"kernel_image_path": api.path("missing")}));
    api.refused("PUT", "/drives/a", &drive(api.path("missing")));
    api.refused("PUT", "/vsock", &vsock(api.path("missing/v")));
    assert!(api.path("v").exists());
    api.action("InstanceStart");
    api.vmm.wait_for("spinning");
    api.terminate();
}

#[test]
fn a_second_request_for_the_same_device_releases_what_the_first_had() {
    let tap = tap();
    let folder = tempfile::tempdir().unwrap();
    let mut vmm = command(&["--api-sock"]);
    vmm.arg(folder.path().join("api"));
    if let Some(tap) = &tap {
        tap.enter(&mut vmm).unwrap();
    }
    let api = Api::start(&mut vmm, folder);

    let (first, second) = (api.disk("first"), api.disk("second"));
    for (held, released) in [(&first, &second), (&second, &first), (&second, &first), (&first, &second)] {
        api.done("PUT", "/drives/a", &drive(held));
        assert!(api.has_open(held) && !api.has_open(released));
        api.done("PUT", "/serial", &json!({"serial_out_path": held.with_extension("serial")}));
        assert!(
            api.has_open(&held.with_extension("serial")) && !api.has_open(&released.with_extension("serial"))
        );
        let (held, released) = (held.with_extension("v"), released.with_extension("v"));
        api.done("PUT", "/vsock", &vsock(&held));
        assert!(held.exists() && !released.exists());
        // One queue pair: nobody else could have the tap as long as the first has.
        if tap.is_some() {
            api.done("PUT", "/network-interfaces/n", &interface());
        }
    }
    for path in ["kernel", "other"] {
        fs::copy(&images().guest, api.path(path)).unwrap();
        api.done("PUT", "/boot-source", &json!({"kernel_image_path": api.path(path)}));
    }
    assert!(api.has_open(&api.path("other")) && !api.has_open(&api.path("kernel")));

    let again = || {
        api.done("PUT", "/drives/a", &drive(&first));
        api.done("PUT", "/vsock", &vsock(first.with_extension("v")));
        api.done("PUT", "/entropy", &json!({}));
        api.done("PUT", "/balloon", &json!({"amount_mib": 1, "deflate_on_oom": false}));
        api.boot("spin");
    };
    again();
    let before = api.open_files().len();
    (0..20).for_each(|_| again());
    // Connections of the test's own are closed a moment later.
    until("descriptors are closed", || api.open_files().len() <= before);
    let config = api.get("/vm/config");
    assert_eq!(config["drives"], json!([config["drives"][0]]), "one drive");
    assert_eq!(config["drives"][0]["path_on_host"], json!(first));
    api.terminate();
}

#[test]
fn a_start_that_fails_can_be_corrected_and_tried_again() {
    let tap = tap();
    let folder = tempfile::tempdir().unwrap();
    let mut vmm = command(&["--api-sock"]);
    vmm.arg(folder.path().join("api"));
    if let Some(tap) = &tap {
        tap.enter(&mut vmm).unwrap();
    }
    let mut api = Api::start(&mut vmm, folder);
    let start = json!({"action_type": "InstanceStart"});
    assert!(api.refused("PUT", "/actions", &start).contains("boot-source"));

    let kernel = api.path("kernel");
    let image = fs::read(&images().guest).unwrap();
    fs::write(&kernel, &image).unwrap();
    let mut source = boot_source("spin");
    source["kernel_image_path"] = json!(kernel);
    api.done("PUT", "/boot-source", &source);
    api.done("PUT", "/drives/a", &drive(api.disk("disk")));
    api.done("PUT", "/vsock", &vsock(api.path("v")));
    if tap.is_some() {
        api.done("PUT", "/network-interfaces/n", &interface());
    }
    fs::write(&kernel, &image[..1000]).unwrap();
    let message = api.refused("PUT", "/actions", &start);
    assert!(message.contains("kernel_image_path"), "{message}");
    assert_eq!(api.state(), "Not started");
    fs::write(&kernel, &image).unwrap();

    // What a failed start has let go of may be gone by the next.
    fs::remove_file(api.path("disk")).unwrap();
    let message = api.refused("PUT", "/actions", &start);
    assert!(message.contains("path_on_host") && message.contains("No such file"), "{message}");
    api.done("PUT", "/drives/a", &drive(api.disk("disk")));

    api.done("PATCH", "/machine-config", &json!({"mem_size_mib": 1 << 28}));
    let message = api.refused("PUT", "/actions", &start);
    assert!(message.contains("mem_size_mib"), "{message}");
    api.done("PATCH", "/machine-config", &json!({"mem_size_mib": 128}));

    api.action("InstanceStart");
    api.vmm.wait_for("spinning");
    assert!(api.path("v").exists());
    api.refused("PUT", "/actions", &start);
    api.terminate();
}
