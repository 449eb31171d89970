//! Stands in for `vmm` in tests, and becomes it in a jail ([`kindling_integration_tests::harness::jail`]).

use std::process::ExitCode;

use kindling_integration_tests::error::chain;
use kindling_integration_tests::harness::jail;

fn main() -> ExitCode {
    let Err(error) = jail::become_jailed(std::env::args_os().skip(1).collect());
    eprintln!("jailed-vmm: {}", chain(&error));
    ExitCode::FAILURE
}
