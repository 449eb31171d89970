//! `cargo verify`: everything that has to hold before a change is committed, in one command.

mod api;
mod deny;
mod fuzz;
mod guests;
mod parallel;
#[cfg(test)]
mod pipeline;
mod shell;
mod steps;
mod suite;
mod usage;

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use kindling_integration_tests::error::{Error, chain};
use kindling_integration_tests::guest_image::GuestImage;
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::{JAILER, VMM};
use kindling_integration_tests::{packages, root_image, run};
use steps::{Passed, STEPS, Step};
use usage::Noted;

/// Checks formatting, lints and documentation, and runs every test and fuzz target.
///
/// What is missing is installed first, through apt, if this user may; otherwise the command to run is printed. Tests
/// that boot Linux run directly where this machine's KVM runs guest kernels, and in the nested host elsewhere.
///
/// With FILTER only tests whose names contain it run, of every kind; formatting, lints, documentation, dependencies, the search
/// through the API and fuzzing are left out.
#[derive(Parser)]
#[command(bin_name = "cargo verify", after_help = AFTER_HELP)]
struct Options {
    /// Run only tests whose names contain this
    filter: Option<String>,

    /// Run only this step; may be given several times
    #[arg(long = "step", value_name = "NAME", value_parser = step)]
    steps: Vec<&'static Step>,

    /// Show the steps and end
    #[arg(long)]
    list: bool,

    /// Stop at the first step that fails, instead of running the others and listing all that failed
    #[arg(long)]
    fail_fast: bool,

    /// How long each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    fuzz_seconds: u32,

    /// How many requests are made up for each call of the API in each state of a machine, beside those that are always sent
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    api_examples: u32,
}

const AFTER_HELP: &str = "\
Examples:
  cargo verify                                 everything
  cargo verify console                         every test with `console` in its name
  cargo verify --step linux                    the tests that boot Linux
  cargo verify --step linux console            of these, the ones with `console` in their names
  cargo verify --step fuzz --fuzz-seconds 600  a longer search
  cargo verify --step api --api-examples 100   the same, of the API: more than 10,000 requests

Variables:
  KINDLING_ADVISORIES      1: the step deny looks up known vulnerabilities, too, which takes a network
  KINDLING_HOST            native or nested: where guests run, without a look at the machine
  KINDLING_JAIL            only or none: tests with the monitor in a jail alone, or without them
  KINDLING_KERNEL_PACKAGE  take the guests' kernel from this package
  KINDLING_TIMEOUT_SCALE   multiplies the time limits of guests

Exit codes: 0 every step passed; 1 a step failed or something is missing; 2 the command line is wrong.
The last line is `N passed, N failed`, counting steps.";

fn step(name: &str) -> Result<&'static Step, String> {
    let names = || STEPS.map(|step| step.name).join(", ");
    STEPS.iter().find(|step| step.name == name).ok_or_else(|| format!("the steps are {}", names()))
}

/// What steps need to know.
struct Context {
    filter: Option<String>,
    fuzz_seconds: u32,
    api_examples: u32,
    /// Whether all steps are run, with all tests.
    is_whole: bool,
    progress: Progress,
    /// What the steps before have noted of the use of filters.
    noted: RefCell<Noted>,
}

/// A step that has run.
struct Done {
    name: &'static str,
    took: Duration,
    result: Result<Passed, Error>,
}

fn main() -> ExitCode {
    let options = Options::parse_from(run::arguments());
    if options.list {
        for step in &STEPS {
            println!("{:<13} {}", step.name, step.what);
        }
        return ExitCode::SUCCESS;
    }
    let selected: Vec<_> = STEPS.iter().filter(|step| is_selected(step, &options)).collect();
    let context = Context {
        filter: options.filter,
        fuzz_seconds: options.fuzz_seconds,
        api_examples: options.api_examples,
        is_whole: selected.len() == STEPS.len(),
        progress: Progress::new(),
        noted: RefCell::default(),
    };
    if let Some(filter) = &context.filter {
        let left_out: Vec<_> = STEPS.iter().filter(|step| !step.filterable).map(|step| step.name).collect();
        println!("Only tests with {filter:?} in their names; not run: {}.", left_out.join(", "));
    }
    let mut tools: Vec<_> = selected.iter().flat_map(|step| step.tools).copied().collect();
    tools.dedup_by_key(|tool| tool.program);
    if let Err(error) = packages::require(&tools, &context.progress) {
        eprintln!("verify: {}", chain(&error));
        return ExitCode::FAILURE;
    }
    if context.is_whole {
        std::thread::spawn(prepare);
    }
    let mut done: Vec<Done> = Vec::new();
    for step in selected {
        println!("\n=== {}: {}", step.name, step.what);
        let start = Instant::now();
        let result = (step.run)(&context);
        let took = start.elapsed();
        if let Err(error) = &result {
            println!("=== {} failed: {}", step.name, chain(error));
        }
        let failed = result.is_err();
        done.push(Done { name: step.name, took, result });
        if failed && options.fail_fast {
            break;
        }
    }
    summary(&done, context.filter.as_deref())
}

/// Builds and downloads what takes long and keeps one processor busy, while the first steps run. What fails here fails again
/// where it is needed, and is reported there.
fn prepare() {
    let progress = Progress::new();
    let _ = VMM.build(&progress).and_then(|_| JAILER.build(&progress));
    let _ = GuestImage::prepare(&progress).and_then(|_| root_image::prepare(&progress));
    // What nobody waits for yet must not hold up the others: this thread, and what it starts, take what is left.
    // SAFETY: the call takes a number.
    unsafe { libc::nice(19) };
    let _ = guests::build_clients(&progress);
    let _ = progress.during("building fuzz targets", || fuzz::build(run::quiet));
}

/// Whether the options want a step. With a filter, those that run no tests are left out.
fn is_selected(step: &Step, options: &Options) -> bool {
    let named = options.steps.is_empty() || options.steps.iter().any(|wanted| wanted.name == step.name);
    named && (step.filterable || options.filter.is_none())
}

fn summary(done: &[Done], filter: Option<&str>) -> ExitCode {
    println!("\n=== summary");
    for Done { name, took, result } in done {
        let seconds = took.as_secs_f64();
        match result {
            Ok(passed) => println!("{name:<13} passed {seconds:>7.1} s  {}", passed.note),
            Err(error) => println!("{name:<13} FAILED {seconds:>7.1} s  {}", chain(error)),
        }
    }
    let failed = done.iter().filter(|done| done.result.is_err()).count();
    let tests: u32 = done.iter().filter_map(|done| Some(done.result.as_ref().ok()?.tests)).sum();
    if failed == 0
        && tests == 0
        && let Some(filter) = filter
    {
        println!("no test has {filter:?} in its name");
        println!("0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    println!("{} passed, {failed} failed", done.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
