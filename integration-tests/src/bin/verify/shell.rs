//! Running commands in the open: shown before they run, their output live, the tests among it counted.

use std::io::{self, IsTerminal, Read, Write};
use std::process::{Command, Stdio};

use kindling_integration_tests::error::{Context, Error, Result};
pub use kindling_integration_tests::run::show;
use kindling_integration_tests::run::{self, die_with_parent};

use crate::parallel::in_parallel;
use crate::steps::Passed;

/// Results of test binaries, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that were skipped by name or attribute.
    pub ignored: u32,
    /// Test binaries that said how their tests ended.
    pub results: u32,
}

impl Tests {
    /// Adds another command's results.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.results += other.results;
    }

    /// As the result of a step.
    pub fn passed(&self) -> Passed {
        let note = match self.ignored {
            0 => format!("{} tests", self.passed),
            ignored => format!("{} tests, {ignored} ignored", self.passed),
        };
        Passed { note, tests: self.passed }
    }

    /// Reads a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    fn from_line(line: &str) -> Option<Self> {
        let mut tests = Self { results: 1, ..Self::default() };
        let (_, counts) = line.split_once("test result: ")?.1.split_once(". ")?;
        for count in counts.split("; ") {
            match count.trim().split_once(' ') {
                Some((number, "passed")) => tests.passed = number.parse().ok()?,
                Some((number, "failed")) => tests.failed = number.parse().ok()?,
                Some((number, "ignored")) => tests.ignored = number.parse().ok()?,
                _ => {}
            }
        }
        Some(tests)
    }
}

/// Runs a command that runs tests, with its output live, and counts them.
pub fn show_tests(command: &mut Command) -> Result<Tests> {
    announce(command);
    count_tests(command, &mut Output::new(true), |_| None)
}

/// Does the same for several, `at_once` of them at the same time. With more than one, only the first one's output is live, and that
/// of the others comes behind it. Returns what each said, and its results. `explain` may know more about an exit code.
pub fn show_all_tests(
    commands: Vec<&mut Command>,
    at_once: usize,
    explain: impl Fn(i32) -> Option<String> + Sync,
) -> Vec<(Vec<u8>, Result<Tests>)> {
    let done = in_parallel(commands, at_once, |index, command| {
        announce(command);
        let mut output = Output::new(at_once == 1 || index == 0);
        let result = count_tests(command, &mut output, &explain);
        (run::describe(command), output, result)
    });
    let show = |(words, output, result): (String, Output, _)| {
        if !output.is_live {
            println!("\nOutput of {words}");
            // As when it is live: with nobody to read it the result still counts.
            let _ = io::stdout().write_all(&output.bytes);
        }
        (output.bytes, result)
    };
    done.into_iter().map(show).collect()
}

/// What a command says, kept, and shown if it is live.
struct Output {
    is_live: bool,
    bytes: Vec<u8>,
}

impl Output {
    fn new(is_live: bool) -> Self {
        Self { is_live, bytes: Vec::new() }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.is_live { io::stdout().write(bytes) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

fn count_tests(
    command: &mut Command,
    out: &mut Output,
    explain: impl Fn(i32) -> Option<String>,
) -> Result<Tests> {
    let doing = || format!("cannot run {}", command.get_program().display());
    let (output, end) = io::pipe().doing(doing)?;
    // Of what is not live, nothing is shown until later.
    if !out.is_live {
        let end = end.try_clone().doing(doing)?;
        command.stderr(end);
    }
    let child = die_with_parent(command.stdout(end)).spawn();
    let mut child = child.doing(|| format!("cannot run {}", command.get_program().display()))?;
    // The command's copies would keep the pipe open.
    command.stdout(Stdio::null()).stderr(Stdio::inherit());
    let tests = tee(output, out);
    let status = child.wait().doing(|| format!("cannot wait for {}", command.get_program().display()))?;
    if status.success() && tests.results > 0 {
        return Ok(tests);
    }
    if status.success() {
        return Err(failed(command, "it printed no `test result:` line".to_owned()));
    }
    let why = status.code().and_then(explain).unwrap_or_else(|| match tests.failed {
        0 => status.to_string(),
        count => format!("{count} tests failed, {} passed", tests.passed),
    });
    Err(failed(command, why))
}

/// Whether to ask programs for colours that would not use them in a pipe.
pub fn colour() -> &'static str {
    if io::stdout().is_terminal() { "always" } else { "never" }
}

fn announce(command: &Command) {
    println!("$ {}", run::describe(command));
}

fn failed(command: &Command, detail: String) -> Error {
    Error::Command { command: run::describe(command), detail }
}

/// Copies output as it comes and adds up the results in it.
fn tee(mut from: impl Read, to: &mut impl Write) -> Tests {
    let mut tests = Tests::default();
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let chunk = buffer.get(..count).unwrap_or_default();
        // With nobody to read it the result still counts.
        let _ = to.write_all(chunk).and_then(|()| to.flush());
        for byte in chunk {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            tests.add(Tests::from_line(&String::from_utf8_lossy(&line)).unwrap_or_default());
            line.clear();
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_copied() {
        let text = "running 3 tests\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.6s\n\
            test result: \x1b[31mFAILED\x1b(B\x1b[m. 2 passed; 1 failed; 0 ignored; 0 measured\r\n";
        let mut copy = Vec::new();
        let tests = tee(text.as_bytes(), &mut copy);
        assert_eq!(tests, Tests { passed: 14, failed: 1, ignored: 1, results: 2 });
        assert_eq!(copy, text.as_bytes());
    }

    #[test]
    fn a_failed_command_is_named_with_the_reason() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: FAILED. 1 passed; 2 failed'; exit 101"]);
        let error = count_tests(&mut command, &mut Output::new(false), |_| None).unwrap_err().to_string();
        assert!(error.ends_with(": 2 tests failed, 1 passed"), "{error}");
        let mut command = Command::new("sh");
        let error =
            count_tests(command.args(["-c", "echo fine"]), &mut Output::new(false), |_| None).unwrap_err();
        assert!(error.to_string().ends_with("no `test result:` line"), "{error}");
        let mut command = Command::new("sh");
        let command = command.args(["-c", "exit 3"]);
        let error = count_tests(command, &mut Output::new(false), |code| {
            (code == 3).then(|| "the host broke".to_owned())
        });
        assert!(error.unwrap_err().to_string().ends_with(": the host broke"));
    }
}
