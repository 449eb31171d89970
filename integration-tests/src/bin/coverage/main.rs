//! `cargo coverage`: how many of each crate's lines the tests run, held against the floors in `coverage/floors.toml`.
//!
//! `coverage/README.md` says what is measured and what is not.

mod floors;
mod measure;
mod report;
mod source;
mod tools;

use std::process::ExitCode;

use clap::Parser;
use floors::{Finding, Floors};
use kindling_integration_tests::error::{Result, chain};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::run::arguments;
use report::Crates;
use tools::Tools;

/// Measures how many lines of each crate the tests run, and fails if it is fewer than the crate's floor.
///
/// Runs the unit and integration tests, and the tests of `vmm` with bad input and with guests without an operating system, in
/// builds that count. That takes /dev/kvm, and root for some. The floors are in coverage/floors.toml.
#[derive(Parser)]
#[command(bin_name = "cargo coverage", after_help = AFTER_HELP)]
struct Options {
    /// Raise the floors that are too low to what is measured, and add those that are missing
    #[arg(long)]
    update: bool,

    /// Write the source with its counts as HTML, too
    #[arg(long)]
    html: bool,
}

const AFTER_HELP: &str = "\
Files:
  coverage/floors.toml       the floors, in percent of a crate's lines
  target/coverage/lcov.info  the count of every line
  target/coverage/html       what --html writes

Exit codes: 0 no crate is below its floor; 1 one is, a test failed or something is missing; 2 the command line is wrong.";

fn main() -> ExitCode {
    match run(&Options::parse_from(arguments())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("coverage: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether every crate has reached its floor.
fn run(options: &Options) -> Result<bool> {
    // What is wrong with these is to be known before minutes have passed.
    let mut floors = Floors::read()?;
    let progress = Progress::new();
    let tools = Tools::find(&progress)?;
    let profile = measure::run(&tools, &progress)?;
    let lcov = profile.export(&tools)?;
    if options.html {
        println!("The report is {}.", profile.html(&tools)?.display());
    }
    let crates = Crates::from_lcov(&lcov)?;
    print!("{}", floors.table(&crates));
    // What tests that fail did not get to would make a floor too low.
    if options.update && profile.tests.is_ok() && floors.raise(&crates) {
        floors.write()?;
        println!("{} has the new floors.", floors::PATH);
    }
    let findings = floors.compare(&crates);
    findings.iter().for_each(|finding| println!("{finding}"));
    profile.tests?;
    Ok(!findings.iter().any(Finding::is_failure))
}
