//! Every call in every phase of a machine that has one of each device: what it answers, and that a refused one changes
//! nothing.

use std::collections::BTreeSet;

use kindling_api::{Action, Phase, ROUTES};
use kindling_integration_tests::harness::Tap;
use serde_json::{Value, json};

use super::{Api, boot_source, fault, tap};
use crate::process::{command, until};

/// The statuses that it has before the guest runs, while it runs, and while it is paused.
type Statuses = [u16; 3];

const SET_UP: Statuses = [204, 400, 400];
const READ: Statuses = [200; 3];
const CHANGE: Statuses = [204; 3];
const READ_GUEST: Statuses = [400, 200, 200];
const CHANGE_GUEST: Statuses = [400, 204, 204];
/// Not served.
const NOTHING: Statuses = [400; 3];

/// A call.
struct Call {
    method: &'static str,
    path: &'static str,
    body: Value,
    /// What the phase table calls it.
    action: &'static str,
    statuses: Statuses,
    /// What its reply holds at least.
    keys: &'static [&'static str],
}

fn call(
    method: &'static str,
    path: &'static str,
    body: Value,
    action: &'static str,
    statuses: Statuses,
) -> Call {
    Call { method, path, body, action, statuses, keys: &[] }
}

fn get(path: &'static str, action: &'static str, statuses: Statuses, keys: &'static [&'static str]) -> Call {
    Call { keys, ..call("GET", path, Value::Null, action, statuses) }
}

/// All calls. The start of the guest, which cannot be taken back, is the last.
fn calls(machine: &Machine) -> Vec<Call> {
    let action = |name: &str| json!({ "action_type": name });
    let put = |path, body| call("PUT", path, body, "Configure", SET_UP);
    let change = |path, body, action| call("PATCH", path, body, action, CHANGE_GUEST);
    vec![
        get("/", "GetInstance", READ, &["id", "state", "vmm_version", "app_name"]),
        get("/version", "GetVersion", READ, &["firecracker_version"]),
        get(
            "/vm/config",
            "GetVmConfig",
            READ,
            &["boot-source", "machine-config", "drives", "vsock", "balloon"],
        ),
        get("/machine-config", "GetMachineConfig", READ, &["vcpu_count", "mem_size_mib", "smt"]),
        get("/balloon", "GetBalloon", READ, &["amount_mib", "deflate_on_oom", "stats_polling_interval_s"]),
        get(
            "/balloon/statistics",
            "GetBalloonStatistics",
            READ_GUEST,
            &["target_pages", "actual_pages", "target_mib", "actual_mib"],
        ),
        get("/balloon/hinting/status", "GetHintingStatus", READ_GUEST, &["host_cmd", "guest_cmd"]),
        // These two are no JSON; tests of their own look at them.
        get("/metrics", "GetMetrics", READ, &[]),
        get("/events", "GetEvents", READ, &[]),
        call("PUT", "/mmds", json!({"a": 1}), "PutMmds", CHANGE),
        call("PATCH", "/mmds", json!({"b": {}}), "PatchMmds", CHANGE),
        get("/mmds", "GetMmds", READ, &["a", "b"]),
        put("/boot-source", boot_source("spin")),
        put("/machine-config", json!({"vcpu_count": 2, "mem_size_mib": 128})),
        call("PATCH", "/machine-config", json!({"mem_size_mib": 64}), "Configure", SET_UP),
        put("/drives/a", machine.drive.clone()),
        put("/vsock", machine.vsock.clone()),
        put("/vsock/anything", machine.vsock.clone()),
        put("/entropy", json!({})),
        put("/balloon", machine.balloon.clone()),
        put("/serial", machine.serial.clone()),
        put("/logger", machine.logger.clone()),
        // Once, which was done before.
        call("PUT", "/metrics", json!({"metrics_path": "/dev/null"}), "Configure", NOTHING),
        call(
            "PUT",
            "/network-interfaces/n",
            machine.interface(),
            "Configure",
            if machine.has_tap { SET_UP } else { NOTHING },
        ),
        call(
            "PUT",
            "/mmds/config",
            json!({"network_interfaces": ["n"]}),
            "Configure",
            if machine.has_tap { SET_UP } else { NOTHING },
        ),
        change("/drives/a", json!({"drive_id": "a", "path_on_host": machine.other_disk}), "PatchDrive"),
        call(
            "PATCH",
            "/network-interfaces/n",
            json!({"iface_id": "n", "rx_rate_limiter": {"ops": {"size": 10, "refill_time": 100}}}),
            "PatchNetworkInterface",
            if machine.has_tap { CHANGE_GUEST } else { [400, 404, 404] },
        ),
        change("/balloon", json!({"amount_mib": 8}), "PatchBalloon"),
        change("/balloon/statistics", json!({"stats_polling_interval_s": 3}), "PatchBalloonStatistics"),
        change("/balloon/hinting/start", json!({}), "StartHinting"),
        change("/balloon/hinting/stop", json!({}), "StopHinting"),
        call("PUT", "/actions", action("FlushMetrics"), "FlushMetrics", CHANGE_GUEST),
        call("PUT", "/actions", action("SendCtrlAltDel"), "SendCtrlAltDel", CHANGE_GUEST),
        call("PUT", "/actions", action("PowerButton"), "PowerButton", CHANGE_GUEST),
        change("/vm", json!({"state": "Paused"}), "Pause"),
        change("/vm", json!({"state": "Resumed"}), "Resume"),
        call("PUT", "/actions", action("InstanceStart"), "Start", SET_UP),
    ]
}

/// What a machine with one of each device is made of.
struct Machine {
    drive: Value,
    other_disk: String,
    vsock: Value,
    balloon: Value,
    serial: Value,
    logger: Value,
    has_tap: bool,
}

impl Machine {
    fn interface(&self) -> Value {
        json!({"iface_id": "n", "host_dev_name": if self.has_tap { Tap::NAME } else { "lo" }})
    }
}

/// A `vmm` with such a machine in that phase. Dropped before its tap.
fn machine_in(phase: Phase, tap: Option<&Tap>) -> (Api, Machine) {
    let folder = tempfile::tempdir().unwrap();
    let mut vmm = command(&["--api-sock"]);
    vmm.arg(folder.path().join("api"));
    if let Some(tap) = tap {
        tap.enter(&mut vmm).unwrap();
    }
    let api = Api::start(&mut vmm, folder);
    let machine = Machine {
        drive: json!({"drive_id": "a", "is_root_device": false, "path_on_host": api.disk("a")}),
        other_disk: api.disk("b").display().to_string(),
        vsock: json!({"guest_cid": 3, "uds_path": api.path("v")}),
        balloon: json!({
            "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true,
        }),
        serial: json!({"serial_out_path": api.path("serial")}),
        logger: json!({"log_path": api.path("log"), "level": "Debug"}),
        has_tap: tap.is_some(),
    };
    let metrics = json!({"metrics_path": api.path("metrics"), "emit_id": true});
    for (path, body) in [
        ("/boot-source", &boot_source("spin")),
        ("/drives/a", &machine.drive),
        ("/vsock", &machine.vsock),
        ("/entropy", &json!({})),
        ("/balloon", &machine.balloon),
        ("/serial", &machine.serial),
        ("/logger", &machine.logger),
        ("/metrics", &metrics),
    ] {
        api.done("PUT", path, body);
    }
    if machine.has_tap {
        api.done("PUT", "/network-interfaces/n", &machine.interface());
    }
    if phase != Phase::NotStarted {
        api.action("InstanceStart");
        until("the guest runs", || {
            std::fs::read_to_string(api.path("serial")).is_ok_and(|text| text.contains("spinning"))
        });
    }
    if phase == Phase::Paused {
        api.make("Paused");
    }
    (api, machine)
}

#[test]
fn every_call_answers_in_every_phase_as_it_should_and_a_refused_one_changes_nothing() {
    let tap = tap();
    for (column, phase) in Phase::ALL.into_iter().enumerate() {
        let (api, machine) = machine_in(phase, tap.as_ref());
        let state = api.state();
        for call in calls(&machine) {
            let what = format!("{} {} {} while {state:?}", call.method, call.path, call.body);
            if call.path == "/events" {
                // Does not end.
                api.client.events(call.path).unwrap();
                continue;
            }
            let before = api.get("/vm/config");
            let response = api.call(call.method, call.path, &call.body);
            assert_eq!(response.status, call.statuses[column], "{what}: {}", response.body);
            let changed = api.get("/vm/config") != before;
            match response.status {
                200 if call.path == "/metrics" => assert!(response.body.ends_with("# EOF\n"), "{what}"),
                200 => {
                    let reply = response.json().unwrap();
                    for key in call.keys {
                        assert!(reply.get(key).is_some(), "{what}: {key} in {reply}");
                    }
                }
                204 => assert_eq!(response.body, "", "{what}"),
                _ => {
                    let message = fault(&response);
                    // Allowed in another phase: the message says which action, and that it is a matter of when.
                    if call.statuses != NOTHING && call.statuses[column] == 400 {
                        let when = if phase == Phase::NotStarted { "before" } else { "after" };
                        let expected =
                            format!("{} is not supported {when} starting the microVM", call.action);
                        assert_eq!(message, expected, "{what}");
                    }
                }
            }
            assert!(!changed || response.status == 204, "{what}: the configuration has changed");
            match phase {
                Phase::NotStarted => {}
                Phase::Running => api.make("Resumed"),
                Phase::Paused => api.make("Paused"),
            }
        }
        if phase == Phase::NotStarted {
            assert_eq!(api.state(), "Running");
        }
        api.terminate();
    }
}

#[test]
fn the_calls_above_are_all_that_there_are() {
    let (api, machine) = machine_in(Phase::NotStarted, None);
    let calls = calls(&machine);
    let is_route = |path: &str, route: &str| match route.split_once('{') {
        None => path == route,
        Some((before, _)) => path.strip_prefix(before).is_some_and(|id| !id.is_empty()),
    };
    for route in ROUTES {
        let called = calls.iter().any(|call| call.method == route.method && is_route(call.path, route.path));
        assert!(called, "{} {}", route.method, route.path);
    }
    let called: BTreeSet<_> = calls.iter().map(|call| call.action).collect();
    assert_eq!(called, Action::PHASES.iter().map(|(name, _)| *name).collect());
    api.terminate();
}

#[test]
fn a_wrong_field_is_named_and_changes_nothing() {
    let (api, machine) = machine_in(Phase::NotStarted, None);
    let with = |body: &Value, name: &str, value: Value| {
        let mut body = body.clone();
        body[name] = value;
        body
    };
    let kernel = boot_source("spin");
    let limiter = json!({"bandwidth": {"size": -1, "refill_time": 100}});
    let interface = json!({"iface_id": "n", "host_dev_name": "t"});
    let refused = [
        ("PUT", "/actions", json!({}), "action_type"),
        ("PUT", "/actions", json!({"action_type": "Dance"}), "action_type"),
        ("PUT", "/boot-source", json!({}), "kernel_image_path"),
        ("PUT", "/boot-source", with(&kernel, "boot_args", json!("x".repeat(2049))), "boot_args"),
        ("PUT", "/boot-source", with(&kernel, "speed", json!(1)), "speed"),
        ("PUT", "/machine-config", json!({"vcpu_count": 1}), "mem_size_mib"),
        ("PUT", "/machine-config", json!({"vcpu_count": 0, "mem_size_mib": 128}), "vcpu_count"),
        ("PUT", "/machine-config", json!({"vcpu_count": 3, "mem_size_mib": 128, "smt": true}), "smt"),
        ("PATCH", "/machine-config", json!({"vcpu_count": 255}), "vcpu_count"),
        ("PATCH", "/machine-config", json!({"mem_size_mib": "much"}), "mem_size_mib"),
        ("PUT", "/drives/a", with(&machine.drive, "drive_id", json!("b")), "drive_id"),
        ("PUT", "/drives/a", with(&machine.drive, "io_engine", json!("Steam")), "io_engine"),
        (
            "PUT",
            "/drives/a",
            with(&machine.drive, "rate_limiter", limiter.clone()),
            "rate_limiter.bandwidth.size",
        ),
        ("PUT", "/drives/a", with(&machine.drive, "num_queues", json!(17)), "num_queues"),
        ("PUT", "/drives/a", json!({"drive_id": "a", "is_root_device": false}), "path_on_host"),
        ("PUT", "/network-interfaces/n", with(&interface, "mtu", json!(67)), "mtu"),
        ("PUT", "/network-interfaces/n", with(&interface, "guest_mac", json!("6:0")), "guest_mac"),
        ("PUT", "/network-interfaces/n", with(&interface, "host_dev_name", json!("a/b")), "host_dev_name"),
        ("PUT", "/vsock", with(&machine.vsock, "guest_cid", json!(2)), "guest_cid"),
        ("PUT", "/vsock", json!({"guest_cid": 3}), "uds_path"),
        ("PUT", "/entropy", json!({"rate_limiter": limiter}), "rate_limiter.bandwidth.size"),
        ("PUT", "/balloon", with(&machine.balloon, "amount_mib", json!(1 << 20)), "amount_mib"),
        ("PUT", "/serial", json!({"mode": "Socket"}), "serial_out_path"),
        ("PUT", "/logger", json!({"level": "Loud"}), "level"),
        ("PUT", "/mmds/config", json!({"network_interfaces": ["none"]}), "network_interfaces"),
    ];
    let patched = [
        ("PATCH", "/vm", json!({"state": "Asleep"}), "state"),
        ("PATCH", "/drives/a", json!({"drive_id": "a", "rate_limiter": {"ops": {"size": 1}}}), "refill_time"),
        ("PATCH", "/drives/a", json!({"drive_id": "b"}), "drive_id"),
        ("PATCH", "/drives/a", json!({"drive_id": "a"}), "path_on_host"),
        ("PATCH", "/balloon", json!({"amount_mib": 1 << 20}), "amount_mib"),
        ("PATCH", "/balloon/statistics", json!({"stats_polling_interval_s": 0}), "statistics"),
        ("PATCH", "/balloon/hinting/start", json!({"acknowledge_on_stop": 1}), "acknowledge_on_stop"),
    ];
    let each = |calls: &[(&str, &str, Value, &str)]| {
        for (method, path, body, field) in calls {
            let message = api.refused(method, path, body);
            assert!(message.contains(field), "{method} {path} {body}: {message}");
        }
    };
    each(&refused);
    api.action("InstanceStart");
    each(&patched);
    let missing = api.call("PATCH", "/drives/z", &json!({"drive_id": "z", "path_on_host": "/"}));
    assert_eq!((missing.status, fault(&missing).contains("\"z\"")), (404, true));
    api.terminate();
}
