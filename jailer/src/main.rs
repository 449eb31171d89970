//! The `jailer` program: reads its command line, builds a jail and becomes the monitor inside it.

use std::io::{self, Write};
use std::process::ExitCode;

use kindling_jailer::cli::{self, ParseEnd};
use kindling_jailer::error::one_line;
use kindling_jailer::{EXIT_BAD_ARGUMENTS, EXIT_FAILED, StartTimes, close_descriptors, run};

fn main() -> ExitCode {
    let start = StartTimes::now();
    let options = match cli::parse(std::env::args_os()) {
        Ok(options) => options,
        Err(ParseEnd::Print(text)) => {
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(ParseEnd::Error(line)) => return complain(&line, EXIT_BAD_ARGUMENTS),
    };
    match close_descriptors().and_then(|()| run(&options, start)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&one_line(&error), EXIT_FAILED),
    }
}

fn complain(line: &str, code: u8) -> ExitCode {
    // Nobody may be reading; the exit code says the rest.
    let _ = writeln!(io::stderr(), "jailer: {line}");
    code.into()
}
