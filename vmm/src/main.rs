//! The `vmm` program: reads its command line, runs one guest, and ends with the code that says how the guest ended.

use std::io::{self, Write};
use std::process::ExitCode;

use kindling_vmm::cli::{self, Command, ParseEnd};
use kindling_vmm::error::one_line;
use kindling_vmm::outcome::EXIT_BAD_ARGUMENTS;
use kindling_vmm::{doctor, start};

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes a setting of the allocator, before there is a second thread. One arena for all threads:
    // they allocate too little to be worth one each, with its mappings.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(ParseEnd::Print(text)) => {
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(ParseEnd::Error(line)) => return bad_arguments(&line),
    };
    let result = match &cli.command {
        Some(Command::Doctor { json }) => return doctor::main(*json),
        Some(Command::Run(options)) => start::from_options(options),
        None => match &cli.config_file {
            None => {
                return bad_arguments(
                    "no guest to start: give --config-file or a command (see `vmm --help`)",
                );
            }
            Some(_) if !cli.no_api => {
                return bad_arguments("--config-file needs --no-api: this build has no API server");
            }
            Some(path) => start::from_config_file(path, &cli.log),
        },
    };
    match result {
        Ok(outcome) => ExitCode::from(&outcome),
        Err(error) => {
            complain(&one_line(&error));
            error.exit_code()
        }
    }
}

fn bad_arguments(line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(EXIT_BAD_ARGUMENTS)
}

fn complain(line: &str) {
    // Nobody may be reading; the exit code says the rest.
    let _ = writeln!(io::stderr(), "vmm: {line}");
}
