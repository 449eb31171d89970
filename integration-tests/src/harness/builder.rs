//! What a guest is started with.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use super::{Console, Guest, Tap, image, tap, vmm_path};
use crate::error::{Context, Result};
use crate::guest_image::GuestImage;
use crate::run::die_with_parent;
use crate::terminal::{Settings, become_session_leader, check, open_pty};

/// The form of the guest's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernel {
    /// The ELF file `vmlinux`.
    #[default]
    Elf,
    /// The bzImage `vmlinuz`.
    BzImage,
}

/// What the standard input and output of `vmm` are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stdio {
    /// Pipes.
    #[default]
    Pipes,
    /// A terminal.
    Pty,
}

/// The kernel command line of guests but for what their init does: no probing of hardware that is not there, an end
/// after a panic.
pub const BASE_CMDLINE: &str =
    "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd pci=off";

/// The kernel command line of guests whose test does not give one: their init takes commands from the console. Tests of the
/// kernel's own ciphers, a third of a boot that is emulated, are left out.
pub fn default_cmdline() -> String {
    format!("{BASE_CMDLINE} cryptomgr.notests=1 kindling.init=agent")
}

/// Far more than any test needs, and short enough for a report of one that hangs.
pub const LIFE: Duration = Duration::from_secs(20 * 60);

/// Says what guest to start.
#[derive(Clone, Debug)]
pub struct Builder {
    program: Option<PathBuf>,
    image: Option<GuestImage>,
    kernel: Kernel,
    initrd: bool,
    cpus: u32,
    memory: String,
    cmdline: String,
    arguments: Vec<OsString>,
    /// In place of `run` and its options.
    all_arguments: Option<Vec<OsString>>,
    stdio: Stdio,
    namespace: Option<PathBuf>,
    life: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            program: None,
            image: None,
            kernel: Kernel::default(),
            initrd: true,
            cpus: 1,
            memory: "256M".to_owned(),
            cmdline: default_cmdline(),
            arguments: Vec::new(),
            all_arguments: None,
            stdio: Stdio::default(),
            namespace: None,
            life: LIFE,
        }
    }
}

impl Builder {
    /// The form of the kernel; ELF if not said.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Whether the guest has an initial RAM file system; it has if not said.
    #[must_use]
    pub fn initrd(mut self, initrd: bool) -> Self {
        self.initrd = initrd;
        self
    }

    /// How many processors it has; 1 if not said.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How much memory it has, as `--memory` takes it; `256M` if not said.
    #[must_use]
    pub fn memory(mut self, size: impl Into<String>) -> Self {
        self.memory = size.into();
        self
    }

    /// The whole kernel command line, in place of [`default_cmdline`].
    #[must_use]
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = cmdline.into();
        self
    }

    /// More for the end of the kernel command line.
    #[must_use]
    pub fn cmdline_extra(mut self, more: &str) -> Self {
        self.cmdline.push(' ');
        self.cmdline.push_str(more);
        self
    }

    /// One more argument for `vmm run`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts `vmm --config-file FILE --no-api` instead of `vmm run`, as [`Builder::arguments`] does.
    #[must_use]
    pub fn config_file(self, path: impl Into<PathBuf>) -> Self {
        self.arguments(["--config-file".into(), path.into().into_os_string(), "--no-api".into()])
    }

    /// These arguments in place of `run` and its options. Of the rest, only [`Builder::program`], [`Builder::tap`],
    /// [`Builder::stdio`] and [`Builder::arg`] count.
    #[must_use]
    pub fn arguments(mut self, all: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.all_arguments = Some(all.into_iter().map(Into::into).collect());
        self
    }

    /// Has the guest's init load these kernel modules first, and what they need.
    #[must_use]
    pub fn modules(self, names: &[&str]) -> Self {
        self.cmdline_extra(&format!("kindling.modules={}", names.join(",")))
    }

    /// Runs `vmm` in the network namespace with the interface [`Tap::NAME`].
    #[must_use]
    pub fn tap(mut self, tap: &Tap) -> Self {
        self.namespace = Some(tap.path());
        self
    }

    /// What the standard input and output of `vmm` are; pipes if not said.
    #[must_use]
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = stdio;
        self
    }

    /// How long the monitor may live before it is killed; twenty minutes if not said.
    #[must_use]
    pub fn life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// What to boot from, in place of what the environment names.
    #[must_use]
    pub fn image(mut self, image: GuestImage) -> Self {
        self.image = Some(image);
        self
    }

    /// Another program in place of the `vmm` under test.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Starts the guest without waiting for it.
    pub fn start(self) -> Result<Guest> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => vmm_path()?,
        };
        let mut command = Command::new(&program);
        match &self.all_arguments {
            Some(all) => command.args(all),
            None => match &self.image {
                Some(image) => command.args(self.run_arguments(image)),
                None => command.args(self.run_arguments(&image()?)),
            },
        };
        command.args(&self.arguments);
        if let Some(path) = &self.namespace {
            tap::enter(path, &mut command)?;
        }
        let started = match self.stdio {
            Stdio::Pipes => spawn_with_pipes(command, self.life),
            Stdio::Pty => spawn_with_pty(command, self.life),
        };
        started.doing(|| format!("cannot start {}", program.display()))
    }

    fn run_arguments(&self, image: &GuestImage) -> Vec<OsString> {
        let kernel = match self.kernel {
            Kernel::Elf => image.vmlinux(),
            Kernel::BzImage => image.vmlinuz(),
        };
        let mut arguments: Vec<OsString> = vec!["run".into(), "--kernel".into(), kernel.into()];
        if self.initrd {
            arguments.extend(["--initrd".into(), image.initramfs().into()]);
        }
        arguments.extend(["--cmdline".into(), self.cmdline.clone().into()]);
        arguments.extend(["--cpus".into(), self.cpus.to_string().into()]);
        arguments.extend(["--memory".into(), self.memory.clone().into()]);
        arguments
    }
}

/// Takes the command, because the copies of the child's ends in it would keep the pipes open past the child's end.
fn spawn_with_pipes(mut command: Command, life: Duration) -> io::Result<Guest> {
    let (output, output_end) = io::pipe()?;
    let (input_end, input) = io::pipe()?;
    command.stdin(input_end).stdout(output_end.try_clone()?).stderr(output_end);
    let child = spawn(&mut command)?;
    Guest::new(child, Console::new(output, Some(Box::new(input))), life)
}

fn spawn_with_pty(mut command: Command, life: Duration) -> io::Result<Guest> {
    let (controller, terminal) = open_pty()?;
    let before = Settings::of(&terminal)?;
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    // SAFETY: the closure only makes system calls that are async-signal-safe.
    unsafe { command.pre_exec(become_session_leader) };
    let child = spawn(&mut command)?;
    let (input, output) = (controller.try_clone()?, controller.try_clone()?);
    let guest = Guest::new(child, Console::new(output, Some(Box::new(input))), life)?;
    Ok(guest.with_terminal(controller, before))
}

/// A monitor that a test crashes shall leave no core file behind, and none inherits that signals are ignored, as a shell has its
/// background jobs do.
fn spawn(command: &mut Command) -> io::Result<Child> {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let set_up = move || {
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
            // SAFETY: the default action of a valid signal involves no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: the call reads the limits that it is given.
        check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) })
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(set_up) };
    die_with_parent(command).spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_options_are_those_of_the_command_line() {
        let builder =
            Guest::builder().cpus(2).memory("1G").kernel(Kernel::BzImage).cmdline("a").cmdline_extra("b");
        let arguments = builder.clone().run_arguments(&GuestImage::at("/g"));
        let expected = ["run", "--kernel", "/g/vmlinuz", "--initrd", "/g/initramfs.cpio"];
        let expected = [&expected[..], &["--cmdline", "a b", "--cpus", "2", "--memory", "1G"]].concat();
        assert_eq!(arguments, expected);
        let arguments = builder.initrd(false).run_arguments(&GuestImage::at("/g"));
        assert_eq!(arguments[..4], ["run", "--kernel", "/g/vmlinuz", "--cmdline"]);
    }
}
