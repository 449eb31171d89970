//! A guest that uses every device at once while the API changes all that can be changed: no thread makes a forbidden call.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kindling_api::client::Client;
use kindling_integration_tests::harness::{Guest, LIFE, Tap, default_cmdline, files, image};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::blk::{BACKLOG, IO_LIMIT, MIB, disk};
use super::console::sha256;
use super::live::{get, patch};
use super::memory::touch;
use super::net::iperf3_server;
use super::vsock::connect;
use super::{output, power_off, ready, seconds};

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";
const SERVICE: &str = "http://169.254.169.254";

/// For each thing that a round does, beside all the load.
const ROUND_LIMIT: Duration = Duration::from_secs(300);

const MODULES: &str =
    "virtio_mmio,virtio_blk,virtio_net,vmw_vsock_virtio_transport,virtio_balloon,virtio_rng,button,evdev";

/// A guest with one of each device, and three more disks. Dropped before the tap.
struct Machine {
    guest: Guest,
    client: Client,
    tap: Tap,
    folder: TempDir,
}

impl Machine {
    fn start() -> Self {
        let folder = files::scratch().unwrap();
        let tap = Tap::new(&format!("{HOST}/24"), &["multi_queue"]).unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("metadata.json"), json!({"soak": "as it was"}).to_string()).unwrap();
        fs::write(path("vm.json"), config(folder.path()).to_string()).unwrap();
        let mut arguments = Vec::new();
        for (option, name) in
            [("--config-file", "vm.json"), ("--metadata", "metadata.json"), ("--api-sock", "api")]
        {
            arguments.extend([option.into(), path(name).into_os_string()]);
        }
        let life = LIFE + Duration::from_secs(soak_seconds());
        let mut guest = ready(Guest::builder().arguments(arguments).tap(&tap).life(life));
        output(
            &mut guest,
            &format!(
                "ip link set lo up && ip link set eth0 up && ip address add {GUEST}/24 dev eth0 && \
                 ip route add 169.254.169.254 dev eth0"
            ),
        );
        iperf3_server(&mut guest);
        output(&mut guest, "socat VSOCK-LISTEN:5000,fork PIPE >/dev/null 2>&1 &");
        let client = Client::new(path("api")).with_timeout(ROUND_LIMIT);
        Self { guest, client, tap, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn output(&mut self, command: &str) -> String {
        let said = self.guest.run_within(command, ROUND_LIMIT).unwrap();
        assert_eq!(said.code, 0, "{command}: {said:?}");
        said.stdout.trim_end().to_owned()
    }

    fn patch(&self, path: &str, body: &Value) {
        patch(&self.client, path, body);
    }

    /// Bytes that a stream over the network has carried; the guest sends, if it is reversed.
    fn stream(&self, reversed: bool) -> u64 {
        let options = ["--client", GUEST, "--time", "1", "--parallel", "2", "--json"];
        let reverse: &[&str] = if reversed { &["--reverse"] } else { &[] };
        let report = self.tap.run("iperf3", &[&options[..], reverse].concat(), ROUND_LIMIT).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_else(|| panic!("{report}"))
    }

    /// Sends bytes to the guest's sockets and gets them back, and has the guest send some.
    fn sockets(&mut self, round: usize) {
        let path = self.path("v");
        let sent: Vec<u8> = (0..200_000).map(|at| ((at * 31 + at / 251 + round) % 256) as u8).collect();
        let mut stream = connect(&path, 5000);
        let mut received = Vec::new();
        std::thread::scope(|scope| {
            let mut writer = stream.try_clone().unwrap();
            scope.spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            stream.read_to_end(&mut received).unwrap();
        });
        let expected: Vec<u8> = (0..200_000).map(|at| ((at * 31 + at / 251 + round) % 256) as u8).collect();
        assert!(received == expected, "round {round}: {} bytes came back, or others", received.len());

        let port = format!("{}_6000", path.display());
        let listener = UnixListener::bind(&port).unwrap();
        let receiver = std::thread::spawn(move || {
            // A guest that is short of processor time gives a connection up after two seconds, and tries again.
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(ROUND_LIMIT)).unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                if !bytes.is_empty() {
                    return sha256(&bytes);
                }
            }
        });
        // From the entropy device, by the way.
        let sum = self.output(
            "dd if=/dev/hwrng of=/tmp/random bs=4096 count=8 iflag=fullblock 2>/dev/null && \
             socat -u OPEN:/tmp/random VSOCK-CONNECT:2:6000,retry=30,interval=0.5 && sha256sum < /tmp/random | cut -c 1-64",
        );
        fs::remove_file(port).unwrap();
        assert_eq!(receiver.join().unwrap(), sum, "round {round}");
    }

    /// Limits of disks and network, another file for a disk, another size for the balloon.
    fn change(&mut self, round: usize) {
        let bucket = |size: u64| json!({"size": size, "refill_time": 100, "one_time_burst": size});
        let none = json!({"size": 0, "refill_time": 0});
        let limited = round.is_multiple_of(2);
        let bandwidth = if limited { bucket(4 * MIB) } else { none.clone() };
        let limiter = json!({"bandwidth": bandwidth, "ops": if limited { bucket(1000) } else { none }});
        for name in ["sync", "async"] {
            let path = format!("/drives/{name}");
            self.patch(&path, &json!({"drive_id": name, "rate_limiter": limiter}));
        }
        let interface = json!({"iface_id": "net0", "rx_rate_limiter": limiter, "tx_rate_limiter": limiter});
        self.patch("/network-interfaces/net0", &interface);
        let file = self.path(if limited { "second" } else { "first" });
        for name in ["spare", "spare_async"] {
            self.patch(&format!("/drives/{name}"), &json!({"drive_id": name, "path_on_host": file}));
        }
        self.output("dd if=/dev/vdd of=/dev/null bs=64k iflag=direct 2>/dev/null");
        self.output("dd if=/dev/vde of=/dev/null bs=64k iflag=direct 2>/dev/null");

        self.patch("/balloon", &json!({"amount_mib": if limited { 128 } else { 0 }}));
        self.patch("/balloon/statistics", &json!({"stats_polling_interval_s": 1 + round % 2}));
        self.patch("/balloon/hinting/start", &json!({"acknowledge_on_stop": limited}));
        touch(&mut self.guest, 32);
        assert!(get(&self.client, "/balloon/statistics")["target_mib"].is_u64());
    }

    /// The metadata service as the host changes what it says, the power button, metrics, events.
    fn ask(&mut self, round: usize) {
        let text = format!("round {round}");
        self.patch("/mmds", &json!({"soak": text}));
        assert_eq!(
            self.output(&format!(
                "curl -s --retry 9 --retry-all-errors --retry-delay 1 --max-time 60 {SERVICE}/soak"
            )),
            text
        );
        for action in ["FlushMetrics", "PowerButton"] {
            self.client.put("/actions", &json!({ "action_type": action })).unwrap().success().unwrap();
        }
        for path in ["/vm/config", "/metrics", "/version", "/balloon/hinting/status"] {
            self.client.get(path).unwrap().success().unwrap();
        }
        drop(self.client.events("/events").unwrap());
    }

    fn pause(&self) {
        self.patch("/vm", &json!({"state": "Paused"}));
        std::thread::sleep(Duration::from_millis(200));
        self.patch("/vm", &json!({"state": "Resumed"}));
    }
}

fn config(folder: &Path) -> Value {
    let image = image().unwrap();
    let path = |name: &str| folder.join(name);
    let drive = |id: &str, file: &str, engine: &str| {
        json!({
            "drive_id": id, "path_on_host": disk(folder, file, 64 * MIB), "is_root_device": false,
            "io_engine": engine, "cache_type": "Writeback", "num_queues": 2,
        })
    };
    disk(folder, "second", 32 * MIB);
    json!({
        "boot-source": {
            "kernel_image_path": image.vmlinux(),
            "initrd_path": image.initramfs(),
            "boot_args": format!(
                // Nobody minds a processor that an emulator has stand still, and says so amid what a command prints.
                // To hint at its free pages, the guest takes them all, and would first fill them with zeros: on an emulator
                // that keeps a processor from its network for minutes.
                "{} nosoftlockup init_on_alloc=0 kindling.root=/dev/vda kindling.modules={MODULES}", default_cmdline()
            ),
        },
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 768 },
        "drives": [
            {
                "drive_id": "root", "is_root_device": false, "is_read_only": true,
                "path_on_host": files::root_image().unwrap(),
            },
            drive("sync", "data", "Sync"),
            drive("async", "other", "Async"),
            drive("spare", "first", "Sync"),
            drive("spare_async", "third", "Async"),
        ],
        "network-interfaces": [{ "iface_id": "net0", "host_dev_name": Tap::NAME, "num_queues": 2 }],
        "mmds-config": { "network_interfaces": ["net0"], "version": "V1" },
        "vsock": { "guest_cid": 3, "uds_path": path("v") },
        "entropy": { "rate_limiter": { "bandwidth": { "size": 1 << 20, "refill_time": 100 } } },
        "balloon": {
            "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true,
            "free_page_reporting": true,
        },
        "logger": { "log_path": path("log"), "level": "Debug" },
        "metrics": { "metrics_path": path("metrics") },
    })
}

/// Reads and writes all over a disk, whose contents are checked: not as fast as can be, which would leave an emulated
/// processor no time for the rest.
fn load(device: &str, seconds: u64) -> String {
    let fio = format!(
        "fio --name={device} --filename=/dev/{device} --rw=randrw --bsrange=4k-64k --size=60M --ioengine=libaio \
         --direct=1 --iodepth=8 --verify=crc32c --verify_fatal=1 --verify_backlog={BACKLOG} --fsync=32 --time_based \
         --runtime={seconds} --rate_iops=50 --nice=19"
    );
    format!("({fio} >/tmp/{device}.log 2>&1; echo $? >/tmp/{device}.code) >/dev/null 2>&1 &")
}

/// How many threads the monitor has; each is bound to a filter.
fn bound_threads(guest: &Guest) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", guest.id())).unwrap();
    // The kernel's own may end meanwhile.
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let threads: Vec<_> = tasks.filter_map(|task| status(task.unwrap())).collect();
    // KVM and I/O rings have threads of their own in the process, which run nothing of it.
    let is_kernels = |status: &str| ["kvm-", "iou-"].iter().any(|name| status[6..].starts_with(name));
    let theirs: Vec<_> = threads.iter().filter(|status| !is_kernels(status)).collect();
    assert!(theirs.iter().all(|status| status.contains("Seccomp:\t2\n")), "{theirs:?}");
    theirs.len()
}

fn soak_seconds() -> u64 {
    seconds("KINDLING_SOAK_SECONDS", 12)
}

#[test]
fn a_guest_with_every_device_under_load_makes_no_forbidden_call() {
    let seconds = soak_seconds();
    let start = Instant::now();
    let mut machine = Machine::start();
    let threads = bound_threads(&machine.guest);
    for device in ["vdb", "vdc"] {
        machine.output(&load(device, seconds));
    }
    let (mut rounds, mut bytes) = (0, 0);
    let load = Instant::now();
    while rounds < 2 || load.elapsed() < Duration::from_secs(seconds) {
        bytes += machine.stream(rounds % 2 == 1);
        machine.sockets(rounds);
        machine.change(rounds);
        machine.ask(rounds);
        machine.pause();
        rounds += 1;
    }
    for device in ["vdb", "vdc"] {
        let code = format!("until [ -s /tmp/{device}.code ]; do sleep 0.2; done; cat /tmp/{device}.code");
        let code = machine.guest.run_within(&code, IO_LIMIT + Duration::from_secs(seconds)).unwrap().stdout;
        let said = machine.output(&format!("cat /tmp/{device}.log"));
        assert_eq!(code, "0\n", "{said}");
        let issued = said.lines().find_map(|line| line.trim().strip_prefix("issued rwts: total=")).unwrap();
        let mut counts = issued.split(',').map(|count| count.parse::<u64>().unwrap_or_default());
        assert!(counts.next() > Some(0) && counts.next() > Some(0), "{said}");
        println!("{device}: {issued}");
    }
    assert!(bytes > 0, "nothing came over the network");
    assert_eq!(bound_threads(&machine.guest), threads);
    power_off(&mut machine.guest);
    let log = fs::read_to_string(machine.path("log")).unwrap();
    let all = format!("{log}{}", machine.guest.console());
    assert!(!all.contains("forbidden system call"), "{all}");
    let metrics = fs::read_to_string(machine.path("metrics")).unwrap();
    assert!(metrics.lines().count() > rounds, "one for each round, and one at the end: {metrics}");
    println!(
        "{rounds} rounds in {:?}, {threads} bound threads, {bytes} bytes over the network",
        start.elapsed()
    );
}
