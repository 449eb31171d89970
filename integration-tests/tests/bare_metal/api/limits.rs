//! The limit of a network interface, at the processor's speed: the guest sends as fast as it can.

use kindling_integration_tests::harness::Tap;
use serde_json::json;

use super::phases::time_stamps_per_second;
use super::{Api, tap};
use crate::process::command;

/// Bytes of each frame.
const FRAME: f64 = 1000.0;

/// Bytes a second: far less than what goes without a limit.
const RATE: f64 = 2e6;

#[test]
fn a_limit_of_what_is_sent_holds_within_ten_percent_from_when_it_is_set_until_it_is_lifted() {
    // Needs root, as the tap does.
    let Some(tap) = tap() else { return };
    let per_second = time_stamps_per_second();
    for limited in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = command(&["--api-sock"]);
        vmm.arg(folder.path().join("api"));
        tap.enter(&mut vmm).unwrap();
        let mut api = Api::start(&mut vmm, folder);
        let bucket = |size: f64| json!({"bandwidth": {"size": size as u64, "refill_time": 500}});
        let mut interface = json!({"iface_id": "n", "host_dev_name": Tap::NAME});
        if !limited {
            interface["tx_rate_limiter"] = bucket(RATE / 2.0);
        }
        api.done("PUT", "/network-interfaces/n", &interface);
        // A quarter of the time does not count: the change is made in it, and a full bucket used up.
        let ticks = (3.0 * per_second) as u64;
        api.boot(&format!("net send=1 depth=64 interrupts=0 size={FRAME} ticks={ticks}"));
        api.action("InstanceStart");
        let limit = bucket(if limited { RATE / 2.0 } else { 0.0 });
        api.done("PATCH", "/network-interfaces/n", &json!({"iface_id": "n", "tx_rate_limiter": limit}));
        api.vmm.wait_for("measured ");
        let ended = api.vmm.end(0);
        let line = ended.output.lines().find_map(|line| line.strip_prefix("measured ")).unwrap();
        let (frames, took) = line.split_once(' ').unwrap();
        let rate = frames.parse::<f64>().unwrap() * FRAME / (took.parse::<f64>().unwrap() / per_second);
        println!("limited: {limited}, {rate:.0} bytes a second");
        match limited {
            true => assert!((0.9..=1.1).contains(&(rate / RATE)), "{rate:.0}, and the limit is {RATE:.0}"),
            false => assert!(rate > 2.0 * RATE, "{rate:.0} without the limit"),
        }
    }
}
