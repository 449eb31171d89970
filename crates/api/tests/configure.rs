//! A machine put together request by request: what each one changes, and that a refused one changes nothing.

use kindling_api::{Action, Fault, Machine, Phase, Reply, VmConfig, dispatch, route};

/// A machine that remembers its configuration and has no phase but the one it was given.
struct Fake {
    phase: Phase,
    config: VmConfig,
}

impl Machine for Fake {
    fn phase(&self) -> Phase {
        self.phase
    }

    fn act(&mut self, action: Action) -> Result<Reply, Fault> {
        if let Action::Configure(section) = action {
            self.config = self.config.with(section)?;
        }
        Ok(Reply::Empty)
    }
}

fn fake() -> Fake {
    Fake { phase: Phase::NotStarted, config: VmConfig::default() }
}

impl Fake {
    fn request(&mut self, method: &str, path: &str, body: &str) -> Result<(), String> {
        let action = route(method, path, body.as_bytes()).map_err(|fault| fault.message)?;
        dispatch(self, action).map(|_| ()).map_err(|fault| fault.message)
    }
}

#[test]
fn requests_make_the_configuration_that_a_file_would() {
    let mut machine = fake();
    for (method, path, body) in [
        ("PUT", "/boot-source", r#"{"kernel_image_path": "/k", "initrd_path": null}"#),
        ("PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 64, "cpu_template": null}"#),
        ("PATCH", "/machine-config", r#"{"mem_size_mib": 256, "vcpu_count": null}"#),
        ("PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "/a"}"#),
        ("PUT", "/drives/b", r#"{"drive_id": "b", "is_root_device": false, "path_on_host": "/b"}"#),
        ("PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "/c"}"#),
        ("PUT", "/network-interfaces/n", r#"{"iface_id": "n", "host_dev_name": "tap0"}"#),
        ("PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "/v", "vsock_id": "vsock"}"#),
        ("PUT", "/entropy", "{}"),
        ("PUT", "/balloon", r#"{"amount_mib": 64, "deflate_on_oom": false}"#),
        ("PUT", "/serial", r#"{"serial_out_path": "/s"}"#),
        ("PUT", "/logger", r#"{"log_path": "/l", "level": "Debug"}"#),
        ("PUT", "/logger", r#"{"show_level": true}"#),
        ("PUT", "/metrics", r#"{"metrics_path": "/m"}"#),
        ("PUT", "/mmds/config", r#"{"network_interfaces": ["n"], "version": "V2"}"#),
    ] {
        machine.request(method, path, body).unwrap_or_else(|fault| panic!("{method} {path}: {fault}"));
    }
    let file = r#"{
        "boot-source": {"kernel_image_path": "/k"},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
        "drives": [
            {"drive_id": "a", "is_root_device": true, "path_on_host": "/c"},
            {"drive_id": "b", "is_root_device": false, "path_on_host": "/b"}
        ],
        "network-interfaces": [{"iface_id": "n", "host_dev_name": "tap0"}],
        "vsock": {"guest_cid": 3, "uds_path": "/v", "vsock_id": "vsock"},
        "entropy": {},
        "balloon": {"amount_mib": 64, "deflate_on_oom": false},
        "serial": {"serial_out_path": "/s"},
        "logger": {"log_path": "/l", "level": "Debug", "show_level": true},
        "metrics": {"metrics_path": "/m"},
        "mmds-config": {"network_interfaces": ["n"], "version": "V2"}
    }"#;
    assert_eq!(machine.config, VmConfig::from_json(file.as_bytes()).unwrap());
}

#[test]
fn a_refused_request_names_the_field_and_changes_nothing() {
    let mut machine = fake();
    for (path, body) in [
        ("/drives/a", r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "/a"}"#),
        ("/balloon", r#"{"amount_mib": 100, "deflate_on_oom": false}"#),
        ("/metrics", r#"{"metrics_path": "/m"}"#),
    ] {
        machine.request("PUT", path, body).unwrap();
    }
    let before = machine.config.clone();
    for (method, path, body, message) in [
        (
            "PUT",
            "/drives/b",
            r#"{"drive_id": "b", "is_root_device": true, "path_on_host": "/b"}"#,
            "drives[1].is_root_device: must be false, since drives[0] is the root device",
        ),
        (
            "PUT",
            "/drives/b",
            r#"{"drive_id": "b", "is_root_device": false, "path_on_host": "/b", "num_queues": 99}"#,
            "num_queues: must be between 1 and 16, got 99",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"mem_size_mib": 64}"#,
            "balloon.amount_mib: must be at most the guest's memory of 64 MiB, got 100",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 3, "mem_size_mib": 128, "smt": true}"#,
            "smt: needs one vCPU",
        ),
        ("PUT", "/boot-source", r#"{"kernel_image_path": ""}"#, "kernel_image_path: must not be empty"),
        ("PUT", "/metrics", r#"{"metrics_path": "/n"}"#, "metrics_path: is set already"),
        ("PUT", "/mmds/config", r#"{"network_interfaces": ["n"]}"#, "network_interfaces[0]: there is no"),
        ("PUT", "/vsock", r#"{"guest_cid": 2, "uds_path": "/v"}"#, "guest_cid: must be between 3"),
        ("PUT", "/actions", r#"{"action_type": "Reboot"}"#, "action_type: unknown variant `Reboot`"),
    ] {
        let fault = machine.request(method, path, body).unwrap_err();
        assert!(fault.starts_with(message), "{path}: {fault}");
        assert_eq!(machine.config, before, "{path}");
    }
}

#[test]
fn every_action_is_done_in_its_phases_and_refused_in_the_others() {
    let bodies = |path: &str| match path {
        "/actions" => vec![
            r#"{"action_type": "InstanceStart"}"#,
            r#"{"action_type": "FlushMetrics"}"#,
            r#"{"action_type": "SendCtrlAltDel"}"#,
            r#"{"action_type": "PowerButton"}"#,
        ],
        "/vm" => vec![r#"{"state": "Paused"}"#, r#"{"state": "Resumed"}"#],
        "/balloon" => vec![r#"{"amount_mib": 1, "deflate_on_oom": true}"#, r#"{"amount_mib": 1}"#],
        "/balloon/statistics" => vec![r#"{"stats_polling_interval_s": 1}"#],
        "/boot-source" => vec![r#"{"kernel_image_path": "/k"}"#],
        "/drives/{drive_id}" => vec![
            r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "/a"}"#,
            r#"{"drive_id": "a", "path_on_host": "/a"}"#,
        ],
        "/network-interfaces/{iface_id}" => {
            vec![r#"{"iface_id": "a", "host_dev_name": "tap"}"#, r#"{"iface_id": "a"}"#]
        }
        "/machine-config" => vec![r#"{"vcpu_count": 1, "mem_size_mib": 128}"#],
        "/metrics" => vec![r#"{"metrics_path": "/m"}"#],
        "/mmds/config" => vec![r#"{"network_interfaces": ["a"]}"#],
        "/vsock" => vec![r#"{"guest_cid": 3, "uds_path": "/v"}"#],
        _ => vec!["{}"],
    };
    let mut seen = std::collections::BTreeSet::new();
    for row in kindling_api::ROUTES {
        let path = row.path.replace("{drive_id}", "a").replace("{iface_id}", "a");
        for body in bodies(row.path).into_iter().chain([""]) {
            let Ok(action) = route(row.method, &path, body.as_bytes()) else { continue };
            seen.insert(action.name());
            for phase in Phase::ALL {
                let interface = kindling_api::NetworkInterfaceConfig::new("a", "tap");
                let config = VmConfig { network_interfaces: vec![interface], ..VmConfig::default() };
                let mut machine = Fake { phase, config: config.clone() };
                let result = dispatch(&mut machine, action.clone());
                assert_eq!(
                    result.is_ok(),
                    action.phases().contains(&phase),
                    "{action:?} {phase:?} {result:?}"
                );
                if let Err(fault) = result {
                    assert_eq!(fault.status.code(), 400);
                    assert!(fault.message.contains(action.name()), "{}", fault.message);
                    assert_eq!(machine.config, config);
                }
            }
        }
    }
    // Every row of the phase table can be reached by a request.
    assert_eq!(seen, Action::PHASES.iter().map(|(name, _)| *name).collect());
}
