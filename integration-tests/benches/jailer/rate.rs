//! Guests that are started, and have ended by themselves, in a second: each in a jail, described and started by its API. Beside
//! that the floor program, which makes the KVM calls that such a guest takes and nothing else, and `vmm run`.

use std::fmt::Write as _;
use std::fs;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kindling_api::client::{Client, Response};
use kindling_integration_tests::error::chain;
use kindling_integration_tests::measure::quantile;
use serde_json::json;

/// Guests of each worker in one sample.
const BATCH: usize = 10;
const AT_A_TIME: [usize; 2] = [1, 10];
const GUEST_MIB: u32 = 128;

/// How often a socket is looked for.
const POLL: Duration = Duration::from_micros(200);
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The programs, and the image whose guest asks for a reset with its first two instructions.
pub struct Programs {
    pub jailer: PathBuf,
    pub vmm: PathBuf,
    pub floor: PathBuf,
    pub image: PathBuf,
}

/// The table, of so many samples each.
pub fn table(programs: &Programs, base: &Path, rounds: usize) -> Result<String> {
    // From here it is linked into each jail.
    let image = base.with_file_name("image");
    fs::copy(&programs.image, &image)?;
    let number = AtomicUsize::new(0);
    let jailed = || jailed(programs, base, &image, number.fetch_add(1, Ordering::Relaxed));
    let run = || {
        let mut command = Command::new(&programs.vmm);
        command.args(["run", "--memory", &format!("{GUEST_MIB}M"), "--kernel"]).arg(&image);
        succeed(&mut spawn(&mut command)?)
    };
    let floor = || {
        let mut command = Command::new(&programs.floor);
        succeed(&mut spawn(command.arg(&image).arg(GUEST_MIB.to_string()))?)
    };
    let kinds: [(&str, &(dyn Fn() -> Result<()> + Sync)); 3] =
        [("jailer and API", &jailed), ("`vmm run`", &run), ("floor", &floor)];

    let mut table =
        String::from("| at a time | guests by | a second | of the floor's |\n|---|---|---|---|\n");
    for at_a_time in AT_A_TIME {
        let mut samples = [const { Vec::new() }; 3];
        // The first round does not count.
        for round in 0..=rounds {
            for (samples, (_, guest)) in samples.iter_mut().zip(kinds) {
                let rate = rate(at_a_time, guest)?;
                if round > 0 {
                    samples.push(rate);
                }
                match fs::remove_dir_all(base) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        let medians = samples.map(|samples| quantile(&samples, 0.5));
        for ((name, _), median) in kinds.iter().zip(medians) {
            // Writing to a string does not fail.
            let _ = writeln!(table, "| {at_a_time} | {name} | {median:.1} | {:.2} |", median / medians[2]);
        }
    }
    Ok(table)
}

/// Guests a second of so many workers.
fn rate(workers: usize, guest: &(dyn Fn() -> Result<()> + Sync)) -> Result<f64> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let batch = || (0..BATCH).try_for_each(|_| guest());
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(batch)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(Error::other("a thread panicked"))))
    })?;
    Ok((workers * BATCH) as f64 / start.elapsed().as_secs_f64())
}

/// A guest in a jail of its own, from the start of the jailer to the guest's end.
fn jailed(programs: &Programs, base: &Path, image: &Path, number: usize) -> Result<()> {
    let id = number.to_string();
    let mut command = Command::new(&programs.jailer);
    command.args(["--id", &id, "--uid", "1", "--gid", "1", "--exec-file"]).arg(&programs.vmm);
    let mut child = spawn(command.arg("--chroot-base-dir").arg(base))?;
    let told = tell(base, &id, image, &mut child);
    if told.is_err() {
        let _ = child.kill();
    }
    let ended = succeed(&mut child);
    told.and(ended)
}

/// Describes the guest to its monitor and starts it.
fn tell(base: &Path, id: &str, image: &Path, child: &mut Child) -> Result<()> {
    let root = base.join("vmm").join(id).join("root");
    let socket = root.join("run/firecracker.socket");
    let client = Client::new(&socket);
    let deadline = Instant::now() + LIMIT;
    while client.get("/").is_err() {
        if Instant::now() > deadline || child.try_wait()?.is_some() {
            return Err(Error::other(format!("nobody answers at {}", socket.display())));
        }
        std::thread::sleep(POLL);
    }
    fs::hard_link(image, root.join("image"))?;
    let put = |path: &str, body| {
        let answer = client.put(path, &body).and_then(Response::success);
        answer.map(drop).map_err(|error| Error::other(format!("PUT {path}: {}", chain(&error))))
    };
    put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": GUEST_MIB }))?;
    put("/boot-source", json!({ "kernel_image_path": "/image" }))?;
    put("/actions", json!({ "action_type": "InstanceStart" }))
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

fn succeed(child: &mut Child) -> Result<()> {
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(Error::other(format!("a monitor ended with {status}"))) }
}
