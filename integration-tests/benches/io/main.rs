//! What I/O costs a stock Linux guest, in instructions: `vmm` beside other monitors.
//!
//!     cargo bench --package kindling-integration-tests --bench io [-- [ROUNDS] [WORD] [firecracker=FILE]]
//!
//! With a word, only groups with it in their names. QEMU's machine `microvm` is always among the monitors, and `vmm` without
//! its filters of system calls; Firecracker is if it is there, as the file named.
//!
//! A figure is taken in a nested host whose clock counts instructions, as those of the benchmark `boot` are: what the
//! program in the guest, the guest's kernel, the monitor and the host's kernel execute for one operation. There is one
//! processor for all of them, so that an operation costs what it keeps anybody busy. What only hardware has is left out:
//! the cost of an exit, caches, memory, and that several processors work at a time. A group of figures comes from one
//! guest in a fresh host.
//!
//! - *Disks*: fio with direct I/O in the guest; in the host a file of 64 MiB in memory. Random requests are of 4 KiB,
//!   sequential ones of 128 KiB, 4 at a time.
//! - *Networks*: iperf3 through a tap, with one connection; datagrams of 64 bytes as fast as they can be sent, of which
//!   those count that arrive.
//! - *Sockets*: socat in the guest, and a Unix socket. QEMU has none.

mod monitors;
mod work;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use kindling_integration_tests::counting_host::{self, CountingHost};
use kindling_integration_tests::error::{Context, Error, Result, chain};
use kindling_integration_tests::guest_image::GuestImage;
use kindling_integration_tests::harness::vmm_path;
use kindling_integration_tests::microvm;
use kindling_integration_tests::packages::{self, IP, IPERF3, QEMU};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::root_image;
use kindling_integration_tests::workspace::{VMM, target_dir};
use monitors::{Kind, Monitor, Parts};
use work::Group;

const ROUNDS: usize = 3;

/// The first argument of this program in the nested host. Group, monitor, what guests are made of, and the names of figures
/// that are not wanted follow.
const IN_HOST: &str = "--in-host";

/// How a line with a figure begins in what it prints there.
const FIGURE: &str = "figure ";

/// The line behind the last figure.
const COMPLETE: &str = "complete";

/// More than twice what a host takes.
const LIMIT: Duration = Duration::from_secs(150);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, arguments)) if first == IN_HOST => measure(arguments),
        // `cargo test --all-targets` runs benchmarks, too, but without this argument.
        _ if !arguments.iter().any(|argument| argument == "--bench") => Ok(()),
        _ => bench(&arguments).map(|table| println!("{table}")),
    };
    if let Err(error) = result {
        eprintln!("io: {}", chain(&error));
        std::process::exit(1);
    }
}

/// In the nested host: runs a group under a monitor, and prints its figures.
fn measure(arguments: &[String]) -> Result<()> {
    counting_host::stop_polling()?;
    let [group, kind, program, image, root, given @ ..] = arguments else {
        return Err(Error::Protocol("a group, a monitor and its guest are needed".to_owned()));
    };
    let unknown = |what: &str| Error::Protocol(format!("unknown: {what}"));
    let group = Group::ALL.into_iter().find(|each| each.name() == group).ok_or_else(|| unknown(group))?;
    let kind = Kind::ALL.into_iter().find(|each| each.name() == kind).ok_or_else(|| unknown(kind))?;
    let parts = Parts { image: GuestImage::at(image), root: root.into() };
    let monitor = Monitor { kind, program: program.into() };
    work::run(group, &monitor, &parts, &Figures { group, given })?;
    println!("{COMPLETE}");
    Ok(())
}

/// Where a group's figures go.
struct Figures<'a> {
    group: Group,
    /// The names of those that another host gave before it hung.
    given: &'a [String],
}

impl Figures<'_> {
    /// Has `work` measure the instructions for each operation, if they are wanted, and prints them.
    fn measure(&self, name: &str, work: impl FnOnce() -> Result<f64>) -> Result<()> {
        let name = format!("{}: {name}", self.group.name());
        if !self.given.contains(&name) {
            println!("{FIGURE}{:.0} {name}", work()?);
        }
        Ok(())
    }
}

/// What a monitor's samples are, by group and name, in the order of the table.
#[derive(Default)]
struct Samples(Vec<(String, Vec<f64>)>);

impl Samples {
    fn add(&mut self, name: String, figure: f64) {
        match self.0.iter_mut().find(|(present, _)| *present == name) {
            Some((_, figures)) => figures.push(figure),
            None => self.0.push((name, vec![figure])),
        }
    }

    fn median(&self, name: &str) -> Option<f64> {
        let mut figures = self.0.iter().find(|(present, _)| present == name)?.1.clone();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied()
    }
}

fn bench(arguments: &[String]) -> Result<String> {
    let mut rounds = ROUNDS;
    let mut word = "";
    let mut more = Vec::new();
    for argument in arguments.iter().filter(|argument| !argument.starts_with('-')) {
        match (argument.parse(), argument.split_once('=')) {
            (Ok(number), _) => rounds = number,
            (_, Some((name, path))) => {
                let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
                let kind = kind.ok_or_else(|| Error::Protocol(format!("no monitor is named {name}")))?;
                more.push(Monitor { kind, program: PathBuf::from(path) });
            }
            _ => word = argument,
        }
    }
    if !Group::ALL.iter().any(|group| group.name().contains(word)) {
        let names = Group::ALL.map(Group::name).join(", ");
        return Err(Error::Protocol(format!("no group has {word} in its name; there are {names}")));
    }
    let progress = Progress::new();
    packages::require(&[QEMU, IP, IPERF3], &progress)?;
    let image = match GuestImage::from_environment() {
        Some(image) => image,
        None => GuestImage::prepare(&progress)?,
    };
    let root = root_image::prepare(&progress)?;
    let vmm = vmm_path().or_else(|_| VMM.build(&progress))?;
    let qemu = packages::find_program(QEMU.program)?;
    let mut monitors = [(Kind::Vmm, vmm.clone()), (Kind::Unfiltered, vmm), (Kind::Qemu, qemu)]
        .map(|(kind, program)| Monitor { kind, program })
        .to_vec();
    monitors.append(&mut more);

    let me = std::env::current_exe().doing(|| "cannot find this program".to_owned())?;
    let mut programs = vec![me.clone(), packages::find_program(IP.program)?];
    programs.push(packages::find_program(IPERF3.program)?);
    let mut files = microvm::firmware().to_vec();
    files.extend([image.vmlinux(), image.initramfs(), root.clone()]);
    for monitor in &monitors {
        // A static program has no libraries to ask for.
        let is_static = matches!(monitor.kind, Kind::Vmm | Kind::Unfiltered);
        let place = if is_static { &mut files } else { &mut programs };
        if !place.contains(&monitor.program) {
            place.push(monitor.program.clone());
        }
    }
    let folder = tempfile::tempdir_in(target_dir()).doing(|| "cannot create a folder".to_owned())?;
    let host = CountingHost::new(folder.path(), &image, &programs, &files, LIMIT)?;

    let mut samples: Vec<Samples> = monitors.iter().map(|_| Samples::default()).collect();
    for group in Group::ALL.into_iter().filter(|group| group.name().contains(word)) {
        for round in 1..=rounds {
            for (monitor, samples) in monitors.iter().zip(&mut samples) {
                if !monitor.kind.has(group) {
                    continue;
                }
                let paths = [&monitor.program, &image.folder().to_owned(), &root];
                let mut job = vec![me.display().to_string(), IN_HOST.to_owned(), group.name().to_owned()];
                job.push(monitor.kind.name().to_owned());
                job.extend(paths.map(|path| path.display().to_string()));
                let what = format!("{}, round {round} of {rounds}, {}", group.name(), monitor.kind.name());
                let figures = progress.during(&what, || figures(&host, job))?;
                figures.into_iter().for_each(|(name, figure)| samples.add(name, figure));
            }
        }
    }
    Ok(table(&monitors, &samples))
}

/// What a program in a host measures. Hosts hang and break at times, as the guests in them do: what one has given before
/// holds, and the next one does the rest.
fn figures(host: &CountingHost, job: Vec<String>) -> Result<Vec<(String, f64)>> {
    let mut figures = Vec::new();
    host.run(job, |output, job| {
        for line in output.split_inclusive('\n') {
            if let Some((name, figure)) = parse_figure(line) {
                job.push(name.clone());
                figures.push((name, figure));
            }
        }
        output.lines().any(|line| line.trim_end() == COMPLETE).then_some(())
    })?;
    Ok(figures)
}

/// Reads a whole line: a host that hangs may leave the last one unfinished.
fn parse_figure(line: &str) -> Option<(String, f64)> {
    let (figure, name) = line.strip_prefix(FIGURE)?.strip_suffix('\n')?.split_once(' ')?;
    Some((name.trim().to_owned(), figure.parse().ok()?))
}

fn table(monitors: &[Monitor], samples: &[Samples]) -> String {
    let Some((ours, theirs)) = samples.split_first() else { return String::new() };
    let names = monitors.iter().skip(1).map(|monitor| monitor.kind.name());
    let mut table = "| | vmm |".to_owned();
    for name in names {
        // Writing to a string does not fail.
        let _ = write!(table, " {name} | vmm / {name} |");
    }
    let _ = writeln!(table, "\n|---|---|{}", "---|---|".repeat(theirs.len()));
    for (name, _) in &ours.0 {
        let vmm = ours.median(name).unwrap_or(f64::NAN);
        let _ = write!(table, "| {name} | {vmm:.0} |");
        for samples in theirs {
            let _ = match samples.median(name) {
                Some(other) => write!(table, " {other:.0} | {:.2} |", vmm / other),
                None => write!(table, " none | |"),
            };
        }
        table.push('\n');
    }
    table
}
