//! A guest under the `vmm` under test, with its console in the test's hands.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{self, Command, ExitStatus};
use std::time::Duration;

use super::{Agent, Console, Output, Process, image, vmm_path};
use crate::error::{Context, Error, Result};
use crate::guest_image::GuestImage;
use crate::terminal::{Settings, become_session_leader, open_pty};

/// How much of the console a failed test shows.
const LINES_SHOWN: usize = 200;

/// How long a command in the guest may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

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

/// The kernel command line of guests whose test does not give one: their init takes commands from the console.
pub fn default_cmdline() -> String {
    format!("{BASE_CMDLINE} kindling.init=agent")
}

/// Says what guest to start.
#[derive(Clone, Debug)]
pub struct Builder {
    program: Option<PathBuf>,
    image: Option<GuestImage>,
    kernel: Kernel,
    kernel_path: Option<PathBuf>,
    initrd: bool,
    cpus: u32,
    memory: String,
    cmdline: String,
    arguments: Vec<OsString>,
    all_arguments: Option<Vec<OsString>>,
    stdio: Stdio,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            program: None,
            image: None,
            kernel: Kernel::default(),
            kernel_path: None,
            initrd: true,
            cpus: 1,
            memory: "256M".to_owned(),
            cmdline: default_cmdline(),
            arguments: Vec::new(),
            all_arguments: None,
            stdio: Stdio::default(),
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

    /// A kernel of the test's own.
    #[must_use]
    pub fn kernel_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel_path = Some(path.into());
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

    /// Starts `vmm --config-file FILE --no-api` instead of `vmm run`. Of the rest, only [`Builder::stdio`] and
    /// [`Builder::arg`] count.
    #[must_use]
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.all_arguments = Some(vec!["--config-file".into(), path.into().into(), "--no-api".into()]);
        self
    }

    /// What the standard input and output of `vmm` are; pipes if not said.
    #[must_use]
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = stdio;
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
        let started = match self.stdio {
            Stdio::Pipes => spawn_with_pipes(command),
            Stdio::Pty => spawn_with_pty(command),
        };
        started.doing(|| format!("cannot start {}", program.display()))
    }

    fn run_arguments(&self, image: &GuestImage) -> Vec<OsString> {
        let kernel = match (&self.kernel_path, self.kernel) {
            (Some(path), _) => path.clone(),
            (None, Kernel::Elf) => image.vmlinux(),
            (None, Kernel::BzImage) => image.vmlinuz(),
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
fn spawn_with_pipes(mut command: Command) -> std::io::Result<Guest> {
    let (output, output_end) = std::io::pipe()?;
    let (input_end, input) = std::io::pipe()?;
    command.stdin(input_end).stdout(output_end.try_clone()?).stderr(output_end);
    let child = command.spawn()?;
    Ok(Guest::new(child, Console::new(output, Some(Box::new(input)))))
}

fn spawn_with_pty(mut command: Command) -> std::io::Result<Guest> {
    use std::os::unix::process::CommandExt;
    let (controller, terminal) = open_pty()?;
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    // SAFETY: the closure only makes system calls that are async-signal-safe.
    unsafe { command.pre_exec(become_session_leader) };
    let child = command.spawn()?;
    let (input, output) = (controller.try_clone()?, controller.try_clone()?);
    let mut guest = Guest::new(child, Console::new(output, Some(Box::new(input))));
    guest.pty = Some(controller);
    Ok(guest)
}

/// A running guest. The monitor's standard error is on the console too.
pub struct Guest {
    process: Process,
    agent: Agent,
    /// The controlling end of the monitor's terminal.
    pty: Option<File>,
    /// A wait has failed, so the console is worth showing.
    failed: bool,
}

impl Guest {
    /// What guest to start.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Takes over a process whose standard streams are a guest's console.
    pub fn new(child: process::Child, console: Console) -> Self {
        Self {
            process: Process::new(child, "the monitor"),
            agent: Agent::new(console),
            pty: None,
            failed: false,
        }
    }

    /// Waits until the guest takes commands.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let waited = self.agent.wait_ready(limit);
        self.note(waited)
    }

    /// Runs a command with the guest's shell and waits for its end, for a minute at most.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        self.run_within(command, COMMAND_LIMIT)
    }

    /// Runs a command with the guest's shell and waits for its end.
    pub fn run_within(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let output = self.agent.run(command, limit);
        self.note(output)
    }

    /// Starts a command with the guest's shell. What is sent until it ends is the command's input.
    pub fn begin(&mut self, command: &str, limit: Duration) -> Result<()> {
        let begun = self.agent.begin(command, limit);
        self.note(begun)
    }

    /// Waits for the end of the command that was started last.
    pub fn finish(&mut self, limit: Duration) -> Result<Output> {
        let output = self.agent.finish(limit);
        self.note(output)
    }

    /// Types into the console.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.agent.console.send(bytes);
        self.note(sent)
    }

    /// Closes the console's input.
    pub fn close_input(&mut self) {
        self.agent.console.close_input();
    }

    /// Waits until the console shows `text` after everything waited for so far; returns what came before it.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let waited = self.agent.console.wait_for(text, limit);
        self.note(waited).map(|before| String::from_utf8_lossy(&before).into_owned())
    }

    /// Waits until the monitor has ended and everything it wrote is in [`Guest::console`].
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let waited = self.process.wait(limit);
        let status = self.note(waited)?;
        let ended = self.agent.console.wait_end(limit);
        self.note(ended)?;
        Ok(status)
    }

    /// The conversation with the guest's agent.
    pub fn agent(&mut self) -> &mut Agent {
        &mut self.agent
    }

    /// Sends the monitor a signal.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// The settings of the terminal the monitor was started with ([`Stdio::Pty`]).
    pub fn terminal(&self) -> Result<Settings> {
        let pty = self.pty.as_ref().ok_or_else(|| Error::Protocol("the guest has no pty".to_owned()))?;
        // Asked of the controlling end, Linux answers for the terminal.
        Settings::of(pty).doing(|| "cannot read the settings of the terminal".to_owned())
    }

    /// The monitor's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Everything the console has shown so far, without carriage returns.
    pub fn console(&self) -> String {
        self.agent.console.text()
    }

    fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        self.failed |= result.is_err();
        result
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.failed || std::thread::panicking() {
            eprintln!("---- last {LINES_SHOWN} lines of the guest's console ----");
            eprintln!("{}", self.agent.console.last_lines(LINES_SHOWN));
            eprintln!("---- end of the guest's console ----");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// Stands in for a guest with the agent.
    const AGENT: &str = r#"
        printf '\036ready\n'
        while read -r nonce command; do
            printf '\036begin %s\n' "$nonce"
            (eval "$command")
            printf '\036end %s %s\n' "$nonce" "$?"
        done
        exit 9"#;

    fn script(text: &str) -> Builder {
        let builder = Guest::builder().program("/bin/sh");
        Builder { all_arguments: Some(vec!["-c".into(), text.into()]), ..builder }
    }

    #[test]
    fn commands_give_their_output_and_exit_code() {
        let mut guest = script(AGENT).start().unwrap();
        guest.wait_ready(SOON).unwrap();
        let output = guest.run("echo out; echo err >&2; exit 3").unwrap();
        assert_eq!(output, Output { stdout: "out\nerr\n".to_owned(), code: 3 });
        let output = guest.run("printf 'no newline'").unwrap();
        assert_eq!(output, Output { stdout: "no newline".to_owned(), code: 0 });
        guest.close_input();
        assert_eq!(guest.wait_exit(SOON).unwrap().code(), Some(9));
    }

    #[test]
    fn a_running_command_can_be_typed_into() {
        let mut guest = script(AGENT).start().unwrap();
        guest.begin("read line; echo got $line", SOON).unwrap();
        guest.send(b"this\n").unwrap();
        assert_eq!(guest.finish(SOON).unwrap().stdout, "got this\n");
    }

    #[test]
    fn a_command_of_several_lines_is_refused() {
        let mut guest = script(AGENT).start().unwrap();
        assert!(matches!(guest.run("a\nb"), Err(Error::Protocol(_))));
    }

    #[test]
    fn a_guest_that_ends_early_is_no_timeout() {
        let mut guest = script("echo going down; exit 1").start().unwrap();
        let error = guest.wait_ready(SOON).unwrap_err();
        assert!(matches!(error, Error::GuestEnded(_)), "{error}");
        assert_eq!(guest.console(), "going down\n");
    }

    #[test]
    fn a_pty_is_a_terminal_the_program_can_change() {
        let builder =
            script("tty; stty raw -echo; echo changed; read line; stty sane; exit 4").stdio(Stdio::Pty);
        let mut guest = builder.start().unwrap();
        guest.wait_for("/dev/pts/", SOON).unwrap();
        guest.wait_for("changed\n", SOON).unwrap();
        assert!(!guest.terminal().unwrap().echoes());
        guest.send(b"x\n").unwrap();
        assert_eq!(guest.wait_exit(SOON).unwrap().code(), Some(4));
        assert!(guest.terminal().unwrap().echoes());
    }

    #[test]
    fn a_signal_reaches_the_monitor() {
        use std::os::unix::process::ExitStatusExt;
        let mut guest = script("echo up; exec sleep 1000").start().unwrap();
        guest.wait_for("up", SOON).unwrap();
        guest.signal(libc::SIGTERM).unwrap();
        assert_eq!(guest.wait_exit(SOON).unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn run_options_are_those_of_the_command_line() {
        let builder =
            Guest::builder().cpus(2).memory("1G").kernel(Kernel::BzImage).cmdline("a").cmdline_extra("b");
        let arguments = builder.clone().run_arguments(&GuestImage::at("/g"));
        let expected = ["run", "--kernel", "/g/vmlinuz", "--initrd", "/g/initramfs.cpio"];
        let expected = [&expected[..], &["--cmdline", "a b", "--cpus", "2", "--memory", "1G"]].concat();
        assert_eq!(arguments, expected);
        let arguments = builder.kernel_path("/k").initrd(false).run_arguments(&GuestImage::at("/g"));
        assert_eq!(arguments[..4], ["run", "--kernel", "/k", "--cmdline"]);
    }
}
