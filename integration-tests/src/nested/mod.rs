//! The nested host: a machine emulated by QEMU whose Linux kernel has a real `/dev/kvm` (AMD-V, emulated), for machines
//! whose own KVM is absent or cannot run a stock kernel.
//!
//! It boots from a RAM disk that holds busybox, the KVM modules, the files of one job and our init in host mode
//! ([`crate::init`]). The first serial port is the kernel's console, the second the job's standard streams, the third
//! carries init's reports. One host runs one job.
//!
//! A host with a root image has the programs in it, and an empty disk.

mod archive;
mod watch;

pub use archive::add as add_file;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Result};
use crate::guest_image::GuestImage;
use crate::job::Job;
use crate::packages::QEMU;
use crate::run::die_with_parent;
use crate::terminal::check;
use crate::workspace;
use watch::{Report, Watch};

/// What QEMU has to emulate: AMD-V with nested paging. `-cpu max` would have more, and a bug in its system call entry.
/// No XSAVE: QEMU does not intercept XSETBV, so KVM would put its own idea of XCR0 in place of the guest's.
pub const CPU: &str = "EPYC,+svm,+npt,-xsave";

/// The kernel command line of a host.
///
/// `highres=off nohz=off` keeps the timer tick periodic. QEMU's emulation can lose an interrupt request in a data race
/// between its threads; with a tick that is armed anew each time the host would then wait for ever, with a periodic one
/// the next makes up for it.
pub const COMMAND_LINE: &str = "console=ttyS0,115200 reboot=t panic=-1 mitigations=off tsc=reliable highres=off \
                                nohz=off cryptomgr.notests=1 init_on_alloc=0 kindling.init=host";

/// The disk with the root image in a host that has one.
pub const TOOLS_DEVICE: &str = "/dev/vda";

/// The empty disk of such a host.
const SCRATCH_DEVICE: &str = "/dev/vdb";

/// Size of a host's empty disk; it takes room as it is written to.
const SCRATCH_BYTES: u64 = 8 << 30;

/// How often a host's process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What a host is started with.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Kernel, modules and basic file system.
    pub image: GuestImage,
    /// The root file system ([`crate::root_image`]) whose programs the host shall have; with it comes an empty disk.
    pub root: Option<PathBuf>,
    /// Files of this machine that the host shall have, each under the same absolute path.
    pub files: Vec<PathBuf>,
    /// Program to run, its arguments and variables.
    pub argv: Vec<OsString>,
    /// Variables added to its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Emulated processors.
    pub cpus: u32,
    /// Emulated memory in MiB; taken from this machine as it is used.
    pub memory_mib: u32,
    /// Whether the job's standard input is taken from [`Host::stdin`].
    pub stdin: bool,
}

/// How long a host may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Without a sign of life from its init or console.
    pub silence: Duration,
    /// In all.
    pub total: Duration,
}

/// How a host ended.
#[derive(Debug)]
pub enum Outcome {
    /// The job ran to its end, with this exit code as a shell shows it.
    Exited(u8),
    /// The host did not do its work. That says nothing about the job.
    Broken(Breakage),
}

/// What is known about a host that did not do its work.
#[derive(Debug)]
pub struct Breakage {
    /// Whether the job had been started.
    pub began: bool,
    /// What happened.
    pub why: String,
    /// The end of the host's console, and what QEMU said.
    pub console: String,
}

/// A running host. Its process is killed on drop.
pub struct Host {
    child: Child,
    watch: Watch,
    started: Instant,
    /// The job's standard input.
    pub stdin: Option<ChildStdin>,
    /// The job's standard output and standard error, up to the end of the host. Has to be read, or the host stops.
    pub stdout: Option<ChildStdout>,
}

impl Host {
    /// Starts a host. QEMU has to be installed ([`crate::packages::require`]); it is killed when the calling thread
    /// ends, so that none is left behind.
    pub fn start(spec: &Spec) -> Result<Self> {
        let archive = archive::build(spec, &job(spec)?)?;
        let disks = spec.root.as_deref().map(Disks::new).transpose()?;
        let (console, console_end) = pipe()?;
        let (control, control_end) = pipe()?;
        let mut command = command(spec, &archive, disks.as_ref(), &console_end, &control_end);
        let child = command.spawn();
        let mut child = child.doing(|| format!("cannot start {}", QEMU.program))?;
        // QEMU has its own copies; ours would keep the pipes from ending with it.
        drop((command, console_end, control_end));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Ok(Self {
            child,
            watch: Watch::start(console, control, stderr),
            started: Instant::now(),
            stdin,
            stdout,
        })
    }

    /// Waits for the end of the host, within limits.
    pub fn wait(mut self, limits: &Limits) -> Outcome {
        let why = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break format!("QEMU ended ({status}) before the job did"),
                Ok(None) => {}
                Err(error) => break format!("cannot wait for QEMU: {error}"),
            }
            if self.watch.silent_for() > limits.silence {
                break format!("no sign of life for {} s", limits.silence.as_secs());
            }
            if self.started.elapsed() > limits.total {
                break format!("not done after {} s", limits.total.as_secs());
            }
            std::thread::sleep(POLL);
        };
        self.end();
        let (began, report, console) = self.watch.finish();
        match report {
            Some(Report::Exit(code)) => Outcome::Exited(code),
            Some(Report::Failed(why)) => Outcome::Broken(Breakage { began, why, console }),
            None => Outcome::Broken(Breakage { began, why, console }),
        }
    }

    fn end(&mut self) {
        // Both fail only if the process has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}

fn pipe() -> Result<(PipeReader, PipeWriter)> {
    io::pipe().doing(|| "cannot create a pipe".to_owned())
}

fn job(spec: &Spec) -> Result<Job> {
    let modules = spec.image.host_modules()?;
    let modules = modules.iter().map(|path| path.clone().into_os_string()).collect();
    Ok(Job { modules, argv: spec.argv.clone(), env: spec.env.clone() })
}

/// The disks of a host.
struct Disks<'a> {
    root: &'a Path,
    /// Without a name: it is gone when QEMU is.
    scratch: File,
}

impl<'a> Disks<'a> {
    fn new(root: &'a Path) -> Result<Self> {
        let folder = workspace::target_dir();
        let scratch = tempfile::tempfile_in(&folder);
        let scratch = scratch.and_then(|file| file.set_len(SCRATCH_BYTES).map(|()| file));
        let scratch = scratch.doing(|| format!("cannot create a disk in {}", folder.display()))?;
        Ok(Self { root, scratch })
    }

    fn add_to(&self, command: &mut Command) {
        // Commas are doubled in a list of options.
        let root = self.root.display().to_string().replace(',', ",,");
        let scratch = inherited(self.scratch.as_raw_fd());
        command.args(["-drive", &format!("if=virtio,format=raw,readonly=on,file={root}")]);
        // What tests write need not survive this machine.
        let options = "if=virtio,format=raw,cache=unsafe,discard=unmap";
        command.args(["-drive", &format!("{options},file={scratch}")]);
    }
}

fn command(
    spec: &Spec,
    archive: &File,
    disks: Option<&Disks<'_>>,
    console: &PipeWriter,
    control: &PipeWriter,
) -> Command {
    let mut command = Command::new(QEMU.program);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU]);
    command.args(["-smp", &spec.cpus.to_string(), "-m", &format!("{}M", spec.memory_mib)]);
    command.arg("-kernel").arg(spec.image.vmlinuz());
    let mut command_line = COMMAND_LINE.to_owned();
    if disks.is_some() {
        command_line.push_str(&format!(" kindling.tools={TOOLS_DEVICE} kindling.scratch={SCRATCH_DEVICE}"));
    }
    command.args(["-initrd", &inherited(archive.as_raw_fd()), "-append", &command_line]);
    command.args(["-chardev", &format!("file,id=console,path={}", inherited(console.as_raw_fd()))]);
    command.args(["-chardev", "stdio,id=job,signal=off"]);
    command.args(["-chardev", &format!("file,id=control,path={}", inherited(control.as_raw_fd()))]);
    for name in ["console", "job", "control"] {
        command.args(["-serial", &format!("chardev:{name}")]);
    }
    if let Some(disks) = disks {
        disks.add_to(&mut command);
    }
    command.stdin(if spec.stdin { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    let mut inherit = vec![archive.as_raw_fd(), console.as_raw_fd(), control.as_raw_fd()];
    inherit.extend(disks.map(|disks| disks.scratch.as_raw_fd()));
    // SAFETY: the closure only makes system calls that are async-signal-safe. The descriptors are open until spawn
    // returns: the caller holds their files.
    unsafe {
        command.pre_exec(move || inherit.iter().try_for_each(|fd| check(libc::fcntl(*fd, libc::F_SETFD, 0))));
    }
    die_with_parent(&mut command);
    command
}

/// The path under which a process finds a descriptor it has inherited.
fn inherited(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

/// Where a file of this machine is in the host: the same absolute path, without `..` and links.
fn path_in_host(path: &Path) -> Result<PathBuf> {
    path.canonicalize().doing(|| format!("cannot find {}", path.display()))
}
