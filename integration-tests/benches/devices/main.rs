//! What devices do: `vmm` beside QEMU's machine `microvm`, with a guest that polls.
//!
//!     cargo bench --package kindling-integration-tests --bench devices [-- ROUNDS] [WORD]
//!
//! With a word, only rows with it in their names. Networks need root.
//!
//! The guest without an operating system has the device do one thing for a quarter of a second, after a while that does
//! not count, and says how much was done in how many ticks of the time stamp counter. It accepts the same features from
//! both monitors, EVENT_IDX among them, and has queues of 256 entries. It wants no interrupts, but in the rows that say
//! so, and takes none even there: they show what it costs to send them. QEMU is no reference for these: it makes no
//! system call for an interrupt that nobody has unmasked or acknowledges. Each round takes every row, and in each row
//! one monitor right after the other, in turns.
//!
//! - *Disks*: a file in the page cache, with a cache that the guest can flush. QEMU has an I/O thread for either engine.
//!   Random requests are of 4 KiB, sequential ones of 128 KiB, 4 at a time. With 4 queues it is 8 requests in each, and
//!   one processor that polls them all.
//! - *Networks*: a tap in a namespace of its own. Frames of 64 bytes, or of 64,000 that wait for segmentation. Those
//!   that the guest sends are for nobody, and the host drops them. Those that it receives come from a packet socket, and
//!   it has asked for them, so that none is lost. With offloads and buffers that merge.
//! - *Sockets*: packets of 64 KiB, to and from a Unix socket. QEMU has none, but only those of the host's kernel.

mod monitors;
mod peers;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use kindling_integration_tests::bare_metal::Images;
use kindling_integration_tests::error::{Error, Result, chain};
use kindling_integration_tests::harness::vmm_path;
use kindling_integration_tests::packages::{self, QEMU};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::VMM;
use monitors::{Attached, Engine, Monitor, Place};

const ROUNDS: usize = 7;

/// How long a sample takes, after its start and a fourth of that which does not count.
const SAMPLE: Duration = Duration::from_millis(250);

/// A machine with much else to do may leave a monitor none of this time.
const ATTEMPTS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benchmarks, too, but without this argument.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let mut rounds = ROUNDS;
    let mut wanted = "";
    for argument in arguments.iter().filter(|argument| !argument.starts_with('-')) {
        match argument.parse() {
            Ok(number) => rounds = number,
            Err(_) => wanted = argument,
        }
    }
    match bench(rounds, wanted) {
        Ok(table) => println!("{table}"),
        Err(error) => {
            eprintln!("devices: {}", chain(&error));
            std::process::exit(1);
        }
    }
}

/// One thing to measure.
struct Row {
    name: String,
    /// What the guest is told besides the time.
    words: String,
    attached: Attached,
    /// How much of what the guest counts makes one unit of the table.
    unit: f64,
    reference: Option<Monitor>,
}

fn bench(rounds: usize, wanted: &str) -> Result<String> {
    let progress = Progress::new();
    packages::require(&[QEMU], &progress)?;
    let image = Images::build(&progress)?.guest;
    let vmm = vmm_path().or_else(|_| VMM.build(&progress))?;
    let mut rows = rows();
    rows.retain(|row| row.name.contains(wanted));
    let place =
        Place::new(&vmm, &image, rows.iter().any(|row| matches!(row.attached, Attached::Tap { .. })))?;
    let frequency = tsc_frequency();
    let ticks = (frequency * SAMPLE.as_secs_f64()) as u64;
    let sample = |row: &Row, monitor| -> Result<f64> {
        let words = format!("{} ticks={ticks}", row.words);
        let mut said = String::new();
        for _ in 0..ATTEMPTS {
            said = place.run(monitor, &row.attached, &words)?;
            if let Some((work, took)) = measured(&said) {
                return Ok(work / row.unit / (took / frequency));
            }
        }
        Err(Error::Protocol(format!("{}, {monitor:?}: the guest said {said:?}", row.name)))
    };

    let mut samples = vec![(Vec::new(), Vec::new()); rows.len()];
    for round in 1..=rounds {
        progress.during(&format!("round {round} of {rounds}"), || {
            for (row, (ours, theirs)) in rows.iter().zip(&mut samples) {
                let mut turns = [(Some(Monitor::Vmm), ours), (row.reference, theirs)];
                if round % 2 == 0 {
                    turns.reverse();
                }
                for (monitor, samples) in turns {
                    if let Some(monitor) = monitor {
                        samples.push(sample(row, monitor)?);
                    }
                }
            }
            Ok::<_, Error>(())
        })?;
    }
    let mut table = format!("| | vmm | QEMU | vmm / QEMU | in {rounds} rounds |\n|---|---|---|---|---|\n");
    for (row, (ours, theirs)) in rows.iter().zip(&samples) {
        let (vmm, qemu) = (median(ours), median(theirs));
        // Writing to a string does not fail.
        let _ = write!(table, "| {} | {} |", row.name, figure(vmm));
        let _ = if theirs.is_empty() {
            writeln!(table, " none | | |")
        } else {
            let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
            ratios.sort_by(f64::total_cmp);
            let ends = ratios.first().zip(ratios.last()).unwrap_or((&f64::NAN, &f64::NAN));
            writeln!(table, " {} | {:.2} | {:.2} to {:.2} |", figure(qemu), vmm / qemu, ends.0, ends.1)
        };
    }
    Ok(table)
}

/// Three digits that mean something.
fn figure(value: f64) -> String {
    if value < 99.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn rows() -> Vec<Row> {
    let mut rows = disk_rows();
    rows.extend(network_rows(false));
    if std::fs::exists("/dev/vhost-net").unwrap_or(false) {
        rows.extend(network_rows(true));
    }
    for (way, send) in [("to the host", 1), ("from the host", 0)] {
        rows.push(Row {
            name: format!("vsock: {way}, MiB/s"),
            words: format!("scenario=vsock interrupts=0 send={send}"),
            attached: Attached::Vsock { guest_sends: send == 1 },
            unit: f64::from(1 << 20),
            reference: None,
        });
    }
    rows.extend(interrupt_rows(&rows));
    rows
}

/// One row of each device again, with interrupts.
fn interrupt_rows(rows: &[Row]) -> Vec<Row> {
    let busiest = [
        "blk async: random read, 32 at a time, 1,000/s",
        "net: receive frames of 64 bytes, 1,000/s",
        "vsock: from the host, MiB/s",
    ];
    let rows = rows.iter().filter(|row| busiest.contains(&&*row.name));
    let with_interrupts = |row: &Row| Row {
        name: format!("{}, interrupts", row.name),
        words: row.words.replace("interrupts=0", "interrupts=1"),
        attached: row.attached,
        unit: row.unit,
        reference: None,
    };
    rows.map(with_interrupts).collect()
}

fn disk_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |engine, name: &str, queues: u8, unit: f64, words: &str| {
        rows.push(Row {
            name: format!("blk {engine}: {name}"),
            words: format!("scenario=blk interrupts=0 queues={queues} {words}"),
            attached: Attached::Disk { engine, queues },
            unit,
            reference: Some(Monitor::Qemu),
        });
    };
    for engine in [Engine::Sync, Engine::Async] {
        for (way, write) in [("read", 0), ("write", 1)] {
            for (shape, queues, depth) in
                [("1 at a time", 1, 1), ("32 at a time", 1, 32), ("4 queues of 8", 4, 8)]
            {
                let words = format!("size=4096 random=1 write={write} depth={depth}");
                add(engine, &format!("random {way}, {shape}, 1,000/s"), queues, 1e3, &words);
            }
            let words = format!("size=131072 random=0 write={write} depth=4");
            add(engine, &format!("sequential {way}, MiB/s"), 1, 8.0, &words);
        }
    }
    rows
}

fn network_rows(vhost: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for (way, send) in [("send", 1), ("receive", 0)] {
        for (large, unit, name) in
            [(false, 1e3, "frames of 64 bytes, 1,000/s"), (true, 1e6 / 64e3, "frames of 64,000 bytes, MB/s")]
        {
            let (size, under_way) = if large { (64_000, 64) } else { (64, 256) };
            // Frames, or batches that it asks for at first.
            let depth = if send == 1 { under_way } else { 8 };
            let batch = peers::batch(large);
            let words = format!("send={send} size={size} depth={depth} batch={batch}");
            rows.push(Row {
                name: format!("net{}: {way} {name}", if vhost { " beside vhost" } else { "" }),
                words: format!("scenario=net interrupts=0 {words}"),
                attached: Attached::Tap { large, guest_sends: send == 1 },
                unit,
                reference: Some(if vhost { Monitor::QemuVhost } else { Monitor::Qemu }),
            });
        }
    }
    rows
}

/// The work and the ticks of the guest's line.
fn measured(said: &str) -> Option<(f64, f64)> {
    let line = said.lines().find_map(|line| line.strip_prefix("measured "))?;
    let (work, ticks) = line.split_once(' ')?;
    let work: f64 = work.parse().ok()?;
    (work > 0.0).then_some((work, ticks.parse().ok()?))
}

fn median(samples: &[f64]) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Ticks of the time stamp counter in a second; guests see the same counter.
fn tsc_frequency() -> f64 {
    // SAFETY: every x86-64 processor has the instruction.
    let now = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), now());
    std::thread::sleep(Duration::from_millis(200));
    (now() - first) as f64 / start.elapsed().as_secs_f64()
}
