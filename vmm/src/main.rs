//! The `vmm` program: reads its command line, runs one guest, and ends with the code that says how the guest ended.

use std::io::{self, Write};
use std::process::ExitCode;

use kindling_vmm::cli::{self, Command, ParseEnd};
use kindling_vmm::error::one_line;
use kindling_vmm::outcome::EXIT_BAD_ARGUMENTS;
use kindling_vmm::{doctor, start};

fn main() -> ExitCode {
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
            eprintln!("vmm: {}", one_line(&error));
            error.exit_code()
        }
    }
}

fn bad_arguments(line: &str) -> ExitCode {
    eprintln!("vmm: {line}");
    ExitCode::from(EXIT_BAD_ARGUMENTS)
}
