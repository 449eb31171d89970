//! The steps that run `vmm`: its test binaries are built statically and run where guests run.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kindling_integration_tests::bare_metal::{IMAGES_VARIABLE, Images};
use kindling_integration_tests::error::{Error, Result, chain};
use kindling_integration_tests::harness::jail::{self, Outside};
use kindling_integration_tests::place::{self, Decision, Place, kvm_opens};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::python;
use kindling_integration_tests::run;
use kindling_integration_tests::runner::{EXIT_HOST_BROKEN, FILES_VARIABLE, VMM_VARIABLE};
use kindling_integration_tests::workspace::{HOST_RUNNER, JAILED_VMM, JAILER, VMM, cargo, link_statically};
use serde::Deserialize;

use crate::Context;
use crate::shell::{colour, show_all_tests};
use crate::steps::Passed;

/// Set to `only` or `none`, to have tests with `vmm` in a jail only, or none of them.
const JAIL_VARIABLE: &str = "KINDLING_JAIL";

/// The package of most test binaries.
const PACKAGE: &str = "kindling-integration-tests";
/// The package of those with clients of others, which bring much of their own.
const CLIENTS_PACKAGE: &str = "kindling-client-tests";

/// How `vmm` ends, and what it says, for input it cannot work with.
pub fn bad_input(context: &Context) -> Result<Passed> {
    run_tests(context, (PACKAGE, "bad_input"), Needs::AnyKvm, |_| Ok(()))
}

/// The bare-metal guest's tests.
pub fn bare_metal(context: &Context) -> Result<Passed> {
    run_tests(context, (PACKAGE, "bare_metal"), Needs::AnyKvm, |command| add_images(context, command))
}

/// Gives a test binary the bare-metal guest's images.
fn add_images(context: &Context, command: &mut Command) -> Result<()> {
    let images = Images::build(&context.progress)?;
    let files: Vec<_> =
        [&images.guest, &images.exit, &images.mark].into_iter().map(PathBuf::as_path).collect();
    let joined = std::env::join_paths(&files)
        .map_err(|error| Error::Protocol(format!("a path that cannot stand in a list: {error}")))?;
    let folder = images.guest.parent().unwrap_or(Path::new("/"));
    command.env(IMAGES_VARIABLE, folder).env(FILES_VARIABLE, joined);
    Ok(())
}

/// The tests with stock Linux guests.
pub fn linux(context: &Context) -> Result<Passed> {
    run_tests(context, (PACKAGE, "linux"), Needs::GuestKernels, |_| Ok(()))
}

/// The packages of the clients in Python.
const PYTHON_CLIENTS: &str = "integration-tests/clients/tests/python_clients/requirements.txt";

/// The tests with clients of others. Those in Python run on this machine only, which has Python.
pub fn clients(context: &Context) -> Result<Passed> {
    let stock = run_tests(context, (CLIENTS_PACKAGE, "clients"), Needs::GuestKernels, |_| Ok(()))?;
    let wanted = std::env::var(place::VARIABLE).unwrap_or_default();
    if !Needs::AnyKvm.run_directly(&wanted, kvm_opens()) {
        let note = format!("{}; none in Python, which need a /dev/kvm of this machine", stock.note);
        return Ok(Passed { note, ..stock });
    }
    let python = run_tests(context, (CLIENTS_PACKAGE, "python_clients"), Needs::AnyKvm, |command| {
        add_images(context, command)?;
        command.env(python::VARIABLE, python::prepare(PYTHON_CLIENTS, &context.progress)?);
        Ok(())
    })?;
    let note = format!("{}; in Python, {}", stock.note, python.note);
    Ok(Passed { note, tests: stock.tests + python.tests })
}

/// What tests need.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Any KVM, also one that emulates guest kernels.
    AnyKvm,
    /// One that runs them, and what guests are booted from.
    GuestKernels,
}

impl Needs {
    /// Whether the tests run on this machine as any program does, so that nothing has to be prepared for them.
    /// `wanted` is what [`place::VARIABLE`] says.
    fn run_directly(self, wanted: &str, kvm_opens: bool) -> bool {
        self == Self::AnyKvm && (wanted == "native" || wanted.is_empty() && kvm_opens)
    }
}

/// Where the `vmm` of a run of tests is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Started as it is.
    Plain,
    /// In a jail, by the jailer.
    Jailed,
}

impl Pass {
    /// Those that shall be: both, unless the environment says otherwise. Only root can make jails.
    fn wanted(progress: &Progress) -> Result<Vec<Self>> {
        // SAFETY: the call takes nothing and cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        match std::env::var(JAIL_VARIABLE).unwrap_or_default().as_str() {
            "" if is_root => Ok(vec![Self::Plain, Self::Jailed]),
            "" => {
                progress.note("only outside of the jail: root alone can make one");
                Ok(vec![Self::Plain])
            }
            "only" => Ok(vec![Self::Jailed]),
            "none" => Ok(vec![Self::Plain]),
            other => Err(Error::Protocol(format!("{JAIL_VARIABLE}={other}: expected only or none"))),
        }
    }

    /// What is said behind a number of tests.
    fn suffix(self) -> &'static str {
        if self == Self::Plain { "" } else { " in the jail" }
    }
}

/// Builds a test binary and runs it with `vmm` outside of the jail and in it, unless the filter leaves nothing of it: under
/// `host-runner`, or directly.
fn run_tests(
    context: &Context,
    (package, name): (&str, &str),
    needs: Needs,
    prepare: impl Fn(&mut Command) -> Result<()>,
) -> Result<Passed> {
    let progress = &context.progress;
    let binary =
        progress.during(&format!("building the tests of {name} (static)"), || build(package, name))?;
    let wanted = std::env::var(place::VARIABLE).unwrap_or_default();
    let directly = needs.run_directly(&wanted, kvm_opens());
    let vmm = vmm(context)?;
    let mut runs = Vec::new();
    // Clients start the monitor themselves.
    let passes = if package == PACKAGE { Pass::wanted(progress)? } else { vec![Pass::Plain] };
    for pass in passes {
        let mut tests: Vec<OsString> = context.filter.iter().map(OsString::from).collect();
        if pass == Pass::Jailed {
            let outside = jail::OUTSIDE.iter().filter(|test| test.binary == name);
            tests.extend(outside.flat_map(|test| ["--skip", test.test]).map(OsString::from));
        }
        if context.filter.is_some() && !has_tests(&binary, &tests)? {
            continue;
        }
        let mut command = if directly {
            Command::new(&binary)
        } else {
            let mut command = Command::new(HOST_RUNNER.build(progress)?);
            command.arg(&binary);
            if needs == Needs::AnyKvm && wanted.is_empty() {
                command.env(place::VARIABLE, "nested");
            }
            command
        };
        command.args(tests).args(["--color", colour()]).env(VMM_VARIABLE, &vmm);
        if pass == Pass::Jailed {
            into_jail(&mut command, progress)?;
        }
        prepare(&mut command)?;
        runs.push((pass, command));
    }
    if runs.is_empty() {
        return Ok(Passed { note: "no test has such a name".to_owned(), tests: 0 });
    }
    if runs.iter().any(|(pass, _)| *pass == Pass::Jailed) {
        for Outside { test, why, .. } in jail::OUTSIDE.iter().filter(|test| test.binary == name) {
            println!("not in the jail: {test}: {why}");
        }
    }
    let broken = |code| {
        let text = "the nested host broke; that says nothing about the tests";
        (code == i32::from(EXIT_HOST_BROKEN)).then(|| text.to_owned())
    };
    // A nested host has one processor, this machine most likely more.
    let side_by_side = !directly && Decision::make(vmm.as_ref())?.place == Place::Nested;
    let commands = runs.iter_mut().map(|(_, command)| command);
    let results = show_all_tests(commands.collect(), side_by_side, broken);
    let passes = runs.iter().map(|(pass, _)| pass.suffix());
    let mut sum = Passed::default();
    let mut failed = Vec::new();
    for (suffix, result) in passes.zip(results) {
        match result {
            Ok(tests) => {
                let passed = tests.passed();
                sum.tests += passed.tests;
                sum.note.push_str(if sum.note.is_empty() { "" } else { ", " });
                sum.note.push_str(&format!("{}{suffix}", passed.note));
            }
            Err(error) => failed.push(format!("{}{suffix}", chain(&error))),
        }
    }
    if failed.is_empty() { Ok(sum) } else { Err(Error::Protocol(failed.join("; "))) }
}

/// Has a run of tests start `vmm` in jails.
fn into_jail(command: &mut Command, progress: &Progress) -> Result<()> {
    command.env(jail::VARIABLE, JAILED_VMM.build(progress)?);
    command.env(jail::JAILER_VARIABLE, JAILER.build(progress)?);
    let open_to_all = || {
        // What tests make is for the user of a jail, too.
        // SAFETY: the call takes a number.
        unsafe { libc::umask(0) };
        Ok(())
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(open_to_all) };
    Ok(())
}

/// The `vmm` that is named in the environment, or else built.
pub fn vmm(context: &Context) -> Result<OsString> {
    match std::env::var_os(VMM_VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => Ok(path),
        None => Ok(VMM.build(&context.progress)?.into()),
    }
}

/// The part of cargo's messages that matters here.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds a test binary of a package and returns its path.
fn build(package: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args([
        "test",
        "--no-run",
        "--quiet",
        "--profile",
        "tools",
        "--message-format",
        "json-render-diagnostics",
    ]);
    command.args(["--package", package, "--test", name]);
    link_statically(&mut command);
    command.stderr(Stdio::inherit());
    let messages = run::output(&mut command)?;
    executable(&messages, name).ok_or_else(|| {
        let detail = "cargo names no executable".to_owned();
        Error::Command { command: run::describe(&command), detail }
    })
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let mut named =
        messages.filter(|message| message.target.as_ref().is_some_and(|target| target.name == name));
    named.find_map(|message| message.executable)
}

fn has_tests(binary: &Path, tests: &[OsString]) -> Result<bool> {
    let mut list = Command::new(binary);
    list.args(["--list", "--format", "terse"]).args(tests);
    Ok(run::output(&mut list)?.lines().any(|line| line.ends_with(": test")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_for_any_kvm_run_directly_and_only_where_there_is_one() {
        assert!(Needs::AnyKvm.run_directly("", true));
        assert!(Needs::AnyKvm.run_directly("native", false));
        assert!(!Needs::AnyKvm.run_directly("", false));
        assert!(!Needs::AnyKvm.run_directly("nested", true));
        assert!(!Needs::GuestKernels.run_directly("native", true));
    }

    #[test]
    fn the_executable_is_the_one_of_the_named_target() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"demo"},"executable":"/t/demo"}
{"reason":"compiler-artifact","target":{"name":"linux"},"executable":"/t/linux-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "linux"), Some("/t/linux-1".into()));
        assert_eq!(executable(messages, "libc"), None);
    }
}
