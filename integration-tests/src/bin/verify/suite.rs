//! Test binaries that run `vmm`: built statically, and run where guests run, with `vmm` in a jail or outside of it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kindling_integration_tests::error::{Error, Result, chain};
use kindling_integration_tests::harness::jail::{self, Outside};
use kindling_integration_tests::place::{self, Decision, Place, kvm_opens};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::run;
use kindling_integration_tests::runner::{EXIT_HOST_BROKEN, VMM_VARIABLE};
use kindling_integration_tests::usage::{self, TESTS_VARIABLE};
use kindling_integration_tests::workspace::{
    HOST_RUNNER, JAILED_VMM, JAILER, SECCOMP_USAGE, VMM, cargo, link_statically,
};
use serde::Deserialize;

use crate::Context;
use crate::parallel::processors;
use crate::shell::{colour, show_all_tests};
use crate::steps::Passed;

/// Set to `only` or `none`, to have tests with `vmm` in a jail only, or none of them.
const JAIL_VARIABLE: &str = "KINDLING_JAIL";

/// What tests need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any KVM, also one that emulates guest kernels.
    AnyKvm,
    /// One that runs them, and what guests are booted from.
    GuestKernels,
}

impl Needs {
    /// Whether the tests run on this machine as any program does, so that nothing has to be prepared for them.
    /// `wanted` is what [`place::VARIABLE`] says.
    pub fn run_directly(self, wanted: &str, kvm_opens: bool) -> bool {
        self == Self::AnyKvm && (wanted == "native" || wanted.is_empty() && kvm_opens)
    }
}

/// Where the `vmm` of a run of tests is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Started as it is.
    Plain,
    /// In a jail, by the jailer.
    Jailed,
}

impl Pass {
    /// What is said behind a number of tests.
    fn suffix(self) -> &'static str {
        if self == Self::Plain { "" } else { " in the jail" }
    }
}

/// Only root can make jails. In a nested host everybody is root.
fn is_root() -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A test binary.
pub struct Suite {
    /// The package that it is part of.
    pub package: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Whether its tests in the jail show which rules of the filters are used.
    pub notes_rules: bool,
    /// Gives it what it needs besides guests.
    pub prepare: fn(&Context, &mut Command) -> Result<()>,
}

/// A run of it.
pub struct Run {
    name: &'static str,
    command: Command,
    pass: Pass,
    in_nested_host: bool,
}

impl Suite {
    /// Whether the tests run on this machine as any program does.
    fn runs_directly(&self) -> bool {
        self.needs.run_directly(&std::env::var(place::VARIABLE).unwrap_or_default(), kvm_opens())
    }

    /// Whether they run in a nested host.
    pub fn runs_nested(&self, context: &Context) -> Result<bool> {
        let chosen = std::env::var_os(place::VARIABLE).is_some_and(|wanted| !wanted.is_empty());
        match (self.runs_directly(), self.needs) {
            (true, _) => Ok(false),
            (false, Needs::AnyKvm) if !chosen => Ok(true),
            _ => Ok(Decision::make(vmm(context)?.as_ref())?.place == Place::Nested),
        }
    }

    /// Where the monitor shall be: in a jail and outside, unless the environment says otherwise or there can be no jail.
    pub fn passes(&self, context: &Context) -> Result<Vec<Pass>> {
        match std::env::var(JAIL_VARIABLE).unwrap_or_default().as_str() {
            "" if is_root() || self.runs_nested(context)? => Ok(vec![Pass::Plain, Pass::Jailed]),
            "" => {
                println!("not in the jail: any test: only root can make one");
                Ok(vec![Pass::Plain])
            }
            "only" => Ok(vec![Pass::Jailed]),
            "none" => Ok(vec![Pass::Plain]),
            other => Err(Error::Protocol(format!("{JAIL_VARIABLE}={other}: expected only or none"))),
        }
    }

    /// Builds the test binary and runs it in these ways, unless the filter leaves nothing of it.
    pub fn run(&self, context: &Context, passes: &[Pass]) -> Result<Passed> {
        run_all(context, &[(self, passes)])
    }

    /// Builds the test binary.
    pub fn build(&self, progress: &Progress) -> Result<PathBuf> {
        let (package, name) = (self.package, self.name);
        progress.during(&format!("building the tests of {name} (static)"), || build(package, name))
    }

    /// Makes ready for a run with the tests whose names contain one of `filter`; none if there are none.
    pub fn prepare(&self, context: &Context, pass: Pass, filter: &[&str]) -> Result<Option<Run>> {
        let (progress, name) = (&context.progress, self.name);
        let binary = self.build(progress)?;
        let mut tests: Vec<OsString> = filter.iter().map(OsString::from).collect();
        if pass == Pass::Jailed {
            for Outside { test, why, .. } in jail::OUTSIDE.iter().filter(|test| test.binary == name) {
                println!("not in the jail: {test}: {why}");
                tests.extend(["--skip", test].map(OsString::from));
            }
        }
        if !filter.is_empty() && !has_tests(&binary, &tests)? {
            return Ok(None);
        }
        let directly = self.runs_directly();
        let in_nested_host = self.runs_nested(context)?;
        let notes_rules = self.notes_rules && pass == Pass::Jailed;
        let program = if notes_rules { SECCOMP_USAGE.build(progress)? } else { binary.clone() };
        let mut command = if directly {
            Command::new(program)
        } else {
            let mut command = Command::new(HOST_RUNNER.build(progress)?);
            command.arg(program);
            if self.needs == Needs::AnyKvm && in_nested_host {
                command.env(place::VARIABLE, "nested");
            }
            command
        };
        command.args(tests).args(["--color", colour()]).env(VMM_VARIABLE, vmm(context)?);
        if pass == Pass::Jailed {
            into_jail(&mut command, progress)?;
        }
        (self.prepare)(context, &mut command)?;
        if notes_rules {
            command.env(TESTS_VARIABLE, &binary);
        }
        Ok(Some(Run { name, command, pass, in_nested_host }))
    }
}

/// Does so for several, together.
pub fn run_all(context: &Context, suites: &[(&Suite, &[Pass])]) -> Result<Passed> {
    let filter: Vec<&str> = context.filter.iter().map(String::as_str).collect();
    let mut runs = Vec::new();
    for (suite, passes) in suites {
        for pass in *passes {
            runs.extend(suite.prepare(context, *pass, &filter)?);
        }
    }
    let passed = finish(context, &mut runs)?;
    if filter.is_empty() {
        let names = runs.iter().map(|run| (run.name, run.pass));
        context.noted.borrow_mut().passed.extend(names);
    }
    Ok(passed)
}

/// Carries runs out, those in nested hosts on all processors: each has one.
pub fn finish(context: &Context, runs: &mut [Run]) -> Result<Passed> {
    if runs.is_empty() {
        return Ok(Passed { note: "no test has such a name".to_owned(), tests: 0 });
    }
    let broken = |code| {
        let text = "the nested host broke; that says nothing about the tests";
        (code == i32::from(EXIT_HOST_BROKEN)).then(|| text.to_owned())
    };
    let at_once = if runs.iter().any(|run| run.in_nested_host) { processors() } else { 1 };
    let commands = runs.iter_mut().map(|run| &mut run.command);
    let results = show_all_tests(commands.collect(), at_once, broken);
    let (mut sum, mut failed) = (Passed::default(), Vec::new());
    for (run, (said, result)) in runs.iter().zip(results) {
        context.noted.borrow_mut().rules.append(&mut usage::used(&String::from_utf8_lossy(&said)));
        match result {
            Ok(tests) => {
                let passed = tests.passed();
                sum.tests += passed.tests;
                sum.note.push_str(if sum.note.is_empty() { "" } else { ", " });
                sum.note.push_str(&format!("{} of {}{}", passed.note, run.name, run.pass.suffix()));
            }
            Err(error) => failed.push(format!("{}{}", chain(&error), run.pass.suffix())),
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
