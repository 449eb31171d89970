//! The limit of a network interface, at the processor's speed: the guest sends as fast as it can.

use std::time::{Duration, Instant};

use kindling_integration_tests::harness::Tap;
use serde_json::json;

use super::{Api, tap};
use crate::process::{command, until};

/// Bytes a second: far less than what goes without a limit.
const RATE: f64 = 5e5;

#[test]
fn a_limit_of_what_is_sent_holds_within_ten_percent_from_when_it_is_set_until_it_is_lifted() {
    // Needs root, as the tap does.
    let Some(tap) = tap() else { return };
    for limited in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = command(&["--api-sock"]);
        vmm.arg(folder.path().join("api"));
        tap.enter(&mut vmm).unwrap();
        let api = Api::start(&mut vmm, folder);
        let bucket = |size: f64| json!({"bandwidth": {"size": size as u64, "refill_time": 500}});
        let mut interface = json!({"iface_id": "n", "host_dev_name": Tap::NAME});
        if !limited {
            interface["tx_rate_limiter"] = bucket(RATE / 2.0);
        }
        api.done("PUT", "/network-interfaces/n", &interface);
        api.boot("net send=1 depth=64 interrupts=0 size=1000 ticks=1000000000000");
        api.action("InstanceStart");
        let sent = || api.metric("kindling_net_tx_bytes_total{id=\"n\"}") as f64;
        until("frames are on their way", || sent() > RATE);
        let limit = bucket(if limited { RATE / 2.0 } else { 0.0 });
        api.done("PATCH", "/network-interfaces/n", &json!({"iface_id": "n", "tx_rate_limiter": limit}));
        let before = sent();
        until("a full bucket is used up", || sent() > before + RATE);
        let (start, before) = (Instant::now(), sent());
        std::thread::sleep(Duration::from_secs(3));
        let rate = (sent() - before) / start.elapsed().as_secs_f64();
        println!("limited: {limited}, {rate:.0} bytes a second");
        match limited {
            true => assert!((0.9..=1.1).contains(&(rate / RATE)), "{rate:.0}, and the limit is {RATE:.0}"),
            false => assert!(rate > 2.0 * RATE, "{rate:.0} without the limit"),
        }
        api.terminate();
    }
}
