//! What the jailer adds to a start: from before it is spawned to the first instruction of the program in the jail; and how
//! many guests a second can be started through it and the API (`rate.rs`).
//!
//!     cargo bench --package kindling-integration-tests --bench jailer [-- ROUNDS]
//!
//! The program is the probe, a static one that prints its processor time and ends, in a file of the size of `vmm`. It runs
//! beside itself without a jailer, in turn, in the same run; the table shows medians and the difference, which is the
//! jailer's. So many are started at a time, each with an id of its own; all folders are removed between rounds, which is not
//! measured.
//!
//! Wall time is until the line has come, processor time what the process says of itself in it: the clock goes on over
//! `execve`. With `--new-pid-ns` that of the jailer, which is another process then, is added.

mod rate;

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{Error, Read, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kindling_integration_tests::bare_metal::{FLOOR, Images};
use kindling_integration_tests::harness::vmm_path;
use kindling_integration_tests::measure::{bench_main, quantile, wait};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::{JAIL_PROBE, JAILER, VMM};

const ROUNDS: usize = 50;
const AT_A_TIME: [usize; 3] = [1, 5, 10];

/// Starts the program, given a number that no other start of the round has.
type Start<'a> = (&'static str, &'a dyn Fn(usize) -> Command);

fn main() {
    bench_main("jailer", ROUNDS, bench);
}

fn bench(rounds: usize) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let progress = Progress::new();
    let jailer = JAILER.build(&progress)?;
    let vmm = vmm_path().or_else(|_| VMM.build(&progress))?;
    let place = tempfile::tempdir()?;
    let probe = place.path().join("probe");
    enlarged(&JAIL_PROBE.build(&progress)?, &probe, std::fs::metadata(&vmm)?.len())?;
    let base = place.path().join("jails");
    let bare = |_| {
        let mut command = Command::new(&probe);
        command.arg("mark");
        command
    };
    let jailed = |number: usize| {
        let mut command = Command::new(&jailer);
        command.args(["--id", &number.to_string(), "--uid", "1", "--gid", "1", "--exec-file"]).arg(&probe);
        command.arg("--chroot-base-dir").arg(&base).args(["--", "mark"]);
        command
    };
    let namespaced = |number: usize| {
        let mut command = Command::new(&jailer);
        command.args(["--id", &number.to_string(), "--uid", "1", "--gid", "1", "--exec-file"]).arg(&probe);
        command.arg("--chroot-base-dir").arg(&base).args(["--new-pid-ns", "--", "mark"]);
        command
    };
    let starts: [Start<'_>; 3] =
        [("bare", &bare), ("jailed", &jailed), ("jailed, --new-pid-ns", &namespaced)];

    let mut table = String::from(
        "| at a time | program | wall time, ms | above bare | processor time, ms | above bare |\n|---|---|---|---|---|---|\n",
    );
    for at_a_time in AT_A_TIME {
        let mut samples = [const { Vec::new() }; 3];
        // The first round does not count.
        for round in 0..=rounds {
            for (samples, (_, start)) in samples.iter_mut().zip(starts) {
                let costs = run(at_a_time, start, &base)?;
                if round > 0 {
                    samples.extend(costs);
                }
            }
        }
        let median = |figure: fn(&Cost) -> Duration, samples: &[Cost]| {
            let figures: Vec<f64> = samples.iter().map(|cost| figure(cost).as_secs_f64() * 1e3).collect();
            quantile(&figures, 0.5)
        };
        let rows = samples
            .each_ref()
            .map(|samples| (median(|cost| cost.wall, samples), median(|cost| cost.processor, samples)));
        for ((name, _), (wall, processor)) in starts.iter().zip(rows) {
            let (over_wall, over_processor) = (wall - rows[0].0, processor - rows[0].1);
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "| {at_a_time} | {name} | {wall:.2} | {over_wall:.2} | {processor:.2} | {over_processor:.2} |"
            );
        }
    }
    let programs =
        rate::Programs { jailer, vmm, floor: FLOOR.build(&progress)?, image: Images::build(&progress)?.exit };
    Ok(format!("{table}\n{}", rate::table(&programs, &base, rounds.div_ceil(10))?))
}

/// Copies a program to a file of at least `size` bytes; nothing of it uses what is behind its own.
fn enlarged(program: &Path, copy: &Path, size: u64) -> Result<()> {
    let mut bytes = std::fs::read(program)?;
    bytes.resize(bytes.len().max(usize::try_from(size).unwrap_or_default()), 0xa5);
    std::fs::write(copy, bytes)?;
    std::fs::set_permissions(copy, Permissions::from_mode(0o755))
}

/// What one start took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    processor: Duration,
}

/// Starts so many programs at the same time.
fn run(at_a_time: usize, start: &dyn Fn(usize) -> Command, base: &Path) -> Result<Vec<Cost>> {
    let mut commands: Vec<Command> = (0..at_a_time).map(start).collect();
    let costs = std::thread::scope(|scope| {
        let threads: Vec<_> =
            commands.iter_mut().map(|command| scope.spawn(move || start_to_mark(command))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::other("a thread panicked"))))
            .collect::<Result<Vec<Cost>>>()
    })?;
    match std::fs::remove_dir_all(base) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(costs),
    }
}

fn start_to_mark(command: &mut Command) -> Result<Cost> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().ok_or(Error::other("no standard output"))?;
    let mut text = [0; 32];
    let length = stdout.read(&mut text)?;
    let wall = start.elapsed();
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
    let marked = text.trim().parse().map_err(Error::other)?;
    let ended = wait(&child, true)?;
    // The probe's own time is part of the child's, unless it is a process of its own.
    let own_process = command.get_args().any(|argument| argument == "--new-pid-ns");
    let jailer = if own_process { ended } else { Duration::ZERO };
    Ok(Cost { wall, processor: Duration::from_nanos(marked) + jailer })
}
