//! The command line of `jailer`.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};

const AFTER_HELP: &str = "\
What happens:
  The jail is the folder BASE/NAME/ID/root, NAME being the last part of --exec-file. Put disks and kernels there before,
  readable (and writable, where the guest writes) for the user of --uid; name them as the monitor sees them, from the
  jail's `/`. The jailer copies the executable there, makes dev and run, and executes the copy with
      [run] --id ID --start-time-us N --start-time-cpu-us N --parent-cpu-time-us N [--seccomp-level N] ARGUMENTS
  in a mount namespace of its own whose root is the jail, as the user and group given and with no right beyond
  theirs, an empty environment, and standard input, output and error as its only descriptors. The API's socket, unless
  --api-sock says otherwise, is run/firecracker.socket in the jail; NAME.pid holds the number of the process.
  When the monitor has ended, remove BASE/NAME/ID, and cgroups that were made.

Exit codes:
    0  with --daemonize or --new-pid-ns: the monitor is running; otherwise the code is the monitor's own
    1  a step failed; nothing of it is left behind
  153  bad command line

Examples:
  jailer --id web-1 --exec-file /usr/bin/vmm --uid 1000 --gid 1000
  jailer --id web-1 --exec-file /usr/bin/vmm --uid 1000 --gid 1000 --daemonize --new-pid-ns \\
    --netns /run/netns/web-1 --cgroup-version 2 --cgroup memory.max=268435456 --cgroup pids.max=32 \\
    -- --config-file vm.json";

/// Confines the monitor: builds a jail, enters it, gives up every right and executes the monitor there. Needs root.
#[derive(Debug, Parser)]
#[command(name = "jailer", display_name = "Jailer", version = VERSION, after_help = AFTER_HELP)]
pub struct Options {
    /// Name of the machine, and of its jail: 1 to 64 letters, digits and `-`.
    #[arg(long, value_name = "ID", value_parser = id)]
    pub id: String,

    /// The monitor, a static program. A copy of it runs.
    #[arg(long, value_name = "FILE")]
    pub exec_file: PathBuf,

    /// User that the monitor runs as.
    #[arg(long, value_name = "UID", value_parser = user)]
    pub uid: u32,

    /// Group that the monitor runs as, its only one.
    #[arg(long, value_name = "GID", value_parser = user)]
    pub gid: u32,

    /// Folder that jails are made in. Nobody but root and the user of --uid may be able to change it or a folder above it,
    /// and none of them may be a symbolic link.
    #[arg(long, value_name = "BASE", default_value = "/srv/jailer", value_parser = base)]
    pub chroot_base_dir: PathBuf,

    /// Network namespace to join, such as /run/netns/NAME.
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,

    /// Value to write to a file of the monitor's cgroup, as in cpu.shares=100; may be given many times.
    #[arg(long, value_name = "FILE=VALUE")]
    pub cgroup: Vec<CgroupSetting>,

    /// Version of cgroups that --cgroup is about.
    #[arg(long, value_name = "VERSION", value_enum, default_value = "1")]
    pub cgroup_version: CgroupVersion,

    /// Group that the monitor's cgroup ID is made in, below the root of the hierarchy [default: NAME]. With version 2 and
    /// no --cgroup, a group to join as it is, if it is there.
    #[arg(long, value_name = "PATH", value_parser = parent)]
    pub parent_cgroup: Option<PathBuf>,

    /// Limit on the size of files that the monitor writes, fsize=BYTES, or on its descriptors, no-file=N (2048 unless
    /// given).
    #[arg(long, value_name = "LIMIT=N")]
    pub resource_limit: Vec<Limit>,

    /// Run in a session of its own, with /dev/null for standard input, output and error.
    #[arg(long)]
    pub daemonize: bool,

    /// Run as the first process of a process ID namespace.
    #[arg(long)]
    pub new_pid_ns: bool,

    /// Filters of system calls: 0 none, 1 by number, 2 by number and arguments; handed on to the monitor.
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub seccomp_level: Option<u8>,

    /// Options for the monitor, behind `--`; its command `run` may be in front of them.
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<OsString>,
}

/// What `--version` says behind the name that tools of Firecracker look for: the version of its API, and ours.
const VERSION: &str = concat!("v1.17.0 API by Kindling jailer ", env!("CARGO_PKG_VERSION"));

/// Descriptors, unless said otherwise.
const DESCRIPTORS: u64 = 2048;

/// What to do when the command line did not parse.
#[derive(Debug)]
pub enum ParseEnd {
    /// Help or version was asked for: print this and succeed.
    Print(String),
    /// One line about what is wrong.
    Error(String),
}

/// Version of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CgroupVersion {
    /// A hierarchy per controller.
    #[value(name = "1")]
    V1,
    /// One hierarchy.
    #[value(name = "2")]
    V2,
}

/// A value for a file of a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupSetting {
    /// The file's name: `CONTROLLER.PROPERTY`.
    pub(crate) file: String,
    pub(crate) value: String,
}

impl CgroupSetting {
    /// The controller whose file it is.
    pub(crate) fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

impl FromStr for CgroupSetting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (file, value) = text.split_once('=').ok_or("must be FILE=VALUE")?;
        let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let parts = file.split_once('.').is_some_and(|(controller, property)| {
            !controller.is_empty() && !property.is_empty() && !property.starts_with('.')
        });
        if !parts || !file.bytes().all(name) {
            return Err("the file must be CONTROLLER.PROPERTY, of letters, digits, `_`, `-` and dots");
        }
        if value.is_empty() || value.contains('\0') {
            return Err("the value must not be empty");
        }
        Ok(CgroupSetting { file: file.to_owned(), value: value.to_owned() })
    }
}

/// A limit on what the monitor may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub(crate) resource: Resource,
    pub(crate) value: u64,
}

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Bytes of a file that is written.
    FileSize,
    /// One more than the greatest descriptor.
    Descriptors,
}

impl FromStr for Limit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (resource, value) = text.split_once('=').ok_or("must be fsize=BYTES or no-file=N")?;
        let resource = match resource {
            "fsize" => Resource::FileSize,
            "no-file" => Resource::Descriptors,
            _ => return Err("must be fsize=BYTES or no-file=N"),
        };
        let value = value.parse().map_err(|_| "the limit must be a number")?;
        Ok(Limit { resource, value })
    }
}

impl Options {
    /// All limits to set, a later one of a kind being the one that counts.
    pub(crate) fn limits(&self) -> Vec<Limit> {
        let default = Limit { resource: Resource::Descriptors, value: DESCRIPTORS };
        std::iter::once(default).chain(self.resource_limit.iter().copied()).collect()
    }
}

/// Reads what `--id` takes.
fn id(text: &str) -> Result<String, &'static str> {
    let fits = (1..=64).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 letters, digits and `-`")
    }
}

/// Reads a number of a user or group. The greatest one means "none" to the kernel.
fn user(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|number| *number != u32::MAX).ok_or("must be a number below 4294967295")
}

/// Reads what `--chroot-base-dir` takes.
fn base(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    if text.is_empty() {
        Err("must not be empty")
    } else if path.components().any(|component| component == Component::ParentDir) {
        Err("must not contain `..`")
    } else {
        Ok(path.to_owned())
    }
}

/// Reads what `--parent-cgroup` takes.
fn parent(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    let plain = |component| matches!(component, Component::Normal(_));
    if text.is_empty() || !path.components().all(plain) {
        return Err("must be a path below the root of the hierarchy, without a leading `/` and without `..`");
    }
    Ok(path.to_owned())
}

/// Parses the command line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, ParseEnd> {
    Options::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ParseEnd::Print(text),
            _ => {
                // clap's first paragraph holds the fault, its lists and usage the rest.
                let fault: Vec<&str> =
                    text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
                let fault = fault.join(" ");
                ParseEnd::Error(format!("{} (see `jailer --help`)", fault.trim_start_matches("error: ")))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [&str; 9] =
        ["jailer", "--id", "a", "--exec-file", "/usr/bin/vmm", "--uid", "1", "--gid", "2"];

    fn parsed(more: &[&str]) -> Result<Options, String> {
        let all = NEEDED.iter().chain(more).map(OsString::from);
        parse(all).map_err(|end| match end {
            ParseEnd::Error(line) => line,
            ParseEnd::Print(text) => panic!("{text}"),
        })
    }

    #[test]
    fn definition_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_the_option() {
        let long = "a".repeat(65);
        for (option, value) in [
            ("--id", ""),
            ("--id", ".."),
            ("--id", "a/b"),
            ("--id", "a_b"),
            ("--id", "a\0b"),
            ("--id", long.as_str()),
            ("--uid", "-1"),
            ("--uid", "4294967295"),
            ("--gid", "4294967296"),
            ("--gid", "root"),
            ("--chroot-base-dir", ""),
            ("--chroot-base-dir", "/srv/../etc"),
            ("--chroot-base-dir", "jails/.."),
            ("--cgroup", "cpu.shares"),
            ("--cgroup", "cpu.shares="),
            ("--cgroup", "shares=1"),
            ("--cgroup", "../cpu.shares=1"),
            ("--cgroup", "cpu./../x=1"),
            ("--cgroup", "..=1"),
            ("--cgroup", "cpu...=1"),
            ("--cgroup-version", "3"),
            ("--parent-cgroup", ""),
            ("--parent-cgroup", "/machines"),
            ("--parent-cgroup", "a/../b"),
            ("--parent-cgroup", "."),
            ("--resource-limit", "fsize"),
            ("--resource-limit", "fsize=-1"),
            ("--resource-limit", "no-file=many"),
            ("--resource-limit", "cpu=1"),
            ("--seccomp-level", "3"),
        ] {
            let mut all: Vec<&str> = NEEDED.to_vec();
            if let Some(place) = all.iter().position(|one| *one == option) {
                all.drain(place..=place + 1);
            }
            let value = format!("{option}={value}");
            all.push(&value);
            let end = parse(all.into_iter().map(OsString::from));
            let Err(ParseEnd::Error(line)) = end else { panic!("{value}: {end:?}") };
            assert!(line.contains(option) && !line.contains('\n'), "{value}: {line}");
            assert!(line.ends_with("(see `jailer --help`)"), "{line}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for option in ["--id", "--exec-file", "--uid", "--gid"] {
            let place = NEEDED.iter().position(|one| *one == option).unwrap();
            let mut all = NEEDED.to_vec();
            all.drain(place..=place + 1);
            let end = parse(all.into_iter().map(OsString::from));
            assert!(matches!(&end, Err(ParseEnd::Error(line)) if line.contains(option)), "{end:?}");
        }
    }

    #[test]
    fn help_and_version_are_no_faults_and_help_explains_files_and_codes() {
        let printed = |option: &str| match parse(["jailer", option].map(OsString::from)) {
            Err(ParseEnd::Print(text)) => text,
            end => panic!("{end:?}"),
        };
        let help = printed("--help");
        for text in ["BASE/NAME/ID/root", "run/firecracker.socket", "NAME.pid", "153", "--new-pid-ns", "-- "]
        {
            assert!(help.contains(text), "{text}: {help}");
        }
        let version = format!("Jailer v1.17.0 API by Kindling jailer {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(printed("--version"), version);
    }

    #[test]
    fn everything_behind_two_dashes_is_the_monitors() {
        let options = parsed(&["--daemonize", "--", "--api-sock", "/a", "--id", "b", "--"]).unwrap();
        assert_eq!(options.arguments, ["--api-sock", "/a", "--id", "b", "--"]);
        assert_eq!(options.id, "a");
        assert!(options.daemonize && !options.new_pid_ns);
        assert!(parsed(&["stray"]).is_err());
    }

    #[test]
    fn the_last_limit_of_a_kind_counts_and_descriptors_have_one_anyhow() {
        let limits = |more: &[&str]| parsed(more).unwrap().limits();
        let descriptors = |value| Limit { resource: Resource::Descriptors, value };
        assert_eq!(limits(&[]), [descriptors(2048)]);
        let given = limits(&["--resource-limit", "no-file=9", "--resource-limit", "fsize=7"]);
        assert_eq!(
            given,
            [descriptors(2048), descriptors(9), Limit { resource: Resource::FileSize, value: 7 }]
        );
    }

    #[test]
    fn a_value_may_hold_anything_that_a_controller_wants() {
        let options = parsed(&["--cgroup", "io.max=8:0 rbps=1"]).unwrap();
        let setting = &options.cgroup[0];
        assert_eq!((setting.file.as_str(), setting.value.as_str()), ("io.max", "8:0 rbps=1"));
        assert_eq!(setting.controller(), "io");
    }
}
