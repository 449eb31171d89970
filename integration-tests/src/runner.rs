//! Runs a program where guests run: directly, or in a nested host with the same path, arguments and variables.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdout, Command};
use std::time::Duration;

use crate::error::{Context, Result};
use crate::guest_image::{self, GuestImage};
use crate::harness::{SCRATCH_VARIABLE, jail, timeout_scale};
use crate::nested::{Breakage, Host, Limits, Outcome, Spec, TOOLS_DEVICE};
use crate::packages;
use crate::place::{Decision, Place};
use crate::progress::Progress;
use crate::root_image;
use crate::usage;
use crate::workspace::{self, VMM};

/// Names the `vmm` to test; without it one is built.
pub const VMM_VARIABLE: &str = "KINDLING_VMM";

/// Names more files the nested host shall have, separated by colons.
pub const FILES_VARIABLE: &str = "KINDLING_HOST_FILES";

/// The exit code that says that the nested host did not work, and nothing about the program.
pub const EXIT_HOST_BROKEN: u8 = 3;

/// Emulated processors of a nested host.
pub const HOST_CPUS: u32 = 1;

/// Emulated memory of a nested host in MiB: room for its RAM disk and some guests.
pub const HOST_MEMORY_MIB: u32 = 4096;

const LIMITS: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(3600) };

/// Guests and `vmm`, ready to use.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What guests are booted from.
    pub image: GuestImage,
    /// The `vmm` under test.
    pub vmm: PathBuf,
    /// Where guests run.
    pub decision: Decision,
}

impl Prepared {
    /// Builds, downloads and installs what is missing.
    pub fn prepare(progress: &Progress) -> Result<Self> {
        let vmm = match std::env::var_os(VMM_VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => VMM.build(progress)?,
        };
        let decision = Decision::make(&vmm)?;
        if decision.place == Place::Nested {
            packages::require(&[packages::QEMU], progress)?;
        }
        let image = match GuestImage::from_environment() {
            Some(image) => image,
            None => GuestImage::prepare(progress)?,
        };
        Ok(Self { image, vmm, decision })
    }

    /// The variables by which a program under test finds guests and `vmm`.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let pair = |name: &str, value: &PathBuf| (name.into(), value.clone().into_os_string());
        vec![
            pair(guest_image::FOLDER_VARIABLE, &self.image.folder().to_owned()),
            pair(VMM_VARIABLE, &self.vmm),
        ]
    }

    /// What a nested host needs to run `argv`.
    pub fn host_spec(&self, argv: Vec<OsString>, files: Vec<PathBuf>) -> Spec {
        let mut files = files;
        files.push(self.vmm.clone());
        Spec {
            image: self.image.clone(),
            root: None,
            files,
            argv,
            env: self.environment(),
            cpus: HOST_CPUS,
            memory_mib: HOST_MEMORY_MIB,
            stdin: false,
        }
    }
}

/// The limits of a nested host, scaled like all others.
pub fn limits() -> Limits {
    let scale = timeout_scale();
    Limits { silence: LIMITS.silence.mul_f64(scale), total: LIMITS.total.mul_f64(scale) }
}

/// Runs `program` with `arguments` and returns the exit code to end with.
pub fn run(program: &OsString, arguments: &[OsString], progress: &Progress) -> Result<u8> {
    let prepared = Prepared::prepare(progress)?;
    let root = root_image::prepare(progress)?;
    let name = PathBuf::from(program);
    let name = name.file_name().unwrap_or(program).display();
    let why = &prepared.decision.why;
    match prepared.decision.place {
        Place::Native => {
            progress.note(&format!("{name} runs directly on this machine: {why}"));
            let scratch = workspace::target_dir().join("scratch");
            fs::create_dir_all(&scratch).doing(|| format!("cannot create {}", scratch.display()))?;
            let mut command = Command::new(program);
            command.args(arguments).envs(prepared.environment());
            let error = command.env(root_image::VARIABLE, root).env(SCRATCH_VARIABLE, scratch).exec();
            Err(error).doing(|| format!("cannot run {}", program.display()))
        }
        Place::Nested => {
            progress.note(&format!("{name} runs in the nested host: {why}"));
            run_nested(spec(&prepared, root, program, arguments)?, progress)
        }
    }
}

fn spec(prepared: &Prepared, root: PathBuf, program: &OsString, arguments: &[OsString]) -> Result<Spec> {
    let path = std::path::absolute(program).doing(|| format!("cannot find {}", program.display()))?;
    let mut files: Vec<_> = std::env::var_os(FILES_VARIABLE)
        .map(|list| std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect())
        .unwrap_or_default();
    files.push(path.clone());
    let more = [jail::VARIABLE, jail::JAILER_VARIABLE, usage::TESTS_VARIABLE];
    files.extend(more.iter().filter_map(std::env::var_os).map(PathBuf::from));
    let mut argv = vec![path.into_os_string()];
    argv.extend_from_slice(arguments);
    let mut spec = prepared.host_spec(argv, files);
    spec.root = Some(root);
    spec.env.push((root_image::VARIABLE.into(), TOOLS_DEVICE.into()));
    let inherited = |name: &str| {
        (name.starts_with("KINDLING_") || name.starts_with("RUST_"))
            && !spec.env.iter().any(|(present, _)| present == name)
    };
    let mut more: Vec<_> =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(inherited)).collect();
    if !more.iter().any(|(name, _)| name == "RUST_TEST_THREADS") {
        more.push(("RUST_TEST_THREADS".into(), HOST_CPUS.to_string().into()));
    }
    spec.env.append(&mut more);
    Ok(spec)
}

/// How many hosts a job gets.
pub const TRIES: u32 = 3;

/// Runs a job in a nested host, its output going to ours.
///
/// Emulated virtualization has faults of its own, and a host that breaks says nothing about the tests. So another host
/// gets the job: all of it if it had not begun, else the tests that have not passed yet; a program that is no test binary
/// is not begun twice.
fn run_nested(mut spec: Spec, progress: &Progress) -> Result<u8> {
    let mut passed = Vec::new();
    for tries in 1.. {
        let mut host = Host::start(&spec)?;
        let stdout = host.stdout.take();
        let copier = std::thread::spawn(move || stdout.map_or_else(Vec::new, copy_live));
        let outcome = host.wait(&limits());
        passed.append(&mut copier.join().unwrap_or_default());
        let breakage = match outcome {
            Outcome::Exited(code) => return Ok(code),
            Outcome::Broken(breakage) => breakage,
        };
        report(&breakage, progress);
        if tries == TRIES {
            break;
        }
        if breakage.began {
            let Some(rest) = tests_left(&spec.argv, &passed) else { break };
            progress.note(&format!(
                "{} tests passed before that; the other {} get a new host",
                passed.len(),
                rest.len().saturating_sub(2)
            ));
            spec.argv = rest;
        } else {
            progress.note("the job had not begun; it gets a new host");
        }
    }
    Ok(EXIT_HOST_BROKEN)
}

/// The command that runs the tests of `argv` but those that have passed. None if there are none, or if the program
/// does not list tests when it is asked to.
fn tests_left(argv: &[OsString], passed: &[String]) -> Option<Vec<OsString>> {
    let (program, arguments) = argv.split_first()?;
    let listed = Command::new(program).args(arguments).args(["--list", "--format", "terse"]).output().ok()?;
    let listed = String::from_utf8(listed.stdout).ok().filter(|_| listed.status.success())?;
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let left: Vec<OsString> =
        tests.filter(|test| !passed.iter().any(|passed| passed == test)).map(OsString::from).collect();
    let mut command = vec![program.clone(), "--exact".into()];
    let count = command.len();
    command.extend(left);
    (command.len() > count).then_some(command)
}

/// Says that a nested host did not do its work.
pub fn report(breakage: &Breakage, progress: &Progress) {
    let when = if breakage.began { "after the job had begun" } else { "before the job began" };
    progress.note(&format!("nested host broken {when}: {}", breakage.why));
    progress.note("---- end of its console ----");
    progress.note(breakage.console.trim_end());
    progress.note("----------------------------");
}

/// Copies what a host prints as it comes, and returns the names of the tests that it says have passed.
fn copy_live(mut from: ChildStdout) -> Vec<String> {
    let (mut buffer, mut text) = ([0; 8192], Vec::new());
    let mut out = io::stdout();
    // The end of a pipe and a failure to read it are the same here: there is no more.
    while let Some(chunk) = from.read(&mut buffer).ok().and_then(|count| buffer.get(..count)) {
        if chunk.is_empty() {
            break;
        }
        // A closed output must not stop the host: go on reading.
        let _ = out.write_all(chunk).and_then(|()| out.flush());
        text.extend_from_slice(chunk);
    }
    passed_tests(&String::from_utf8_lossy(&text))
}

/// The tests that libtest's output says have passed.
fn passed_tests(output: &str) -> Vec<String> {
    let test = |line: &str| line.trim_end().strip_prefix("test ")?.strip_suffix(" ... ok").map(str::to_owned);
    output.lines().filter_map(test).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passed_tests_count() {
        let output = "running 3 tests\r\ntest a::b ... ok\r\ntest a::c ... FAILED\ntest d has been running for over 60 \
                      seconds\ntest d ... ok\nok\n";
        assert_eq!(passed_tests(output), ["a::b", "d"]);
    }

    #[test]
    fn the_tests_that_are_left_are_named_one_by_one() {
        let script = "printf 'a: test\\na_long: test\\nb: test\\n\\n3 tests\\n'";
        let argv = ["sh", "-c", script].map(OsString::from);
        let left = tests_left(&argv, &["a".to_owned()]).unwrap();
        assert_eq!(left, ["sh", "--exact", "a_long", "b"]);
        assert_eq!(tests_left(&argv, &["a", "a_long", "b"].map(str::to_owned)), None);
        assert_eq!(tests_left(&["false".into()], &[]), None, "not a test binary");
    }
}
