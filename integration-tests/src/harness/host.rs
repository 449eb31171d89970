//! Programs that run beside guests: in the nested host if there is one, else on this machine.

use std::io;
use std::process::Command;
use std::time::Duration;

use super::Vmm;
use crate::error::{Context, Error, Result};
use crate::root_image;
use crate::run;

/// Runs a program to its end; it must succeed. Returns its standard output.
pub fn on_host(program: &str, arguments: &[&str], limit: Duration) -> Result<String> {
    succeed(Vmm::with_program(program, arguments), limit)
}

/// Runs a program to its end; it must succeed. Returns its standard output.
pub(super) fn succeed(mut program: Vmm, limit: Duration) -> Result<String> {
    let command = run::describe(program.command());
    let ended = program.run(limit)?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let detail = format!("{}: {}{}", ended.status, ended.stdout, ended.stderr);
    Err(Error::Command { command, detail: detail.trim_end().to_owned() })
}

/// What starting a command gave, with the package's name if the program is not there.
pub(super) fn started<T>(result: io::Result<T>, command: &Command) -> Result<T> {
    let program = command.get_program().to_string_lossy();
    match root_image::package_of(&program) {
        Some(package) if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => {
            Err(Error::Missing {
                what: program.into_owned(),
                command: format!("sudo apt-get install {package}"),
            })
        }
        _ => result.doing(|| format!("cannot start {program}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn output_is_returned_and_failure_is_an_error_with_what_was_said() {
        assert_eq!(on_host("sh", &["-c", "echo a"], SOON).unwrap(), "a\n");
        let error = on_host("sh", &["-c", "echo no luck >&2; exit 3"], SOON).unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no luck"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let command = Command::new("iperf3");
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let error = started::<()>(Err(missing), &command).unwrap_err().to_string();
        assert_eq!(error, "iperf3 missing; run: sudo apt-get install iperf3");
    }
}
