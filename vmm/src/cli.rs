//! The command line of `vmm`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use kindling_api::{
    BalloonConfig, BootProtocol, DriveConfig, HugePages, NetworkInterfaceConfig, SerialConfig, SerialMode,
    VsockConfig,
};

use kindling_seccomp_profiles::Level;

use crate::device_options;
use crate::landlock::Mode;

const AFTER_HELP: &str = "\
Exit codes:
    0    the guest powered off or asked for a reset
    1    the host failed (a system call, a file, memory)
  148    a thread of vmm made a forbidden system call
  143    ended by SIGTERM; 130 by SIGINT, and so on: 128 and the signal's number
  152    bad configuration
  153    bad command line
  160    the guest triple-faulted
  161    KVM reported an internal error; the registers are in the log
  162    /dev/kvm is missing or not permitted: see `vmm doctor`

Examples:
  vmm doctor
  vmm --api-sock /tmp/vm.sock
  vmm run --kernel vmlinux --initrd initramfs.cpio --cpus 2 --memory 1G
  vmm run --kernel vmlinux --disk root.ext4,root --disk data.img,engine=async,queues=4 --net tap=tap0 --rng
  vmm --config-file vm.json --no-api";

/// A microVM monitor for Linux/KVM. Without a command it serves the REST API, by which a guest is described, started and
/// changed.
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    display_name = "Firecracker",
    version = VERSION,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do; without a command, serve the API.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// JSON file with the whole configuration of the guest, which is started at once.
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Do not serve the REST API.
    #[arg(long, requires = "config_file")]
    pub no_api: bool,

    /// Unix socket on which the REST API is served; nothing may be there yet.
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,

    /// Largest body of a request in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_BODY_LIMIT)]
    pub http_api_max_payload_size: usize,

    /// JSON file with what the metadata service offers at first.
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,

    /// Most bytes of JSON that the metadata service keeps [default: that of --http-api-max-payload-size].
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<usize>,

    /// Write to the log how long the guest took to start: it says when by a byte of 123 at physical address 0xc0000000.
    #[arg(long)]
    pub boot_timer: bool,

    /// Which system calls it may make.
    #[command(flatten)]
    pub seccomp: SeccompOptions,

    /// Restrict the process to the files and sockets that its configuration names, once the guest starts: on, as far as the
    /// kernel can; require, or do not start; off. Without MODE: on.
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_value = "off",
          default_missing_value = "on")]
    pub landlock: Mode,

    /// What it is called and where it writes to.
    #[command(flatten)]
    pub instance: InstanceOptions,
}

/// Which system calls the threads of the monitor may make once guest code can run.
#[derive(Debug, Args)]
pub struct SeccompOptions {
    /// Which system calls are forbidden: 0 none, 1 those that are not needed, 2 also those with other arguments than needed.
    #[arg(long, value_name = "LEVEL", default_value = "2", value_parser = level)]
    pub seccomp_level: Level,

    /// Forbid none, as --seccomp-level 0.
    #[arg(long, conflicts_with_all = ["seccomp_level", "seccomp_filter"])]
    pub no_seccomp: bool,

    /// Take the filters from a file that `vmm seccomp compile` made.
    #[arg(long, value_name = "FILE", conflicts_with = "seccomp_level")]
    pub seccomp_filter: Option<PathBuf>,
}

/// Reads what `--seccomp-level` takes.
fn level(text: &str) -> Result<Level, String> {
    match text {
        "0" => Ok(Level::Off),
        "1" => Ok(Level::Calls),
        "2" => Ok(Level::Arguments),
        _ => Err("must be 0, 1 or 2".to_owned()),
    }
}

/// Options of the monitor itself, whatever it does.
#[derive(Debug, Args)]
pub struct InstanceOptions {
    /// Name of the machine: 1 to 64 letters, digits and `-`.
    #[arg(long, value_name = "ID", default_value = DEFAULT_ID, value_parser = id)]
    pub id: String,

    /// File or FIFO for metrics, a line of JSON every minute.
    #[arg(long, value_name = "FILE")]
    pub metrics_path: Option<PathBuf>,

    /// File or FIFO for the monitor's own log; standard error when absent.
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,

    /// Least severe level that is logged: Off, Error, Warning, Info, Debug or Trace [default: Info].
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,

    /// Log only lines whose module path starts with this.
    #[arg(long, value_name = "MODULE")]
    pub module: Option<String>,

    /// Show the level of each line.
    #[arg(long)]
    pub show_level: bool,

    /// Show source file and line of each line.
    #[arg(long)]
    pub show_log_origin: bool,

    /// When whoever started the monitor began to, in microseconds of the monotonic clock.
    #[arg(long, value_name = "US", hide = true)]
    pub start_time_us: Option<u64>,

    /// The same in microseconds of the process's processor time.
    #[arg(long, value_name = "US", hide = true)]
    pub start_time_cpu_us: Option<u64>,

    /// Processor time that whoever started the monitor has used, in microseconds.
    #[arg(long, value_name = "US", hide = true)]
    pub parent_cpu_time_us: Option<u64>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a guest from options, with the terminal as its console (Ctrl-A x ends it, Ctrl-A p presses its power button, Ctrl-A d presses Ctrl+Alt+Del, Ctrl-A Ctrl-A sends Ctrl-A).
    Run(Box<RunOptions>),
    /// Say whether this host can run guests, what is missing and how to get it.
    #[command(
        after_help = "Exit codes:\n  0  guests run here\n  1  they do not; the failing lines say what to do\n  2  KVM works but interprets guest kernels: only small bare-metal guests run"
    )]
    Doctor {
        /// Print one JSON object instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Work with filters of system calls.
    Seccomp {
        /// What to do.
        #[command(subcommand)]
        command: SeccompCommand,
    },
}

/// The subcommands of `vmm seccomp`.
#[derive(Debug, Subcommand)]
pub enum SeccompCommand {
    /// Make a file for --seccomp-filter.
    Compile {
        /// JSON files that have, together, a filter for each of the threads vmm, api, vcpu, io and vsock (without one, it has that of
        /// io).
        #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
        input: Vec<PathBuf>,

        /// The file that is written.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

/// The name of a machine that was given none.
pub const DEFAULT_ID: &str = "anonymous-instance";

/// Largest body of a request in bytes, unless said otherwise.
const DEFAULT_BODY_LIMIT: usize = 51_200;

/// What `--version` says behind the name that tools of Firecracker look for: the version of its API, and ours.
const VERSION: &str = concat!("v1.17.0 API by Kindling vmm ", env!("CARGO_PKG_VERSION"));

/// Reads what `--id` takes.
fn id(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 letters, digits and `-`".to_owned())
    }
}

/// Reads what `--serial` takes: stdio, pty, file=PATH or socket=PATH.
fn serial(text: &str) -> Result<SerialConfig, String> {
    let (mode, path) = match text.split_once('=') {
        None if text == "stdio" => (SerialMode::Stdio, None),
        None if text == "pty" => (SerialMode::Pty, None),
        Some(("file", path)) if !path.is_empty() => (SerialMode::File, Some(path.into())),
        Some(("socket", path)) if !path.is_empty() => (SerialMode::Socket, Some(path.into())),
        _ => return Err("must be stdio, pty, file=PATH or socket=PATH".to_owned()),
    };
    Ok(SerialConfig { mode: Some(mode), serial_out_path: path, rate_limiter: None })
}

/// Reads what `--huge-pages` takes: the names of the config file, in any case.
fn huge_pages(text: &str) -> Result<HugePages, String> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Ok(HugePages::None),
        "transparent" => Ok(HugePages::Transparent),
        "2m" => Ok(HugePages::Hugetlbfs2M),
        _ => Err("must be none, transparent or 2M".to_owned()),
    }
}

/// Options of `vmm run`.
#[derive(Debug, Parser)]
pub struct RunOptions {
    /// Kernel image: uncompressed ELF (vmlinux) or bzImage (vmlinuz).
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// Initial RAM file system; without one the kernel uses its own empty one.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line, in place of the default one.
    #[arg(long, value_name = "STRING")]
    pub cmdline: Option<String>,

    /// Number of vCPUs, 1 to 254.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,

    /// Two hardware threads a core, instead of one.
    #[arg(long)]
    pub smt: bool,

    /// RAM of the guest: a number of MiB, or with a unit as in 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "128M")]
    pub memory: String,

    /// Pages behind the guest's RAM: none, transparent or 2M (from the host's hugetlbfs pool).
    #[arg(long, value_name = "KIND", default_value = "none", value_parser = huge_pages)]
    pub huge_pages: HugePages,

    /// Where the serial port leads: stdio, pty, file=PATH (output only) or socket=PATH.
    #[arg(long, value_name = "TARGET", default_value = "stdio", value_parser = serial)]
    pub serial: SerialConfig,

    /// A disk over a file or block device; may be given many times, the first is vda. OPTIONS: ro, root (the kernel mounts
    /// it as its root file system), engine=sync|async, cache=unsafe|writeback, direct, queues=N, queue-size=N,
    /// sector=512|4096, nodiscard, id=NAME, partuuid=UUID.
    #[arg(long, value_name = "PATH[,OPTIONS]", value_parser = device_options::disk)]
    pub disk: Vec<DriveConfig>,

    /// A network interface over a tap, which is made if it does not exist; may be given many times. OPTIONS: mac=ADDRESS,
    /// mtu=N, queues=N (pairs), id=NAME.
    #[arg(long, value_name = "tap=NAME[,OPTIONS]", value_parser = device_options::net)]
    pub net: Vec<NetworkInterfaceConfig>,

    /// Sockets between guest and host: the guest's address, 3 or more, and the Unix socket that leads to the guest.
    #[arg(long, value_name = "cid=N,path=PATH", value_parser = device_options::vsock)]
    pub vsock: Option<VsockConfig>,

    /// Random bytes from the host.
    #[arg(long)]
    pub rng: bool,

    /// A balloon that takes SIZE of memory from the guest, 0 to begin with none. OPTIONS: deflate-on-oom, stats=SECONDS,
    /// hinting, reporting.
    #[arg(long, value_name = "SIZE[,OPTIONS]", value_parser = device_options::balloon)]
    pub balloon: Option<BalloonConfig>,

    /// Which entry of the kernel is used: auto (PVH where an ELF kernel offers it), linux64 or pvh.
    #[arg(long, value_name = "PROTOCOL", default_value = "auto")]
    pub boot_protocol: BootProtocol,

    /// Serve the REST API on this Unix socket, too.
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,

    /// Which system calls it may make.
    #[command(flatten)]
    pub seccomp: SeccompOptions,

    /// Restrict the process to the files and sockets that its options name, once the guest starts: on, as far as the kernel
    /// can; require, or do not start; off.
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_value = "on",
          default_missing_value = "on")]
    pub landlock: Mode,

    /// What it is called and where it writes to.
    #[command(flatten)]
    pub instance: InstanceOptions,
}

/// What to do when the command line did not parse.
#[derive(Debug)]
pub enum ParseEnd {
    /// Help or version was asked for: print this and succeed.
    Print(String),
    /// One line about what is wrong.
    Error(String),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Task {
    /// `vmm run`
    Run(Box<RunOptions>),
    /// `vmm doctor`
    Doctor {
        /// In JSON.
        json: bool,
    },
    /// `vmm seccomp`
    Seccomp(SeccompCommand),
    /// `vmm` alone
    Serve(Box<Cli>),
}

impl From<Cli> for Task {
    fn from(cli: Cli) -> Self {
        match cli.command {
            Some(Command::Run(options)) => Task::Run(options),
            Some(Command::Doctor { json }) => Task::Doctor { json },
            Some(Command::Seccomp { command }) => Task::Seccomp(command),
            None => Task::Serve(Box::new(cli)),
        }
    }
}

/// Parses the command line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Task, ParseEnd> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A start of a guest pays for the options of `run` alone; whatever they do not explain, the whole definition does.
    if arguments.get(1).is_some_and(|command| command == "run")
        && let Ok(options) = RunOptions::try_parse_from(arguments.iter().skip(1))
    {
        return Ok(Task::Run(Box::new(options)));
    }
    Cli::try_parse_from(arguments).map(Task::from).map_err(|error| {
        let text = error.render().to_string();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ParseEnd::Print(text),
            _ => {
                // clap's first paragraph holds the fault, its lists and usage the rest.
                let fault: Vec<&str> =
                    text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
                let fault = fault.join(" ");
                ParseEnd::Error(format!("{} (see `vmm --help`)", fault.trim_start_matches("error: ")))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::API_LEVEL;

    fn fault(arguments: &[&str]) -> String {
        match parse(arguments.iter().map(OsString::from)) {
            Err(ParseEnd::Error(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn fault_is_one_line_that_names_the_option() {
        for (arguments, name) in [
            (&["vmm", "run"][..], "--kernel"),
            (&["vmm", "run", "--kernel", "k", "--cpus", "many"], "--cpus"),
            (&["vmm", "run", "--kernel", "k", "--serial", "tape"], "--serial"),
            (&["vmm", "run", "--kernel", "k", "--serial", "file="], "--serial"),
            (&["vmm", "run", "--kernel", "k", "--boot-protocol", "bios"], "--boot-protocol"),
            (&["vmm", "--no-api"], "--config-file"),
            (&["vmm", "--id", "a_b"], "--id"),
            (&["vmm", "--seccomp-level", "3"], "--seccomp-level"),
            (&["vmm", "--landlock=maybe"], "--landlock"),
            (&["vmm", "--no-seccomp", "--seccomp-level", "1"], "--seccomp-level"),
            (&["vmm", "--no-seccomp", "--seccomp-filter", "f"], "--seccomp-filter"),
            (&["vmm", "seccomp", "compile", "--output", "f"], "--input"),
            (&["vmm", "fly"], "fly"),
        ] {
            let line = fault(arguments);
            assert!(
                line.contains(name) && !line.contains('\n') && line.ends_with("(see `vmm --help`)"),
                "{line}"
            );
        }
    }

    #[test]
    fn options_of_run_mean_the_same_alone_and_in_the_whole_definition() {
        for arguments in [
            &["vmm", "run", "--kernel", "k"][..],
            &["vmm", "run", "--memory=2G", "--smt", "--kernel=k", "--cmdline=-- a b", "--cpus", "3"],
            &["vmm", "run", "--kernel", "k", "--serial", "pty", "--level", "Debug", "--show-level"],
            &["vmm", "run", "--kernel", "k", "--no-seccomp"],
            &["vmm", "run", "--landlock=require", "--kernel", "k"],
            &["vmm", "run", "--kernel", "k", "--seccomp-level", "1"],
        ] {
            let whole = Task::from(Cli::try_parse_from(arguments).unwrap());
            let parsed = parse(arguments.iter().map(OsString::from)).unwrap();
            assert_eq!(format!("{parsed:?}"), format!("{whole:?}"));
        }
    }

    #[test]
    fn landlock_is_on_where_there_is_no_jail() {
        let mode = |arguments: &[&str]| match parse(arguments.iter().map(OsString::from)) {
            Ok(Task::Run(options)) => options.landlock,
            Ok(Task::Serve(options)) => options.landlock,
            other => panic!("{other:?}"),
        };
        let run = ["vmm", "run", "--kernel", "k"];
        assert_eq!((mode(&["vmm"]), mode(&run)), (Mode::Off, Mode::On));
        for (option, expected) in [
            ("--landlock", Mode::On),
            ("--landlock=on", Mode::On),
            ("--landlock=require", Mode::Require),
            ("--landlock=off", Mode::Off),
        ] {
            assert_eq!(mode(&["vmm", option]), expected);
            assert_eq!(mode(&[&run[..], &[option]].concat()), expected);
        }
    }

    #[test]
    fn the_version_is_that_of_the_api_and_ours() {
        let end = parse(["vmm", "--version"].map(OsString::from));
        let Err(ParseEnd::Print(text)) = end else { panic!("{end:?}") };
        assert_eq!(
            text,
            format!("Firecracker v{API_LEVEL} API by Kindling vmm {}\n", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn help_and_version_are_no_faults() {
        for option in ["--help", "--version"] {
            let end = parse(["vmm", option].map(OsString::from));
            assert!(matches!(end, Err(ParseEnd::Print(text)) if text.contains("vmm")));
        }
    }

    #[test]
    fn every_serial_target_is_understood() {
        let parsed = |text| serial(text).map(|config| (config.mode(), config.serial_out_path));
        assert_eq!(parsed("stdio"), Ok((SerialMode::Stdio, None)));
        assert_eq!(parsed("pty"), Ok((SerialMode::Pty, None)));
        assert_eq!(parsed("file=a=b"), Ok((SerialMode::File, Some("a=b".into()))));
        assert_eq!(parsed("socket=/s"), Ok((SerialMode::Socket, Some("/s".into()))));
        assert!(serial("stdio=x").is_err());
    }
}
