//! The ways to a guest and an API: a config file, options, a socket's path that is taken.

use std::fs;

use serde_json::json;

use super::{Api, boot_source};
use crate::process::{command, finish, run};

#[test]
fn a_config_file_starts_the_guest_and_the_api_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let (file, disk) = (folder.path().join("vm.json"), folder.path().join("disk"));
    fs::write(&disk, [0; 4096]).unwrap();
    let config = json!({
        "boot-source": boot_source("spin"),
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 64 },
        "drives": [{ "drive_id": "a", "is_root_device": true, "path_on_host": disk }],
    });
    fs::write(&file, config.to_string()).unwrap();
    let mut vmm = command(&["--id", "from-a-file", "--config-file"]);
    vmm.arg(&file).arg("--api-sock").arg(folder.path().join("api"));
    let mut api = Api::start(&mut vmm, folder);
    api.vmm.wait_for("spinning");
    let instance = api.get("/");
    assert_eq!((&instance["id"], &instance["state"]), (&json!("from-a-file"), &json!("Running")));
    let shown = api.get("/vm/config");
    for (section, field) in [("boot-source", "boot_args"), ("machine-config", "vcpu_count")] {
        assert_eq!(shown[section][field], config[section][field]);
    }
    assert_eq!(shown["drives"][0]["path_on_host"], config["drives"][0]["path_on_host"]);
    api.done("PATCH", "/drives/a", &json!({"drive_id": "a", "path_on_host": api.disk("other")}));
    api.make("Paused");
    assert_eq!(api.state(), "Paused");
    api.terminate();
}

#[test]
fn vmm_run_serves_the_api_beside_its_console() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    let mut vmm = run("echo", &["--api-sock", path.to_str().unwrap(), "--id", "by-options"]);
    let mut api = Api::start(&mut vmm, folder);
    api.vmm.wait_for("ready");
    assert_eq!(api.get("/")["id"], "by-options");
    api.make("Paused");
    api.vmm.write("typed while it was paused\n");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!api.vmm.output().contains("typed"));
    api.make("Resumed");
    api.vmm.wait_for("typed while it was paused\n");
    api.vmm.write("q\n");
    let Api { vmm, folder, .. } = api;
    vmm.end(0);
    assert!(!folder.path().join("api").exists(), "the socket is removed");
}

#[test]
fn a_path_that_is_taken_is_an_error_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    fs::write(&path, "mine").unwrap();
    let ended = finish(command(&["--api-sock"]).arg(&path), 152);
    let expected = format!("vmm: --api-sock: cannot listen on {}: the path exists already\n", path.display());
    assert_eq!((ended.errors, ended.output), (expected, String::new()));
    let ended = finish(&mut run("spin", &["--api-sock", path.to_str().unwrap()]), 152);
    assert_eq!(ended.errors.lines().count(), 1, "{ended:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_config_file_that_is_refused_leaves_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (file, path) = (folder.path().join("vm.json"), folder.path().join("api"));
    let config = json!({"boot-source": {"kernel_image_path": folder.path().join("none")}});
    fs::write(&file, config.to_string()).unwrap();
    let ended = finish(command(&["--config-file"]).arg(&file).arg("--api-sock").arg(&path), 152);
    assert!(ended.errors.starts_with("vmm: boot-source.kernel_image_path: "), "{ended:?}");
    assert_eq!(ended.errors.lines().count(), 1, "{ended:?}");
    assert!(!path.exists());
}
