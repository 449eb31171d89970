//! A guest's shell, when a client has the monitor's process in its hands.

use std::io::{Read, Write};

use kindling_integration_tests::harness::{Agent, Console};

use super::{BOOT_LIMIT, END_LIMIT, SOON};

/// How much of the console a failed test shows.
const LINES_SHOWN: usize = 100;

/// The conversation with a guest's agent.
pub struct Shell(Agent);

impl Shell {
    /// Waits until the guest takes commands.
    pub fn new(output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Self {
        let mut shell = Self(Agent::new(Console::new(output, Some(Box::new(input)))));
        shell.0.wait_ready(BOOT_LIMIT).unwrap();
        shell
    }

    /// What a command in the guest prints, without the last line feed; it must succeed.
    pub fn output(&mut self, command: &str) -> String {
        let output = self.0.run(command, SOON).unwrap();
        assert_eq!(output.code, 0, "{command}: {output:?}");
        output.stdout.trim_end().to_owned()
    }

    /// Waits until the monitor has closed its end.
    pub fn wait_end(&self) {
        self.0.console.wait_end(END_LIMIT).unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the end of the guest's console ----");
            eprintln!("{}", self.0.console.last_lines(LINES_SHOWN));
        }
    }
}
