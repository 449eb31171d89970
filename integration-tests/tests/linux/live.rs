//! Changes of a running Linux guest through the API: disks, limits, the balloon, keys.

use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kindling_api::client::Client;
use kindling_integration_tests::harness::{Guest, Tap, files, scaled};
use serde_json::{Value, json};

use super::blk::{MIB, disk};
use super::memory::{touch, wait_free, wait_resident};
use super::{END_LIMIT, output, ready, with_root};

/// For what the guest does when it is told of a change.
const LIMIT: Duration = Duration::from_secs(60);

pub fn patch(client: &Client, path: &str, body: &Value) {
    client.patch(path, body).unwrap().success().unwrap();
}

pub fn get(client: &Client, path: &str) -> Value {
    client.get(path).unwrap().success().unwrap().json().unwrap()
}

/// Waits until what `path` replies is as wanted.
fn wait_for(client: &Client, path: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + scaled(LIMIT);
    loop {
        let reply = get(client, path);
        if is_wanted(&reply) {
            return reply;
        }
        assert!(Instant::now() < end, "{path} stays {reply}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asserts that a rate is within 10 % of its limit, in one of three tries: a machine that others use may stand still in one.
#[track_caller]
fn near(what: &str, limit: f64, measure: impl FnMut(u32) -> f64) {
    let rates: Vec<f64> = (0..3).map(measure).take_while(|rate| !is_near(*rate, limit)).collect();
    println!("{what}: {limit:.0} after {rates:.0?}");
    assert!(rates.len() < 3, "{what}: {rates:.0?}, and the limit is {limit:.0}");
}

fn is_near(measured: f64, limit: f64) -> bool {
    (0.9..=1.1).contains(&(measured / limit))
}

/// Seconds that a command takes by the guest's clock.
fn seconds(guest: &mut Guest, command: &str) -> f64 {
    let said = output(guest, &format!("time -p {command} 2>&1"));
    let took = said.lines().find_map(|line| line.strip_prefix("real "));
    took.unwrap_or_else(|| panic!("{said}")).parse().unwrap()
}

/// A bucket of so much a second, half of which it holds: a busy machine may stand still for a while without any being
/// lost.
fn bucket(per_second: u64) -> Value {
    json!({"size": per_second / 2, "refill_time": 500})
}

#[test]
fn a_drive_gets_another_file_and_other_limits_while_it_is_used() {
    let folder = files::scratch().unwrap();
    let socket = folder.path().join("api");
    let first = disk(folder.path(), "first", 32 * MIB);
    let second = folder.path().join("second");
    let mut content = b"the second file\n".to_vec();
    content.resize(48 << 20, b'2');
    fs::write(&second, content).unwrap();
    let options = with_root().arg("--disk").arg(format!("{first},id=data")).arg("--api-sock").arg(&socket);
    // The options do not name the second file.
    let mut guest = ready(options.arg("--landlock=off"));
    let client = Client::new(&socket);
    assert_eq!(output(&mut guest, "cat /sys/block/vdb/size"), (32 * MIB / 512).to_string());
    patch(&client, "/drives/data", &json!({"drive_id": "data", "path_on_host": second}));
    let size = (48 * MIB / 512).to_string();
    output(&mut guest, &format!("until [ $(cat /sys/block/vdb/size) = {size} ]; do sleep 0.1; done"));
    assert_eq!(
        output(&mut guest, "dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -n 1"),
        "the second file"
    );
    assert_eq!(get(&client, "/vm/config")["drives"][1]["path_on_host"], json!(second));

    let read = "dd if=/dev/vdb of=/dev/null bs=64k count=64 iflag=direct";
    let limit = |bandwidth: Value, ops: Value| {
        let limiter = json!({"bandwidth": bandwidth, "ops": ops});
        patch(&client, "/drives/data", &json!({"drive_id": "data", "rate_limiter": limiter}));
    };
    let none = json!({"size": 0, "refill_time": 0});
    // The bucket is full at first.
    near("bytes read a second", MIB as f64, |_| {
        limit(bucket(MIB), none.clone());
        3.5 * MIB as f64 / seconds(&mut guest, read)
    });
    near("reads a second", 30.0, |_| {
        limit(none.clone(), bucket(30));
        105.0 / seconds(&mut guest, "dd if=/dev/vdb of=/dev/null bs=4k count=120 iflag=direct")
    });
    limit(none.clone(), none);
    let free = seconds(&mut guest, read);
    assert!(free < 3.5 / 2.0, "{free} s without a limit, 3.5 s with one");
    power_button_and_reset(&mut guest, &client);
}

/// Presses the power button, which the guest sees, and Ctrl+Alt+Del, by which it ends.
fn power_button_and_reset(guest: &mut Guest, client: &Client) {
    output(guest, "modprobe button && modprobe evdev");
    let find = "grep -A 5 'Power Button' /proc/bus/input/devices | grep -o 'event[0-9]*'";
    let event = output(guest, find);
    output(guest, &format!("exec 3</dev/input/{event}; cat <&3 >/tmp/events 2>/dev/null &"));
    let action = |name: &str| {
        client.put("/actions", &json!({ "action_type": name })).unwrap().success().unwrap();
    };
    action("PowerButton");
    // A key that goes down and comes up: four events of 24 bytes.
    output(guest, "until [ $(stat -c %s /tmp/events) -ge 96 ]; do sleep 0.1; done");
    action("SendCtrlAltDel");
    guest.wait_for("reboot: Restarting system", END_LIMIT).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
}

#[test]
fn a_networks_limits_change_while_it_is_used() {
    /// Far below what an emulated machine can do.
    const RATE: u64 = 128 << 10;
    let folder = files::scratch().unwrap();
    let socket = folder.path().join("api");
    let tap = Tap::new("10.0.0.1/24", &[]).unwrap();
    let mut guest = ready(
        with_root()
            .modules(&["virtio_mmio", "virtio_net"])
            .tap(&tap)
            .arg("--net")
            .arg(format!("tap={},id=net", Tap::NAME))
            .arg("--api-sock")
            .arg(&socket),
    );
    let client = Client::new(&socket);
    output(&mut guest, "ip link set eth0 up && ip address add 10.0.0.2/24 dev eth0");
    let limit = |rx: Value, tx: Value| {
        let patch = json!({"iface_id": "net", "rx_rate_limiter": {"bandwidth": rx}, "tx_rate_limiter": {"bandwidth": tx}});
        self::patch(&client, "/network-interfaces/net", &patch);
    };
    let none = json!({"size": 0, "refill_time": 0});
    // Both sides send more than the limit to somebody who throws it away. The guest's has to wait where it is limited.
    output(&mut guest, "socat -u UDP-RECV:9 /dev/null >/dev/null 2>&1 &");
    let _sink = tap.start("socat", &["-u", "UDP-RECV:9", "/dev/null"]).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            tap.inside(|| {
                let socket = UdpSocket::bind(("10.0.0.1", 0)).unwrap();
                while !ends.load(Ordering::SeqCst) {
                    // Fails where the guest is not reached yet, or the queue is full.
                    for _ in 0..4 {
                        let _ = socket.send_to(&[0; 1400], ("10.0.0.2", 9));
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        });
        let end = Ends(&ends);
        limit(bucket(RATE), none.clone());
        settles_at(&mut guest, "rx", RATE as f64);
        limit(none.clone(), none.clone());
        let free = rate(&mut guest, "rx");
        assert!(free > 1.3 * RATE as f64, "{free} bytes a second without a limit");
        limit(none.clone(), bucket(RATE));
        output(&mut guest, "socat -u -b 1400 /dev/zero UDP-SENDTO:10.0.0.1:9 >/dev/null 2>&1 &");
        settles_at(&mut guest, "tx", RATE as f64);
        drop(end);
        sender.join().unwrap().unwrap();
    });
}

/// Has the sender of a test end with it, however it ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asserts that what goes in one direction keeps to its limit, once a full bucket has been used up: within 10 % at some time, or
/// within 30 % in all. A machine that others use stands still at times for longer than a bucket makes up for, and the clocks
/// of guest and host move apart meanwhile. How exact limits are is for the tests of guests without an operating system.
#[track_caller]
fn settles_at(guest: &mut Guest, direction: &str, limit: f64) {
    const TRIES: usize = 12;
    output(guest, "sleep 1");
    let rates: Vec<f64> =
        (0..TRIES).map(|_| rate(guest, direction)).take_while(|rate| !is_near(*rate, limit)).collect();
    println!("{direction}: {limit:.0} bytes a second after {rates:.0?}");
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let settled = rates.len() < TRIES || (0.7..1.3).contains(&(mean / limit));
    assert!(settled, "{direction}: {rates:.0?}, and the limit is {limit:.0}");
}

/// Bytes a second in one direction, as the guest's driver counts them.
fn rate(guest: &mut Guest, direction: &str) -> f64 {
    let count = format!("cut -d ' ' -f 1 /proc/uptime; cat /sys/class/net/eth0/statistics/{direction}_bytes");
    let counts = output(guest, &format!("{count}; sleep 2; {count}"));
    let counts: Vec<f64> = counts.lines().map(|line| line.parse().unwrap()).collect();
    (counts[3] - counts[1]) / (counts[2] - counts[0])
}

#[test]
fn the_balloon_takes_and_gives_back_memory_and_tells_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let mut guest = ready(
        Guest::builder()
            .memory("256M")
            .modules(&["virtio_mmio", "virtio_balloon"])
            .arg("--balloon")
            .arg("0,stats=1,hinting")
            .arg("--api-sock")
            .arg(&socket),
    );
    let client = Client::new(&socket);
    touch(&mut guest, 150);
    let full = wait_resident(&guest, "after much memory was touched", |bytes| bytes > 150 * MIB);

    // What is free is taken from the guest's memory when it is told of, and the guest gets it back.
    patch(&client, "/balloon/hinting/start", &json!({"acknowledge_on_stop": true}));
    let status = wait_for(&client, "/balloon/hinting/status", |status| status["guest_cmd"] == 0);
    assert_eq!(status["host_cmd"], 1, "acknowledged: {status}");
    wait_resident(&guest, "with hinting", |bytes| bytes + 100 * MIB < full);
    // Not acknowledged, it stays with the host until that stops.
    patch(&client, "/balloon/hinting/start", &json!({"acknowledge_on_stop": false}));
    wait_free(&mut guest, "-lt 60000");
    let status = get(&client, "/balloon/hinting/status");
    assert!(status["host_cmd"].as_u64().unwrap() > 1, "{status}");
    patch(&client, "/balloon/hinting/stop", &json!({}));
    assert_eq!(get(&client, "/balloon/hinting/status")["host_cmd"], 1);
    wait_free(&mut guest, "-gt 120000");

    touch(&mut guest, 150);
    wait_resident(&guest, "after memory was touched again", |bytes| bytes + 30 * MIB > full);
    patch(&client, "/balloon", &json!({"amount_mib": 128}));
    wait_resident(&guest, "with the balloon", |bytes| bytes + 100 * MIB < full);
    let statistics = wait_for(&client, "/balloon/statistics", |reply| reply["actual_mib"] == 128);
    assert_eq!((&statistics["target_mib"], &statistics["target_pages"]), (&json!(128), &json!(32_768)));
    assert_eq!(get(&client, "/balloon")["amount_mib"], 128);

    patch(&client, "/balloon/statistics", &json!({"stats_polling_interval_s": 2}));
    patch(&client, "/balloon", &json!({"amount_mib": 0}));
    wait_for(&client, "/balloon/statistics", |reply| reply["actual_mib"] == 0);
    // What was told before is of less memory.
    for (told, name) in
        [("total_memory", "MemTotal"), ("free_memory", "MemFree"), ("available_memory", "MemAvailable")]
    {
        let own = output(&mut guest, &format!("awk '/{name}:/ {{print $2}}' /proc/meminfo"));
        let own = own.parse::<u64>().unwrap() << 10;
        wait_for(&client, "/balloon/statistics", |reply| {
            reply[told].as_u64().unwrap().abs_diff(own) < 16 * MIB
        });
    }
    touch(&mut guest, 150);
    super::power_off(&mut guest);
    assert!(!socket.exists());
}
