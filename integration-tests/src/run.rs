//! Running other programs to their end.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::{Context, Error, Result};
use crate::terminal::check;

/// How much of a failed program's last words goes into an error.
const LAST_WORDS: usize = 2000;

/// The arguments of the program that an alias of cargo runs, by `cargo ALIAS ARGUMENTS` or `cargo ALIAS -- ARGUMENTS`.
pub fn arguments() -> Vec<OsString> {
    without_separator(std::env::args_os().collect())
}

fn without_separator(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|first| first == "--") {
        arguments.remove(1);
    }
    arguments
}

/// Runs a program with its output live, after the command.
pub fn show(command: &mut Command) -> Result<()> {
    show_again(command, 1, 0)
}

/// The same, up to `tries` times while its exit code is `again`.
pub fn show_again(command: &mut Command, tries: u32, again: i32) -> Result<()> {
    println!("$ {}", describe(command));
    let status = command.status().doing(|| format!("cannot run {}", command.get_program().display()))?;
    if tries > 1 && status.code() == Some(again) {
        return show_again(command, tries - 1, again);
    }
    let failed = || Error::Command { command: describe(command), detail: status.to_string() };
    if status.success() { Ok(()) } else { Err(failed()) }
}

/// Runs a program silently; if it fails, the error holds the last of what it said.
pub fn quiet(command: &mut Command) -> Result<()> {
    run(command).map(|_| ())
}

/// Runs a program and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    run(command).map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The SHA-256 of a file in hexadecimal, from `sha256sum`: part of every system, and fast however we were built.
pub fn sha256(file: &Path) -> Result<String> {
    let text = output(Command::new("sha256sum").arg("--").arg(file))?;
    // A leading backslash marks an escaped file name.
    Ok(text.trim_start_matches('\\').chars().take_while(char::is_ascii_hexdigit).collect())
}

/// The command as a person would type it, without the program's folder.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Has the kernel kill the program when the calling thread ends, however that comes about, so that no guest and no host
/// outlives what started it. Has to be the last thing that is done before the program is spawned: a change of user in a
/// later `pre_exec` would undo it.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id().cast_signed();
    let arm = move || {
        // SAFETY: this operation takes a number and touches no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // SAFETY: getppid takes nothing. A parent that ended before the call above sends no signal any more.
        let orphaned = unsafe { libc::getppid() } != parent;
        if orphaned { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    };
    // SAFETY: the closure only makes system calls that are async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(arm) }
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.doing(|| format!("cannot run {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let last = said.get(said.len().saturating_sub(LAST_WORDS)..).unwrap_or(said);
    let detail = format!("{}: {}", output.status, String::from_utf8_lossy(last).trim());
    Err(Error::Command { command: describe(command), detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separator_before_the_arguments_makes_no_difference() {
        let given = |text: &str| without_separator(text.split(' ').map(OsString::from).collect());
        assert_eq!(given("demo -- --check"), ["demo", "--check"]);
        assert_eq!(given("demo --check -- a"), ["demo", "--check", "--", "a"]);
        assert_eq!(given("demo"), ["demo"]);
    }

    #[test]
    fn the_digest_is_the_one_of_the_standard() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(file.path()).unwrap(), expected);
    }

    #[test]
    fn a_program_dies_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt;
        let start = || die_with_parent(Command::new("sleep").arg("1000")).spawn().unwrap();
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_failed_program_is_reported_with_its_last_words() {
        let error = quiet(Command::new("sh").args(["-c", "echo no luck >&2; exit 7"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 7: no luck"), "{text}");
    }
}
