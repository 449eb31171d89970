//! The step that asks whether every rule of the filters of system calls is needed by some test.

use std::collections::BTreeSet;

use kindling_integration_tests::error::{Error, Result};
use kindling_integration_tests::usage;

use crate::Context;
use crate::guests::{BARE_METAL, LINUX};
use crate::steps::Passed;
use crate::suite::{Pass, finish};

/// What runs of tests have noted.
#[derive(Debug, Default)]
pub struct Noted {
    /// The test binaries of which all tests have passed, and where the monitor was.
    pub passed: Vec<(&'static str, Pass)>,
    /// The rules that were used, by their place.
    pub rules: BTreeSet<usize>,
}

/// The tests with stock guests that need what guests without an operating system do not.
const STOCK: [&str; 6] = [
    "confinement::",
    "blk::a_block_device_and_a_file",
    "memory::free_huge_pages",
    "net::iperf3",
    "net::the_network_works_again",
    "pause::a_pause_that_a_hanging_disk",
];

/// Looks at what the steps with both kinds of guest have noted, and runs tests of those that have not.
pub fn run(context: &Context) -> Result<Passed> {
    if !BARE_METAL.passes(context)?.contains(&Pass::Jailed) {
        return Ok(Passed { note: "not asked: it takes a jail".to_owned(), tests: 0 });
    }
    let mut runs = Vec::new();
    // In a jail they need what they need outside, and more where there is no /proc.
    for (suite, tests) in [(LINUX, &STOCK[..]), (BARE_METAL, &[])] {
        if !context.noted.borrow().passed.contains(&(suite.name, Pass::Jailed)) {
            runs.extend(suite.prepare(context, Pass::Jailed, tests)?);
        }
    }
    let passed = match runs.is_empty() {
        true => Passed { note: "by the tests before".to_owned(), tests: 0 },
        false => finish(context, &mut runs)?,
    };
    let rules = usage::rules()?;
    let used = &context.noted.borrow().rules;
    let unused: Vec<_> = rules.iter().enumerate().filter(|(place, _)| !used.contains(place)).collect();
    for (_, rule) in &unused {
        println!("not used: {}", rule.text);
    }
    let note = format!("{} of {} rules are not used", unused.len(), rules.len());
    match unused.is_empty() {
        true => Ok(Passed { note: format!("{note}; {}", passed.note), ..passed }),
        false => Err(Error::Protocol(note)),
    }
}
