//! A guest under the `vmm` under test, with its console in the test's hands.

use std::fs::File;
use std::io;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use super::{Agent, Builder, Console, Output, Process};
use crate::error::{Context, Error, Result};
use crate::terminal::Settings;

/// How much of the console a failed test shows.
const LINES_SHOWN: usize = 200;

/// How long a command in the guest may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A running guest. The monitor's standard error is on the console too.
pub struct Guest {
    process: Process,
    agent: Agent,
    /// The controlling end of the monitor's terminal, and the terminal's settings before the start.
    pty: Option<(File, Settings)>,
    /// A wait has failed, so the console is worth showing.
    failed: bool,
}

impl Guest {
    /// What guest to start.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Takes over a process whose standard streams are a guest's console, and which may live for so long.
    pub fn new(child: Child, console: Console, life: Duration) -> io::Result<Self> {
        let process = Process::limited(child, "the monitor", life)?;
        Ok(Self { process, agent: Agent::new(console), pty: None, failed: false })
    }

    /// With the controlling end of the monitor's terminal, and the settings that the terminal had before the start.
    pub(super) fn with_terminal(mut self, controller: File, before: Settings) -> Self {
        self.pty = Some((controller, before));
        self
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

    /// The monitor's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends the monitor a signal.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// The settings of the terminal the monitor was started with ([`Stdio::Pty`](super::Stdio::Pty)).
    pub fn terminal(&self) -> Result<Settings> {
        // Asked of the controlling end, Linux answers for the terminal.
        Settings::of(&self.pty()?.0).doing(|| "cannot read the settings of the terminal".to_owned())
    }

    /// The settings that the terminal had before the monitor was started.
    pub fn terminal_before(&self) -> Result<Settings> {
        self.pty().map(|pty| pty.1)
    }

    fn pty(&self) -> Result<&(File, Settings)> {
        self.pty.as_ref().ok_or_else(|| Error::Protocol("the guest has no pty".to_owned()))
    }

    /// Everything the console has shown so far, without carriage returns.
    pub fn console(&self) -> String {
        self.agent.console.text()
    }

    /// What a failed test shows of the console.
    fn report(&self) -> String {
        let lines = self.agent.console.last_lines(LINES_SHOWN);
        format!(
            "---- last {LINES_SHOWN} lines of the guest's console ----\n{lines}\n---- end of the guest's console ----"
        )
    }

    fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        self.failed |= result.is_err();
        result
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.failed || std::thread::panicking() {
            eprintln!("{}", self.report());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stdio;
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
        Guest::builder().program("/bin/sh").arguments(["-c", text])
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
        assert!(guest.terminal_before().unwrap().echoes());
    }

    #[test]
    fn a_test_that_would_wait_for_ever_ends_and_has_the_console_in_its_report() {
        let hanging = script("echo last words; exec sleep 1000").life(Duration::from_millis(300));
        let mut guest = hanging.start().unwrap();
        guest.wait_for("last words", SOON).unwrap();
        // More than a pipe holds, and nobody reads it.
        let error = guest.send(&[b'x'; 1 << 20]).unwrap_err();
        assert!(error.to_string().contains("cannot send 1048576 bytes"), "{error}");
        assert!(guest.failed && guest.report().contains("\nlast words\n"), "{}", guest.report());
    }

    #[test]
    fn a_signal_reaches_the_monitor() {
        use std::os::unix::process::ExitStatusExt;
        let mut guest = script("echo up; exec sleep 1000").start().unwrap();
        guest.wait_for("up", SOON).unwrap();
        guest.signal(libc::SIGTERM).unwrap();
        assert_eq!(guest.wait_exit(SOON).unwrap().signal(), Some(libc::SIGTERM));
    }
}
