//! A conversation with the agent in a guest ([`crate::init::agent`]).

use std::time::Duration;

use super::Console;
use crate::error::{Error, Result};
use crate::init::agent::{LINE_MAX, READY};

/// What a command in the guest printed, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output and standard error, in the order in which they came.
    pub stdout: String,
    /// The exit code as a shell shows it: 128 + N after signal N.
    pub code: i32,
}

/// A guest's agent behind its console.
pub struct Agent {
    /// The console.
    pub console: Console,
    commands: u32,
}

impl Agent {
    /// The agent that will speak on this console.
    pub fn new(console: Console) -> Self {
        Self { console, commands: 0 }
    }

    /// Waits until the agent takes commands.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        self.console.wait_for(READY, limit).map(|_| ()).map_err(|error| match error {
            Error::Timeout { after, .. } => {
                Error::Timeout { what: "the start of the guest".to_owned(), after }
            }
            Error::GuestEnded(_) => Error::GuestEnded("its start".to_owned()),
            other => other,
        })
    }

    /// Runs a command and waits for its end.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.begin(command, limit)?;
        self.finish(limit)
    }

    /// Starts a command. What is sent until it ends is the command's input.
    pub fn begin(&mut self, command: &str, limit: Duration) -> Result<()> {
        self.commands += 1;
        let line = format!("{} {command}", self.nonce());
        if command.contains(['\n', '\r']) || line.len() >= LINE_MAX {
            return Err(Error::Protocol(format!("not one line of fewer than {LINE_MAX} bytes: {command:?}")));
        }
        self.console.send(format!("{line}\n").as_bytes())?;
        self.console.wait_for(&format!("\x1ebegin {}\n", self.nonce()), limit).map(|_| ())
    }

    /// Waits for the end of the command that was started last.
    pub fn finish(&mut self, limit: Duration) -> Result<Output> {
        let stdout = self.console.wait_for(&format!("\x1eend {} ", self.nonce()), limit)?;
        let code = self.console.wait_for("\n", limit)?;
        let (stdout, code) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&code));
        let code = code.trim().parse().map_err(|_| Error::Protocol(format!("the guest says {code:?}")))?;
        Ok(Output { stdout: stdout.into_owned(), code })
    }

    fn nonce(&self) -> String {
        format!("c{}", self.commands)
    }
}
