//! Networks: bytes in both directions, datagrams of every size, queues, and taps that vanish.

use std::net::UdpSocket;
use std::time::Duration;

use kindling_integration_tests::harness::{Guest, Tap, files};

use super::{output, power_off, ready, seconds, with_root};

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";

/// For what goes over a network in one test.
const LIMIT: Duration = Duration::from_secs(900);
/// For a short program at the host.
const SOON: Duration = Duration::from_secs(60);

/// A guest with an interface of so many queue pairs.
fn start(queues: u32, options: &str) -> (Guest, Tap) {
    let tap = Tap::new(&format!("{HOST}/24"), if queues > 1 { &["multi_queue"] } else { &[] }).unwrap();
    let net = format!("tap={},mac=06:00:00:00:00:02,queues={queues}{options}", Tap::NAME);
    let mut guest = ready(
        with_root()
            .cpus(queues)
            .memory("512M")
            .modules(&["virtio_mmio", "virtio_net"])
            .tap(&tap)
            .arg("--net")
            .arg(net),
    );
    output(
        &mut guest,
        &format!("ip link set lo up && ip link set eth0 up && ip address add {GUEST}/24 dev eth0"),
    );
    (guest, tap)
}

/// How much a test sends, in MiB, and how long that may take.
fn amount() -> (u64, Duration) {
    let mebibytes = seconds("KINDLING_NET_MIB", 16);
    (mebibytes, LIMIT + Duration::from_secs(2 * mebibytes))
}

#[test]
fn a_stream_each_way_arrives_whole() {
    const PIECE_MIB: u64 = 8;
    let (mut guest, tap) = start(1, "");
    let (mebibytes, limit) = amount();
    let folder = files::scratch().unwrap();
    // A file that is sent many times, each time behind its number: new random bytes take longer than the network.
    let piece = |file: &str| format!("dd if=/dev/urandom of={file} bs=1M count={PIECE_MIB} 2>/dev/null");
    let stream = |file: &str| {
        let pieces = mebibytes.div_ceil(PIECE_MIB);
        format!("for number in $(seq {pieces}); do echo $number; cat {file}; done")
    };
    let send = |file: &str, to: &str| {
        let stream = stream(file);
        let socat = format!("socat -u -b 262144 - TCP:{to},retry=60,interval=0.5");
        format!("{}; ({stream}) | md5sum; ({stream}) | {socat}", piece(file))
    };
    let receive = |port: u16| format!("socat -u -b 262144 TCP-LISTEN:{port} - | md5sum");

    let file = folder.path().join("piece").display().to_string();
    guest.begin(&receive(5001), limit).unwrap();
    let sent = tap.run("sh", &["-c", &send(&file, &format!("{GUEST}:5001"))], limit).unwrap();
    let received = guest.finish(limit).unwrap();
    assert_eq!(received.code, 0, "{received:?}");
    assert_eq!(received.stdout, sent, "host to guest");

    guest.begin(&send("/tmp/piece", &format!("{HOST}:5002")), limit).unwrap();
    let received = tap.run("sh", &["-c", &receive(5002)], limit).unwrap();
    let sent = guest.finish(limit).unwrap();
    assert_eq!(sent.code, 0, "{sent:?}");
    assert_eq!(received, sent.stdout, "guest to host");
    power_off(&mut guest);
}

/// Bounds what a stream has under way, which can be more than there is to send.
const WINDOW: [&str; 2] = ["--window", "128K"];

/// Starts iperf3 in the guest.
pub fn iperf3_server(guest: &mut Guest) {
    output(guest, "iperf3 --server --daemon && until ss -ltn | grep -q :5201; do sleep 0.1; done");
}

/// What iperf3 says it received, in bytes.
fn received(report: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn iperf3_runs_each_way_over_one_and_two_queue_pairs() {
    let (mebibytes, limit) = amount();
    let bytes = mebibytes << 20;
    for queues in [1, 2] {
        let (mut guest, tap) = start(queues, "");
        for queue in 0..queues {
            // Each processor has a queue pair of its own.
            output(&mut guest, &format!("taskset {:x} ping -c 1 -W 10 {HOST}", 1 << queue));
        }
        iperf3_server(&mut guest);
        for direction in [&[][..], &["--reverse"]] {
            let amount = bytes.to_string();
            let streams = (2 * queues).to_string();
            let options = ["--client", GUEST, "--bytes", &amount, "--parallel", &streams, "--json"];
            let options = [&options[..], &WINDOW, direction].concat();
            let report = tap.run("iperf3", &options, limit).unwrap();
            // What is under way when the sender has sent enough is not counted.
            assert!(received(&report) >= bytes / 2, "{queues} {direction:?}: {report}");
        }
        if queues == 2 {
            let channels = output(&mut guest, "ethtool -l eth0 | grep Combined");
            assert_eq!(channels.split_whitespace().collect::<Vec<_>>(), ["Combined:", "2", "Combined:", "2"]);
            output(&mut guest, "ethtool -L eth0 combined 1");
            let options = ["--client", GUEST, "--bytes", "4M", "--json"];
            let report = tap.run("iperf3", &[&options[..], &WINDOW].concat(), LIMIT).unwrap();
            assert!(received(&report) >= 2 << 20, "{report}");
        }
        power_off(&mut guest);
    }
}

#[test]
fn datagrams_of_every_size_come_back_as_they_were_sent() {
    let (mut guest, tap) = start(1, "");
    output(&mut guest, "socat -b 65536 UDP-LISTEN:7777,rcvbuf=1000000 PIPE >/dev/null 2>&1 &");
    output(&mut guest, "until ss -lun | grep -q :7777; do sleep 0.1; done");
    let step = usize::try_from(seconds("KINDLING_UDP_STEP", 509)).unwrap();
    let sizes: Vec<usize> = (1..=65_507).step_by(step).chain([1471, 1472, 1473, 65_506, 65_507]).collect();
    tap.inside(|| {
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        socket.connect((GUEST, 7777)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut buffer = vec![0; 70_000];
        for size in &sizes {
            let sent: Vec<u8> = (0..*size).map(|at| ((at * 13 + size) % 256) as u8).collect();
            socket.send(&sent).unwrap();
            let len = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
            assert!(buffer[..len] == sent[..], "{size} bytes came back as {len}, or others");
        }
    })
    .unwrap();
    println!("{} sizes", sizes.len());
    power_off(&mut guest);
}

#[test]
fn the_guest_sees_address_and_mtu_that_it_was_given() {
    let (mut guest, _tap) = start(1, ",mtu=9000");
    assert_eq!(output(&mut guest, "cat /sys/class/net/eth0/address"), "06:00:00:00:00:02");
    assert_eq!(output(&mut guest, "cat /sys/class/net/eth0/mtu"), "9000");
    assert_eq!(output(&mut guest, "cat /sys/class/net/eth0/carrier"), "1");
    power_off(&mut guest);
}

#[test]
fn a_tap_that_vanishes_takes_the_link_down_and_nothing_else() {
    let (mut guest, tap) = start(1, "");
    output(&mut guest, &format!("ping -c 1 -W 10 {HOST}"));
    tap.run("ip", &["link", "delete", Tap::NAME], SOON).unwrap();
    output(
        &mut guest,
        "for i in $(seq 100); do [ $(cat /sys/class/net/eth0/carrier) = 0 ] && exit 0; sleep 0.1; done; exit 1",
    );
    let before = processor_time(&guest);
    std::thread::sleep(Duration::from_secs(2));
    let used = processor_time(&guest) - before;
    assert!(used < Duration::from_secs(1), "a guest that does nothing took {used:?} of 2 s");
    power_off(&mut guest);
}

/// What the monitor has used so far.
fn processor_time(guest: &Guest) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", guest.id())).unwrap();
    // utime and stime are fields 14 and 15, in hundredths of a second; field 2 can have spaces.
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}

#[test]
fn the_network_works_again_after_its_driver_was_unbound() {
    let (mut guest, _tap) = start(2, "");
    output(&mut guest, "basename $(readlink /sys/class/net/eth0/device) > /tmp/name");
    for _ in 0..3 {
        output(&mut guest, &format!("ping -c 2 -W 10 -s 8000 {HOST}"));
        for action in ["unbind", "bind"] {
            output(&mut guest, &format!("cat /tmp/name > /sys/bus/virtio/drivers/virtio_net/{action}"));
        }
        output(&mut guest, &format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"));
    }
    output(&mut guest, &format!("ping -c 2 -W 10 {HOST}"));
    power_off(&mut guest);
}
