//! What a start costs: `vmm` beside the floor program, which makes the same KVM calls and does nothing else.
//!
//!     cargo bench --package kindling-integration-tests --bench startup [-- ROUNDS]
//!
//! All run the same images of the bare-metal guest with one vCPU and 128 MiB, in turn, in the same run; the table
//! shows medians. Absolute times depend on the machine and its load, the ratio less so. *Unconfined* is `vmm` without Landlock and
//! filters of system calls, which the floor does not have: the difference is what these walls cost a start.
//!
//! - *Start to exit*: the `exit` image asks for a reset with its first two instructions. Wall time is from before the
//!   process is spawned until it has been waited for, so it holds the kernel's release of the virtual machine.
//!   Processor time is that of `wait4`: the whole process, as the scheduler measures it in nanoseconds (Linux only
//!   splits it into user and system by sampling; the sum is exact).
//! - *Start to first instruction*: the `mark` image writes a byte to the serial port with its first three instructions
//!   and halts. Wall time is until the byte is read from the process's standard output. Processor time is the process's
//!   CPU clock once it stands still; nothing runs after the byte but the way to the halt.
//! - *Guests a second*: whole processes with the `exit` image, by one worker and by two.
//! - *Resident memory*: from `/proc/PID/smaps` of the process whose guest has halted, with and without the mapping of
//!   the guest's RAM.

use std::fmt::Write as _;
use std::io::{Error, Read, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kindling_integration_tests::bare_metal::{FLOOR, Images};
use kindling_integration_tests::harness::vmm_path;
use kindling_integration_tests::measure::{Resident, bench_main, quantile, still_clock, wait};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::VMM;

const ROUNDS: usize = 100;
const GUEST_MIB: u64 = 128;

/// Guests of each worker in one sample of the rate.
const BATCH: usize = 20;

/// Starts an image.
type Start<'a> = &'a (dyn Fn(&Path) -> Command + Sync);

fn main() {
    bench_main("startup", ROUNDS, bench);
}

fn bench(rounds: usize) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let progress = Progress::new();
    let images = Images::build(&progress)?;
    // A file costs more or fewer page faults, by how it has come into the page cache: both are copied, as what is installed is.
    let folder = tempfile::tempdir()?;
    let (vmm, floor) = (folder.path().join("vmm"), folder.path().join("floor"));
    std::fs::copy(vmm_path().or_else(|_| VMM.build(&progress))?, &vmm)?;
    std::fs::copy(FLOOR.build(&progress)?, &floor)?;
    let vmm = |image: &Path| {
        let mut command = Command::new(&vmm);
        command.args(["run", "--memory", &format!("{GUEST_MIB}M"), "--kernel"]).arg(image);
        command
    };
    let unconfined = |image: &Path| {
        let mut command = vmm(image);
        command.args(["--no-seccomp", "--landlock=off"]);
        command
    };
    let floor = |image: &Path| {
        let mut command = Command::new(&floor);
        command.arg(image).arg(GUEST_MIB.to_string());
        command
    };
    let starts: [Start<'_>; 3] = [&vmm, &unconfined, &floor];

    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut table = String::from(
        "| | vmm | unconfined | floor | vmm / floor | unconfined / floor |\n|---|---|---|---|---|---|\n",
    );
    let samples = interleave(rounds, starts, |start| start_to_exit(&mut start(&images.exit)))?;
    row(&mut table, "start to exit, processor time, ms", &samples, |cost| milliseconds(cost.processor));
    row(&mut table, "start to exit, wall time, ms", &samples, |cost| milliseconds(cost.wall));
    let samples = interleave(rounds, starts, |start| start_to_mark(&mut start(&images.mark)))?;
    row(&mut table, "start to first instruction, processor time, ms", &samples, |cost| {
        milliseconds(cost.0.processor)
    });
    row(&mut table, "start to first instruction, wall time, ms", &samples, |cost| milliseconds(cost.0.wall));
    row(&mut table, "resident without the guest's RAM, MiB", &samples, |cost| mebibytes(cost.1.own));
    row(&mut table, "resident in all, MiB", &samples, |cost| mebibytes(cost.1.all));
    for workers in [1, 2] {
        let samples =
            interleave(rounds.div_ceil(BATCH), starts, |start| rate(workers, || start(&images.exit)))?;
        row(&mut table, &format!("guests a second, {workers} at a time"), &samples, |rate| *rate);
    }
    Ok(table)
}

/// Takes samples of all in turn, after one of each that does not count.
fn interleave<T>(
    rounds: usize,
    starts: [Start<'_>; 3],
    sample: impl Fn(Start<'_>) -> Result<T>,
) -> Result<[Vec<T>; 3]> {
    let mut samples = [const { Vec::new() }; 3];
    for round in 0..=rounds {
        for (samples, start) in samples.iter_mut().zip(starts) {
            let sample = sample(start)?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

/// Adds a row with the medians of one figure.
fn row<T>(table: &mut String, name: &str, samples: &[Vec<T>; 3], figure: impl Fn(&T) -> f64) {
    let [vmm, unconfined, floor] =
        samples.each_ref().map(|samples| quantile(&samples.iter().map(&figure).collect::<Vec<_>>(), 0.5));
    // Writing to a string does not fail.
    let _ = writeln!(
        table,
        "| {name} | {vmm:.2} | {unconfined:.2} | {floor:.2} | {:.2} | {:.2} |",
        vmm / floor,
        unconfined / floor
    );
}

/// The time that something took.
struct Cost {
    wall: Duration,
    processor: Duration,
}

fn start_to_exit(command: &mut Command) -> Result<Cost> {
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let processor = wait(&child, true)?;
    Ok(Cost { wall: start.elapsed(), processor })
}

fn start_to_mark(command: &mut Command) -> Result<(Cost, Resident)> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let cost = (|| {
        let mut stdout = child.stdout.take().ok_or(Error::other("no standard output"))?;
        stdout.read_exact(&mut [0])?;
        let wall = start.elapsed();
        let processor = still_clock(&child)?;
        Ok((Cost { wall, processor }, Resident::of(child.id(), GUEST_MIB)?))
    })();
    child.kill()?;
    wait(&child, false)?;
    cost
}

/// Guests a second with so many workers, each of which starts a guest when its last one has ended.
fn rate(workers: usize, command: impl Fn() -> Command + Sync) -> Result<f64> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let work = || (0..BATCH).try_for_each(|_| start_to_exit(&mut command()).map(drop));
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or(Err(Error::other("a worker panicked"))))
    })?;
    Ok((workers * BATCH) as f64 / start.elapsed().as_secs_f64())
}
