//! Which rules of the filters of system calls a run of tests needs. A rule that nothing needs has no place in a filter.
//!
//! With [`TESTS_VARIABLE`] naming a test binary, runs it with the arguments given and itself in the place of `vmm`, and prints
//! lines with the rules that were needed between those of the tests, for `cargo verify --step seccomp-usage`. In that place it becomes the real `vmm`
//! with filters that do as the embedded ones, but have a rule's first use reported: for rules that no run has used yet, the
//! kernel asks a tracer ([`tracer`]), which notes the rule and lets the call pass. So each rule costs something once, all
//! others nothing, and it is the kernel that says what a rule allows.

mod rules;
mod tracer;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitCode, Stdio};
use std::{env, fs};

use kindling_integration_tests::error::{Context, Error, Result, chain};
use kindling_integration_tests::harness::jail;
use kindling_integration_tests::runner::VMM_VARIABLE;
use kindling_integration_tests::usage::{self, TESTS_VARIABLE, USED};

/// Names the folder with a file for each rule that was used, while a test binary runs.
const FOLDER_VARIABLE: &str = "KINDLING_SECCOMP_USED";

/// Names the real `vmm` meanwhile.
const TRACED_VARIABLE: &str = "KINDLING_SECCOMP_TRACED";

fn main() -> ExitCode {
    let arguments = env::args_os().skip(1).collect();
    let result = match env::var_os(FOLDER_VARIABLE) {
        Some(folder) => become_vmm(Path::new(&folder), arguments),
        None => run_tests(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("seccomp-usage: {}", chain(&error));
        ExitCode::FAILURE
    })
}

/// Runs a test binary, prints which rules it needs as that shows, and returns how it ended.
fn run_tests(arguments: &[OsString]) -> Result<ExitCode> {
    let program = env::var_os(TESTS_VARIABLE)
        .ok_or_else(|| Error::Protocol(format!("{TESTS_VARIABLE} does not name a test binary")))?;
    let doing = || format!("cannot run {}", program.display());
    let folder = tempfile::tempdir().doing(doing)?;
    let variable = if jail::is_used() { jail::VARIABLE } else { VMM_VARIABLE };
    let vmm = env::var_os(variable).ok_or_else(|| Error::Protocol(format!("{variable} is not set")))?;
    let mut command = Command::new(&program);
    command.args(arguments).env(FOLDER_VARIABLE, folder.path()).env(TRACED_VARIABLE, vmm);
    command.env(variable, env::current_exe().doing(doing)?);
    let mut child = command.stdout(Stdio::piped()).spawn().doing(doing)?;
    if let Some(output) = child.stdout.take() {
        copy(output, folder.path())?;
    }
    let status = child.wait().doing(doing)?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Copies a test binary's output, with what is new about rules between its lines. A run that breaks off has said it, too.
fn copy(mut output: ChildStdout, folder: &Path) -> Result<()> {
    let doing = || "cannot copy the output of the tests".to_owned();
    let mut told = BTreeSet::new();
    let mut tell = |out: &mut dyn Write| -> Result<()> {
        let new: Vec<usize> = used(folder)?.difference(&told).copied().collect();
        if !new.is_empty() {
            let numbers: Vec<_> = new.iter().map(usize::to_string).collect();
            writeln!(out, "{USED}{}", numbers.join(" ")).doing(doing)?;
        }
        told.extend(new);
        Ok(())
    };
    let (mut out, mut buffer) = (io::stdout(), [0; 4096]);
    loop {
        let count = output.read(&mut buffer).doing(doing)?;
        let Some(chunk @ [.., last]) = buffer.get(..count) else { return tell(&mut out) };
        out.write_all(chunk).and_then(|()| out.flush()).doing(doing)?;
        if *last == b'\n' {
            tell(&mut out)?;
        }
    }
}

/// The rules that were used so far.
fn used(folder: &Path) -> Result<BTreeSet<usize>> {
    let entries = fs::read_dir(folder).doing(|| format!("cannot read {}", folder.display()))?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.flatten().filter_map(number).collect())
}

/// Becomes `vmm` with these arguments.
fn become_vmm(folder: &Path, mut arguments: Vec<OsString>) -> Result<ExitCode> {
    let vmm = PathBuf::from(env::var_os(TRACED_VARIABLE).unwrap_or_default());
    if let Some(place) = place_for_filters(&arguments) {
        let file = folder.join(format!("filters-{}", std::process::id()));
        let mut filters = rules::filters(&usage::rules()?, &used(folder)?);
        // Filters that a test brings itself forbid what they forbid.
        let own = arguments.get(place.start + 1).filter(|_| !place.is_empty());
        if let Some(own) = own.and_then(|path| fs::read(path).ok()) {
            filters = rules::behind(&own, &filters).unwrap_or(own);
        }
        fs::write(&file, filters).doing(|| format!("cannot write {}", file.display()))?;
        arguments.splice(place, ["--seccomp-filter".into(), file.into_os_string()]);
        tracer::start(folder).doing(|| "cannot start the tracer".to_owned())?;
    }
    Err(Command::new(&vmm).args(arguments).exec()).doing(|| format!("cannot start {}", vmm.display()))
}

/// Where in the arguments filters are named, or can be; nowhere, if they say that there are to be others or start no guest.
fn place_for_filters(arguments: &[OsString]) -> Option<Range<usize>> {
    let find = |option: &str| arguments.iter().position(|argument| argument == option);
    if find("--seccomp-level").or(find("--no-seccomp")).is_some() {
        return None;
    }
    let start = match arguments.first()?.to_str()? {
        "run" => 1,
        first => first.starts_with("--").then_some(0)?,
    };
    Some(find("--seccomp-filter").map_or(start..start, |at| at..at + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_go_where_options_are() {
        let place =
            |text: &str| place_for_filters(&text.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(place("run --kernel k"), Some(1..1));
        assert_eq!(place("--api-sock s"), Some(0..0));
        assert_eq!(place("--api-sock s --seccomp-filter f"), Some(2..4));
        for text in ["", "doctor", "seccomp compile", "run --no-seccomp", "--seccomp-level 1"] {
            assert_eq!(place(text), None, "{text}");
        }
    }
}
