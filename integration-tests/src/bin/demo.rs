//! `cargo demo`: a guest to look at, from a fresh checkout.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use kindling_api::parse_memory_size;
use kindling_integration_tests::error::{Context, Error, Result, chain};
use kindling_integration_tests::harness::{Agent, BASE_CMDLINE, Console, Guest};
use kindling_integration_tests::nested::{Host, Limits, Outcome};
use kindling_integration_tests::place::Place;
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::run::{arguments, die_with_parent};
use kindling_integration_tests::runner::{EXIT_HOST_BROKEN, HOST_MEMORY_MIB, Prepared, limits, report};
use kindling_integration_tests::terminal::{self, RawMode};

/// Boots a stock Linux guest under the monitor and gives you its shell.
///
/// What is needed is built, downloaded and installed first: the monitor, a distribution kernel (nothing of it is
/// installed), busybox, and the emulator for machines whose KVM cannot run guests. The first time takes a few minutes,
/// later ones seconds.
///
/// The guest runs directly on this machine if its KVM runs guest kernels; otherwise in the nested host, an emulated
/// machine with a KVM of its own, which is slower and changes nothing else. The demo says which, and why.
#[derive(Parser)]
#[command(bin_name = "cargo demo --", after_help = AFTER_HELP)]
struct Options {
    /// Boot, run commands in the guest, power it off, and report; for scripts
    #[arg(long)]
    check: bool,

    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=254))]
    cpus: u32,

    /// Memory of the guest: a number of MiB, or with a unit as in 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
}

const AFTER_HELP: &str = "\
Leaving: `exit`, `poweroff` or Ctrl-D in the guest's shell. Ctrl-A x ends the monitor whatever the guest does.

Examples:
  cargo demo
  cargo demo -- --cpus 4 --memory 1G
  cargo demo -- --check
  KINDLING_HOST=nested cargo demo      in the nested host, even if this machine's KVM runs guests

Variables:
  KINDLING_HOST            native or nested: do not look at the machine
  KINDLING_VMM             use this monitor instead of building one
  KINDLING_KERNEL_PACKAGE  take the kernel from this package
  KINDLING_TIMEOUT_SCALE   multiplies every time limit

Exit codes: 0 the guest powered off, or the check passed; 1 something could not be prepared, or the check failed;
3 the nested host broke; others are the monitor's (`vmm --help`).";

/// What the nested host needs beside the guest's memory, in MiB.
const HOST_OWN_MIB: u32 = 1024;

/// How much of the console a failed check shows.
const LINES_SHOWN: usize = 50;

/// How long the guest may take to start, and each step of the check.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
const STEP_LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let options = Options::parse_from(arguments());
    match run(&options, &Progress::new()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("demo: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, progress: &Progress) -> Result<u8> {
    let prepared = Prepared::prepare(progress)?;
    let place = match prepared.decision.place {
        Place::Native => "directly on this machine",
        Place::Nested => "in the nested host",
    };
    let release = prepared.image.release()?;
    progress.note(&format!("Linux {release} runs {place}: {}.", prepared.decision.why));
    match (options.check, prepared.decision.place) {
        (true, Place::Native) => check_native(options, &prepared, progress),
        (true, Place::Nested) => check_nested(options, &prepared, progress),
        (false, place) => {
            progress.note(
                "Leave with `exit`, `poweroff` or Ctrl-D; Ctrl-A x ends the monitor whatever the guest does.",
            );
            match place {
                Place::Native => shell_native(options, &prepared),
                Place::Nested => shell_nested(options, &prepared, progress),
            }
        }
    }
}

/// The monitor's command line.
fn vmm_argv(options: &Options, prepared: &Prepared, init: &str) -> Vec<OsString> {
    let image = &prepared.image;
    vec![
        prepared.vmm.clone().into(),
        "run".into(),
        "--kernel".into(),
        image.vmlinux().into(),
        "--initrd".into(),
        image.initramfs().into(),
        "--cmdline".into(),
        format!("{BASE_CMDLINE} kindling.init={init}").into(),
        "--cpus".into(),
        options.cpus.to_string().into(),
        "--memory".into(),
        options.memory.clone().into(),
    ]
}

/// Init's parameters for a shell on our terminal.
fn shell_init() -> String {
    let mut init = "shell loglevel=2".to_owned();
    if let Some((columns, rows)) = terminal::size(io::stdout()) {
        init.push_str(&format!(" kindling.size={columns}x{rows}"));
    }
    let plain = |term: &String| term.chars().all(|c| c.is_ascii_alphanumeric() || "-+._".contains(c));
    if let Some(term) = std::env::var("TERM").ok().filter(plain) {
        init.push_str(&format!(" TERM={term}"));
    }
    init
}

fn shell_native(options: &Options, prepared: &Prepared) -> Result<u8> {
    use std::os::unix::process::ExitStatusExt;
    let argv = vmm_argv(options, prepared, &shell_init());
    let status = die_with_parent(&mut command(&argv))
        .status()
        .doing(|| format!("cannot start {}", prepared.vmm.display()))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn command(argv: &[OsString]) -> Command {
    let mut command = Command::new(argv.first().map_or(std::ffi::OsStr::new("vmm"), |program| program));
    command.args(argv.iter().skip(1));
    command
}

/// Starts a nested host that runs the monitor, with enough memory for the guest.
fn start_host(options: &Options, prepared: &Prepared, init: &str) -> Result<Host> {
    let guest_mib = parse_memory_size(&options.memory)
        .map_err(|error| Error::Protocol(format!("--memory {}: {error}", options.memory)))?;
    let guest_mib = u32::try_from(guest_mib).unwrap_or(u32::MAX);
    let mut spec = prepared.host_spec(vmm_argv(options, prepared, init), Vec::new());
    spec.stdin = true;
    spec.memory_mib = HOST_MEMORY_MIB.max(guest_mib.saturating_add(HOST_OWN_MIB));
    Host::start(&spec)
}

fn shell_nested(options: &Options, prepared: &Prepared, progress: &Progress) -> Result<u8> {
    let mut host = start_host(options, prepared, &shell_init())?;
    let (Some(mut stdin), Some(mut stdout)) = (host.stdin.take(), host.stdout.take()) else {
        return Err(Error::Protocol("the nested host has no console".to_owned()));
    };
    let progress = *progress;
    let copier = std::thread::spawn(move || {
        // The first output is the guest's shell: until then there is nothing to type to.
        let mut first = [0; 4096];
        let read = progress.during("starting the nested host and the guest", || stdout.read(&mut first));
        let Ok(count @ 1..) = read else { return };
        let raw_mode = RawMode::enter(io::stdin().as_fd()).unwrap_or_else(|error| {
            progress.note(&format!("cannot set up the terminal: {error}"));
            None
        });
        std::thread::spawn(move || copy(io::stdin(), &mut stdin));
        let mut out = io::stdout();
        let copied = out.write_all(first.get(..count).unwrap_or_default());
        // If our output is closed, there is nobody to tell.
        let _ = copied.and_then(|()| out.flush()).and_then(|()| copy(stdout, &mut out));
        drop(raw_mode);
    });
    // A shell may be used for as long as one likes; only a host without signs of life is ended.
    let outcome = host.wait(&Limits { total: Duration::MAX, ..limits() });
    // The end of the host is the end of its output, and with that the terminal is as it was.
    // A thread that panicked has put it back, too.
    let _ = copier.join();
    match outcome {
        Outcome::Exited(code) => Ok(code),
        Outcome::Broken(breakage) => {
            report(&breakage, &progress);
            Ok(EXIT_HOST_BROKEN)
        }
    }
}

/// Copies bytes as they come, until either side ends.
fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
            return Ok(());
        };
        to.write_all(chunk)?;
        to.flush()?;
    }
}

fn check_native(options: &Options, prepared: &Prepared, progress: &Progress) -> Result<u8> {
    let mut guest = Guest::builder().cpus(options.cpus).memory(&options.memory).program(&prepared.vmm);
    guest = guest.image(prepared.image.clone());
    let start = Instant::now();
    let mut guest = guest.start()?;
    let seen = progress.during("booting the guest", || converse(guest.agent()));
    let seen = seen.inspect_err(|_| show_console(guest.agent(), progress))?;
    let status = guest.wait_exit(STEP_LIMIT)?;
    verdict(&seen, options, prepared, start.elapsed(), status.code().unwrap_or(-1), progress)
}

fn check_nested(options: &Options, prepared: &Prepared, progress: &Progress) -> Result<u8> {
    let start = Instant::now();
    let mut host = start_host(options, prepared, "agent")?;
    let (Some(stdin), Some(stdout)) = (host.stdin.take(), host.stdout.take()) else {
        return Err(Error::Protocol("the nested host has no console".to_owned()));
    };
    let mut agent = Agent::new(Console::new(stdout, Some(Box::new(stdin))));
    let seen = progress.during("starting the nested host and the guest", || converse(&mut agent));
    let mut limits = limits();
    if seen.is_err() {
        // A guest that does not answer does not power off.
        limits.total = Duration::ZERO;
    }
    match (host.wait(&limits), seen) {
        (Outcome::Exited(code), Ok(seen)) => {
            verdict(&seen, options, prepared, start.elapsed(), code.into(), progress)
        }
        (Outcome::Broken(breakage), Ok(_)) => {
            report(&breakage, progress);
            Ok(EXIT_HOST_BROKEN)
        }
        (outcome, Err(error)) => {
            show_console(&agent, progress);
            if let Outcome::Broken(breakage) = outcome {
                report(&breakage, progress);
            }
            Err(error)
        }
    }
}

fn show_console(agent: &Agent, progress: &Progress) {
    progress.note(&format!("---- the guest's console ----\n{}", agent.console.last_lines(LINES_SHOWN)));
    progress.note("-----------------------------");
}

/// What the guest said about itself.
struct Seen {
    release: String,
    cpus: String,
    memory: String,
    uptime: String,
}

/// Asks the guest about itself and powers it off.
fn converse(agent: &mut Agent) -> Result<Seen> {
    agent.wait_ready(BOOT_LIMIT)?;
    let mut ask = |command: &str| {
        let output = agent.run(command, STEP_LIMIT)?;
        match output.code {
            0 => Ok(output.stdout.trim().to_owned()),
            code => {
                Err(Error::Protocol(format!("{command} ended with {code} in the guest: {}", output.stdout)))
            }
        }
    };
    let uptime = ask("cut -d ' ' -f 1 /proc/uptime")?;
    let release = ask("uname -r")?;
    let cpus = ask("nproc")?;
    let memory = ask("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
    agent.begin("poweroff", STEP_LIMIT)?;
    Ok(Seen { release, cpus, memory, uptime })
}

fn verdict(
    seen: &Seen,
    options: &Options,
    prepared: &Prepared,
    took: Duration,
    code: i32,
    progress: &Progress,
) -> Result<u8> {
    let Seen { release, cpus, memory, uptime } = seen;
    let summary = format!(
        "Linux {release}, {cpus} CPUs, {memory} MiB for programs; in user space after {uptime} s of guest time; \
         {:.1} s from start to power-off, monitor's exit code {code}",
        took.as_secs_f64()
    );
    let good = *release == prepared.image.release()? && *cpus == options.cpus.to_string() && code == 0;
    progress.note(&format!("{}: {summary}", if good { "passed" } else { "FAILED" }));
    Ok(u8::from(!good))
}
