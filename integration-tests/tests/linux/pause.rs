//! A pause of a busy Linux guest: nothing is lost, nobody complains, and the API answers all along.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kindling_api::client::Client;
use kindling_integration_tests::harness::{Guest, HangingDisk, Tap, files, on_host, scaled};
use serde_json::json;

use super::blk::{BACKLOG, IO_LIMIT, MIB, disk};
use super::net::iperf3_server;
use super::{END_LIMIT, output, power_off, ready, with_root};

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";

const PAUSE: Duration = Duration::from_secs(5);

/// How long an answer of the API may take while the guest is paused.
const ANSWER: Duration = Duration::from_secs(1);

/// How long it may take at any other time, on an emulated machine that is busy: one that comes right after a pause waits
/// until the devices have finished what they had begun.
const ANSWER_UNDER_LOAD: Duration = Duration::from_secs(20);

fn make(client: &Client, state: &str) {
    client.patch("/vm", &json!({ "state": state })).unwrap().success().unwrap();
}

fn state(client: &Client) -> String {
    client.get("/").unwrap().json().unwrap()["state"].as_str().unwrap().to_owned()
}

/// Seconds since the guest has started, by its clock.
fn uptime(guest: &mut Guest) -> f64 {
    output(guest, "cut -d ' ' -f 1 /proc/uptime").parse().unwrap()
}

/// Asserts that the guest's kernel has seen nothing wrong with time or its processors.
#[track_caller]
fn no_complaint(guest: &mut Guest) {
    let complaints =
        "soft lockup|hard lockup|stall|hung_task|blocked for more than|clocksource.*(unstable|skew)";
    let log = output(guest, &format!("dmesg | grep -iE '{complaints}' || true"));
    assert_eq!(log, "");
}

/// Asks for the state ten times a second while `act` runs. Every answer has to come in time; returns what `act` does.
fn while_watched<T>(path: &Path, act: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let client = Client::new(path).with_timeout(scaled(ANSWER_UNDER_LOAD));
            let (mut answers, mut longest) = (0, Duration::ZERO);
            while !done.load(Ordering::SeqCst) {
                let start = Instant::now();
                client.get("/").unwrap().success().unwrap();
                longest = longest.max(start.elapsed());
                answers += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            println!("{answers} answers of the API, the slowest after {longest:?}");
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        done.store(true, Ordering::SeqCst);
        watcher.join().unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_pause_under_disk_and_network_load_loses_nothing() {
    let folder = files::scratch().unwrap();
    let socket = folder.path().join("api");
    let tap = Tap::new(&format!("{HOST}/24"), &[]).unwrap();
    let data = disk(folder.path(), "data", 64 * MIB);
    let mut guest = ready(
        with_root()
            .cpus(2)
            .memory("512M")
            .modules(&["virtio_mmio", "virtio_net"])
            .tap(&tap)
            .arg("--disk")
            .arg(format!("{data},engine=async,cache=writeback"))
            .arg("--net")
            .arg(format!("tap={}", Tap::NAME))
            .arg("--api-sock")
            .arg(&socket),
    );
    let client = Client::new(&socket);
    output(
        &mut guest,
        &format!("ip link set lo up && ip link set eth0 up && ip address add {GUEST}/24 dev eth0"),
    );
    iperf3_server(&mut guest);
    let fio = format!(
        "fio --name=verified --filename=/dev/vdb --rw=randrw --bsrange=4k-64k --size=60M --ioengine=libaio \
         --direct=1 --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_backlog={BACKLOG} --time_based --runtime=12"
    );
    output(&mut guest, &format!("({fio} >/tmp/fio 2>&1; echo $? >/tmp/code) >/dev/null 2>&1 &"));

    while_watched(&socket, || {
        let options = ["--client", GUEST, "--time", "9", "--json"];
        std::thread::scope(|scope| {
            let stream = scope.spawn(|| tap.run("iperf3", &options, IO_LIMIT));
            std::thread::sleep(Duration::from_secs(2));
            let before = uptime(&mut guest);
            guest.begin("read line; echo got $line", END_LIMIT).unwrap();

            make(&client, "Paused");
            guest.send(b"typed meanwhile\n").unwrap();
            let shown = guest.console().len();
            let paused = Instant::now();
            while paused.elapsed() < PAUSE {
                let asked = Instant::now();
                assert_eq!(state(&client), "Paused");
                assert!(asked.elapsed() < scaled(ANSWER), "an answer took {:?}", asked.elapsed());
                std::thread::sleep(Duration::from_millis(100));
            }
            assert_eq!(guest.console().len(), shown);
            make(&client, "Resumed");
            assert_eq!(guest.finish(END_LIMIT).unwrap().stdout, "got typed meanwhile\n");
            // The guest's clocks go on while it rests.
            let jump = uptime(&mut guest) - before;
            assert!(jump >= PAUSE.as_secs_f64(), "{jump} s by the guest's clock");

            for _ in 0..20 {
                make(&client, "Paused");
                make(&client, "Resumed");
            }
            let report = stream.join().unwrap().unwrap();
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
            assert!(bytes > MIB, "{report}");
            println!("{bytes} bytes received");
        });
        let code = "until [ -s /tmp/code ]; do sleep 0.2; done; cat /tmp/code";
        let code = guest.run_within(code, IO_LIMIT).unwrap().stdout;
        assert_eq!(code, "0\n", "{}", output(&mut guest, "cat /tmp/fio"));
    });
    output(&mut guest, &format!("ping -c 2 -W 10 {HOST}"));
    no_complaint(&mut guest);
    power_off(&mut guest);
}

#[test]
fn a_pause_that_a_hanging_disk_holds_up_is_refused_and_all_goes_on_when_it_can() {
    let folder = files::scratch().unwrap();
    let socket = folder.path().join("api");
    let hanging = HangingDisk::new(folder.path()).unwrap();
    let mut guest = ready(
        with_root()
            .arg("--disk")
            .arg(format!("{},id=slow", hanging.path().display()))
            .arg("--api-sock")
            .arg(&socket),
    );
    // Dropped before the guest, which may wait for it.
    let hanging = hanging;
    let client = Client::new(&socket);
    make(&client, "Paused");
    make(&client, "Resumed");
    hanging.hang();
    output(&mut guest, "dd if=/dev/vdb of=/dev/null bs=4096 count=1 iflag=direct >/dev/null 2>&1 &");
    output(&mut guest, "sleep 1; pidof dd");

    // Stopped and continued, the monitor goes on to wait for the disk.
    let stop = format!("sleep 0.5; kill -STOP {0}; sleep 0.5; kill -CONT {0}", guest.id());
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| on_host("sh", &["-c", &stop], END_LIMIT).unwrap());
        client.patch("/vm", &json!({"state": "Paused"})).unwrap()
    });
    let message = refused.json().unwrap()["fault_message"].as_str().unwrap().to_owned();
    assert_eq!(refused.status, 400, "{message}");
    assert!(message.starts_with("cannot pause: slow: "), "{message}");
    println!("{message}");
    assert_eq!(state(&client), "Running");
    // The other disk and the processors.
    output(&mut guest, "dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null");
    no_complaint(&mut guest);

    hanging.recover();
    output(&mut guest, "while pidof dd >/dev/null; do sleep 0.2; done");
    for _ in 0..3 {
        output(&mut guest, "dd if=/dev/vdb of=/dev/null bs=4096 count=8 iflag=direct 2>/dev/null");
        make(&client, "Paused");
        make(&client, "Resumed");
    }

    hanging.hang();
    output(&mut guest, "dd if=/dev/vdb of=/dev/null bs=4096 count=1 iflag=direct >/dev/null 2>&1 &");
    output(&mut guest, "sleep 1; pidof dd");
    guest.signal(libc::SIGTERM).unwrap();
    let ended = guest.wait_exit(END_LIMIT);
    drop(hanging);
    assert_eq!(ended.unwrap().code(), Some(143), "{}", guest.console());
}
