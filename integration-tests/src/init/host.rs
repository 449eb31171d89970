//! Runs the job of a nested host.
//!
//! The job's standard streams are the second serial port; the third carries lines to [`crate::nested`]: `started`,
//! a `.` every now and then, and at last `exit CODE` or `failed TEXT`. Kernel messages have the first port for
//! themselves.
//!
//! With `kindling.tools` the job has the programs of a root file system in its `PATH`, with `kindling.scratch` a folder
//! on a disk, named by [`SCRATCH_VARIABLE`].

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::disks;
use super::parameters::Parameters;
use super::system::{self, Event, Power, Session, System};
use crate::error::chain;
use crate::harness::SCRATCH_VARIABLE;
use crate::job::{JOB_PATH, Job};

const JOB_TERMINAL: &str = "/dev/ttyS1";
const CONTROL_TERMINAL: &str = "/dev/ttyS2";

/// Time between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Runs the job and reports how it ended.
pub fn run(system: &mut System, parameters: &Parameters) -> io::Result<Power> {
    system::set_hostname("nested-host");
    let mut control = system::open_terminal(CONTROL_TERMINAL)?;
    system::make_raw(&control)?;
    let report = match run_job(system, parameters, &mut control) {
        Ok(code) => format!("exit {code}\n"),
        Err(error) => format!("failed {error}\n"),
    };
    control.write_all(report.as_bytes())?;
    system::drain(&control);
    Ok(Power::Off)
}

fn run_job(system: &mut System, parameters: &Parameters, control: &mut File) -> io::Result<i32> {
    let terminal = system::open_terminal(JOB_TERMINAL)?;
    system::make_raw(&terminal)?;
    let job = Job::from_bytes(&std::fs::read(JOB_PATH)?).map_err(|error| io::Error::other(chain(&error)))?;
    for module in &job.modules {
        let module = Path::new(module);
        let named = |error| io::Error::other(format!("cannot load {}: {error}", module.display()));
        system::load_module(module).map_err(named)?;
    }
    disks::make_root_exchangeable()?;
    let (program, arguments) =
        job.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/tmp").env("HOME", "/root").envs(job.env);
    if let Some(device) = &parameters.tools {
        command.env("PATH", disks::mount_tools(device)?);
    }
    if let Some(device) = &parameters.scratch {
        command.env(SCRATCH_VARIABLE, disks::make_scratch(device)?);
    }
    // What tests make is for the user of a jail, too.
    // SAFETY: the call takes a number.
    unsafe { libc::umask(0) };
    control.write_all(b"started\n")?;
    let named =
        |error| io::Error::other(format!("cannot start {} (is it static?): {error}", program.display()));
    let child = system::spawn(command, &terminal, Session::None).map_err(named)?;
    loop {
        match system.wait(None, Some(HEARTBEAT))? {
            Event::Child(pid, status) if pid == child => {
                system::drain(&terminal);
                return Ok(system::exit_code(status));
            }
            Event::Power(_) => return Err(io::Error::other("someone asked the host to end")),
            Event::Timeout => control.write_all(b".\n")?,
            _ => {}
        }
    }
}
