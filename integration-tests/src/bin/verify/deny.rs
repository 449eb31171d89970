//! The step that has cargo-deny look at what the workspace depends on: `.cargo/deny.toml` says what may be.

use std::process::Command;

use kindling_integration_tests::error::Result;
use kindling_integration_tests::python;
use kindling_integration_tests::workspace::root;

use crate::Context;
use crate::shell::show;
use crate::steps::Passed;

/// Has known vulnerabilities looked up, too, for which their database is downloaded.
const ADVISORIES_VARIABLE: &str = "KINDLING_ADVISORIES";

/// What is checked without a network.
const CHECKS: [&str; 3] = ["bans", "licenses", "sources"];

/// Installs cargo-deny, unless it is there, and runs it.
pub fn run(context: &Context) -> Result<Passed> {
    let python = python::prepare("integration-tests/cargo-deny/requirements.txt", &context.progress)?;
    let mut checks = CHECKS.to_vec();
    if std::env::var_os(ADVISORIES_VARIABLE).is_some_and(|value| !value.is_empty()) {
        checks.push("advisories");
    }
    // An exception that nothing needs any more is a warning.
    let mut command = Command::new(python.with_file_name("cargo-deny"));
    command.args(["--locked", "check", "--deny", "warnings"]).args(&checks).current_dir(root());
    show(&mut command)?;
    Ok(Passed { note: checks.join(", "), tests: 0 })
}
