//! What the REST API costs: a request, with and without a guest at work; the start until the first answer; memory.
//!
//!     cargo bench --package kindling-integration-tests --bench api [-- ROUNDS]
//!
//! - *Requests* go one at a time; the time is the client's, from before it writes the request until it has read the answer.
//!   Beside them, in the same turn, stands an *echo*: as many bytes to another thread of the benchmark and back over a Unix
//!   socket, once each way, where a request has to go from the API's thread to the monitor's and back, too. Guests: none;
//!   one whose vCPU never leaves it; one that does nothing but read a port, each time through its vCPU's thread in the
//!   monitor. All are the guest without an operating system, which has one processor.
//! - *Start to first answer*: from before the process is spawned until it has answered `GET /`, which is sent as soon as the
//!   socket takes it. Processor time is all that the process has used by the time it rests again. Beside it stands the floor
//!   program's start to a guest's first instruction, as in the benchmark `startup`: it makes the KVM calls that `vmm` here
//!   has not made yet, and serves nothing.
//! - *Resident memory*: from `/proc/PID/smaps` without the mapping of the guest's RAM, of a `vmm` that was told of all by
//!   its API; with a drive and a network interface as root only, since it takes a tap.

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kindling_api::client::Client;
use kindling_integration_tests::bare_metal::{FLOOR, Images};
use kindling_integration_tests::error::chain;
use kindling_integration_tests::harness::{Connection, Tap, vmm_path};
use kindling_integration_tests::measure::{Resident, quantile, still_clock, wait};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::VMM;
use serde_json::{Value, json};

/// Starts that are measured.
const ROUNDS: usize = 100;
/// Requests of each kind for each of them.
const REQUESTS_PER_ROUND: usize = 50;
const GUEST_MIB: u64 = 128;

/// Bytes of a request and of its answer, or so.
const ECHO_BYTES: usize = 150;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benchmarks, too, but without this argument.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    if let Err(error) = bench(rounds) {
        eprintln!("api: {}", chain(&*error));
        std::process::exit(1);
    }
}

fn bench(rounds: usize) -> Result<()> {
    let progress = Progress::new();
    let images = Images::build(&progress)?;
    let vmm = vmm_path().or_else(|_| VMM.build(&progress))?;
    let floor = FLOOR.build(&progress)?;

    println!("| | median, µs | 99 of 100 within, µs | echo, median, µs |\n|---|---|---|---|");
    for (load, scenario) in [
        ("no guest", None),
        ("a guest that spins", Some("spin")),
        ("a guest that reads a port", Some("ports")),
    ] {
        let monitor = Monitor::start(&vmm, None)?;
        if let Some(scenario) = scenario {
            monitor.run(&images.guest, scenario)?;
            std::thread::sleep(Duration::from_millis(200));
        }
        requests(&monitor, load, rounds * REQUESTS_PER_ROUND)?;
    }

    println!("\n| | vmm | floor | vmm / floor |\n|---|---|---|---|");
    let mut samples = [const { Vec::new() }; 4];
    for round in 0..=rounds {
        let figures = [start_to_answer(&vmm)?, start_to_mark(&floor, &images.mark)?].concat();
        // The first does not count.
        if round > 0 {
            samples.iter_mut().zip(figures).for_each(|(samples, figure)| samples.push(figure));
        }
    }
    let [processor, wall, floor_processor, floor_wall] = samples.map(|samples| quantile(&samples, 0.5));
    for (what, vmm, floor) in
        [("processor time", processor, floor_processor), ("wall time", wall, floor_wall)]
    {
        println!("| start to first answer, {what}, ms | {vmm:.2} | {floor:.2} | {:.2} |", vmm / floor);
    }

    println!("\n| resident memory without the guest's RAM | MiB |\n|---|---|");
    // SAFETY: geteuid takes nothing and cannot fail.
    let tap = (unsafe { libc::geteuid() } == 0).then(|| Tap::new("10.0.0.1/24", &[])).transpose()?;
    for (what, devices) in [("API and guest", false), ("API, guest, a drive, a network interface", true)] {
        if devices && tap.is_none() {
            continue;
        }
        let monitor = Monitor::start(&vmm, tap.as_ref())?;
        if devices {
            monitor.add_devices()?;
        }
        monitor.run(&images.mark, "")?;
        still_clock(&monitor.child)?;
        let resident = Resident::of(monitor.child.id(), GUEST_MIB)?;
        println!("| {what} | {:.2} |", resident.own as f64 / f64::from(1 << 20));
    }
    Ok(())
}

/// A `vmm` that serves its API in a folder of its own.
struct Monitor {
    child: Child,
    folder: tempfile::TempDir,
    client: Client,
}

impl Monitor {
    fn start(vmm: &Path, tap: Option<&Tap>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("api");
        let mut command = Command::new(vmm);
        command.arg("--api-sock").arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(tap) = tap {
            tap.enter(&mut command)?;
        }
        let child = command.spawn()?;
        let monitor = Self { child, folder, client: Client::new(path) };
        monitor.first_answer()?;
        Ok(monitor)
    }

    /// Waits for the socket and asks for the first time.
    fn first_answer(&self) -> Result<()> {
        let start = Instant::now();
        while self.client.get("/").is_err() {
            if start.elapsed() > LIMIT {
                return Err("the API is not served in time".into());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn put(&self, path: &str, body: &Value) -> Result<()> {
        self.client.put(path, body)?.success()?;
        Ok(())
    }

    fn add_devices(&self) -> Result<()> {
        let disk = self.folder.path().join("disk");
        std::fs::File::create(&disk)?.set_len(1 << 20)?;
        self.put("/drives/a", &json!({"drive_id": "a", "is_root_device": false, "path_on_host": disk}))?;
        self.put("/network-interfaces/n", &json!({"iface_id": "n", "host_dev_name": Tap::NAME}))
    }

    fn run(&self, kernel: &Path, scenario: &str) -> Result<()> {
        let arguments = format!("scenario={scenario}");
        self.put("/boot-source", &json!({"kernel_image_path": kernel, "boot_args": arguments}))?;
        self.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": GUEST_MIB}))?;
        self.put("/actions", &json!({"action_type": "InstanceStart"}))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Both fail only for a process that is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measures requests of every kind, in turn with the echo.
fn requests(monitor: &Monitor, load: &str, count: usize) -> Result<()> {
    const KINDS: [(&str, &str, &str, &str); 3] = [
        ("GET /", "GET", "/", ""),
        ("GET /, on a new connection", "GET", "/", ""),
        ("GET /vm/config", "GET", "/vm/config", ""),
    ];
    let path = monitor.folder.path().join("api");
    let mut open = Connection::open(&path)?;
    let mut echo = Echo::start()?;
    for (name, method, target, body) in KINDS {
        let (mut times, mut echoes) = (Vec::new(), Vec::new());
        for turn in 0..count + count / 10 {
            let request = || match name.ends_with("connection") {
                true => Connection::open(&path)?.request(method, target, body),
                false => open.request(method, target, body),
            };
            let times_of_turn = [timed(request)?, timed(|| echo.turn())?];
            if turn >= count / 10 {
                times.push(times_of_turn[0]);
                echoes.push(times_of_turn[1]);
            }
        }
        let [median, tail] = [0.5, 0.99].map(|part| quantile(&times, part));
        println!("| {load}: {name} | {median:.0} | {tail:.0} | {:.0} |", quantile(&echoes, 0.5));
    }
    Ok(())
}

/// How long something takes, in microseconds.
fn timed<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<f64> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

/// A thread that sends back what it gets.
struct Echo(UnixStream);

impl Echo {
    fn start() -> io::Result<Self> {
        let (ours, mut theirs) = UnixStream::pair()?;
        std::thread::spawn(move || {
            let mut bytes = [0; ECHO_BYTES];
            while theirs.read_exact(&mut bytes).is_ok() && theirs.write_all(&bytes).is_ok() {}
        });
        Ok(Self(ours))
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut bytes = [0; ECHO_BYTES];
        self.0.write_all(&bytes)?;
        self.0.read_exact(&mut bytes)
    }
}

/// Processor and wall time in milliseconds.
fn start_to_answer(vmm: &Path) -> Result<[f64; 2]> {
    let start = Instant::now();
    let monitor = Monitor::start(vmm, None)?;
    let wall = start.elapsed();
    Ok([still_clock(&monitor.child)?, wall].map(|time| time.as_secs_f64() * 1e3))
}

/// The same for a guest's first instruction in the floor program.
fn start_to_mark(floor: &Path, image: &Path) -> Result<[f64; 2]> {
    let mut command = Command::new(floor);
    command.arg(image).arg(GUEST_MIB.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let figures = (|| {
        child.stdout.take().ok_or(io::Error::other("no standard output"))?.read_exact(&mut [0])?;
        let wall = start.elapsed();
        Ok([still_clock(&child)?, wall].map(|time| time.as_secs_f64() * 1e3))
    })();
    child.kill()?;
    wait(&child, false)?;
    figures
}
