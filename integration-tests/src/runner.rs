//! Runs a program where guests run: directly, or in a nested host with the same path, arguments and variables.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdout, Command};
use std::time::Duration;

use crate::error::{Context, Result};
use crate::guest_image::{self, GuestImage};
use crate::harness::timeout_scale;
use crate::nested::{Breakage, Host, Limits, Outcome, Spec};
use crate::packages;
use crate::place::{Decision, Place};
use crate::progress::Progress;
use crate::workspace::VMM;

/// Names the `vmm` to test; without it one is built.
pub const VMM_VARIABLE: &str = "KINDLING_VMM";

/// Names more files the nested host shall have, separated by colons.
pub const FILES_VARIABLE: &str = "KINDLING_HOST_FILES";

/// The exit code that says that the nested host did not work, and nothing about the program.
pub const EXIT_HOST_BROKEN: u8 = 3;

/// Emulated processors of a nested host.
pub const HOST_CPUS: u32 = 2;

/// Emulated memory of a nested host in MiB: room for its RAM disk and some guests.
pub const HOST_MEMORY_MIB: u32 = 4096;

const LIMITS: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(1800) };

/// Guests and `vmm`, ready to use.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What guests are booted from.
    pub image: GuestImage,
    /// The `vmm` under test.
    pub vmm: PathBuf,
    /// Where guests run.
    pub decision: Decision,
}

impl Prepared {
    /// Builds, downloads and installs what is missing.
    pub fn prepare(progress: &Progress) -> Result<Self> {
        let vmm = match std::env::var_os(VMM_VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => VMM.build(progress)?,
        };
        let decision = Decision::make(&vmm)?;
        if decision.place == Place::Nested {
            packages::require(&[packages::QEMU], progress)?;
        }
        let image = match GuestImage::from_environment() {
            Some(image) => image,
            None => GuestImage::prepare(progress)?,
        };
        Ok(Self { image, vmm, decision })
    }

    /// The variables by which a program under test finds guests and `vmm`.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let pair = |name: &str, value: &PathBuf| (name.into(), value.clone().into_os_string());
        vec![
            pair(guest_image::FOLDER_VARIABLE, &self.image.folder().to_owned()),
            pair(VMM_VARIABLE, &self.vmm),
        ]
    }

    /// What a nested host needs to run `argv`.
    pub fn host_spec(&self, argv: Vec<OsString>, files: Vec<PathBuf>) -> Spec {
        let mut files = files;
        files.push(self.vmm.clone());
        Spec {
            image: self.image.clone(),
            files,
            argv,
            env: self.environment(),
            cpus: HOST_CPUS,
            memory_mib: HOST_MEMORY_MIB,
            stdin: false,
        }
    }
}

/// The limits of a nested host, scaled like all others.
pub fn limits() -> Limits {
    let scale = timeout_scale();
    Limits { silence: LIMITS.silence.mul_f64(scale), total: LIMITS.total.mul_f64(scale) }
}

/// Runs `program` with `arguments` and returns the exit code to end with.
pub fn run(program: &OsString, arguments: &[OsString], progress: &Progress) -> Result<u8> {
    let prepared = Prepared::prepare(progress)?;
    let name = PathBuf::from(program);
    let name = name.file_name().unwrap_or(program).display();
    let why = &prepared.decision.why;
    match prepared.decision.place {
        Place::Native => {
            progress.note(&format!("{name} runs directly on this machine: {why}"));
            let mut command = Command::new(program);
            let error = command.args(arguments).envs(prepared.environment()).exec();
            Err(error).doing(|| format!("cannot run {}", program.display()))
        }
        Place::Nested => {
            progress.note(&format!("{name} runs in the nested host: {why}"));
            run_nested(&spec(&prepared, program, arguments)?, progress)
        }
    }
}

fn spec(prepared: &Prepared, program: &OsString, arguments: &[OsString]) -> Result<Spec> {
    let path = std::path::absolute(program).doing(|| format!("cannot find {}", program.display()))?;
    let mut files: Vec<_> = std::env::var_os(FILES_VARIABLE)
        .map(|list| std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect())
        .unwrap_or_default();
    files.push(path.clone());
    let mut argv = vec![path.into_os_string()];
    argv.extend_from_slice(arguments);
    let mut spec = prepared.host_spec(argv, files);
    let inherited = |name: &str| {
        (name.starts_with("KINDLING_") || name.starts_with("RUST_"))
            && !spec.env.iter().any(|(present, _)| present == name)
    };
    let mut more: Vec<_> =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(inherited)).collect();
    if !more.iter().any(|(name, _)| name == "RUST_TEST_THREADS") {
        more.push(("RUST_TEST_THREADS".into(), HOST_CPUS.to_string().into()));
    }
    spec.env.append(&mut more);
    Ok(spec)
}

/// Runs a job in a nested host, its output going to ours. A host that breaks before the job starts gets a second try.
fn run_nested(spec: &Spec, progress: &Progress) -> Result<u8> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut host = Host::start(spec)?;
        let stdout = host.stdout.take();
        let copier = std::thread::spawn(move || stdout.map_or(Ok(()), copy_live));
        let outcome = host.wait(&limits());
        // Our own output may be closed; the exit code still counts.
        let _ = copier.join();
        match outcome {
            Outcome::Exited(code) => return Ok(code),
            Outcome::Broken(breakage) => {
                report(&breakage, progress);
                if breakage.began || tries == 2 {
                    return Ok(EXIT_HOST_BROKEN);
                }
                progress.note("nested host: the job had not begun; trying once more");
            }
        }
    }
}

/// Says that a nested host did not do its work.
pub fn report(breakage: &Breakage, progress: &Progress) {
    let when = if breakage.began { "after the job had begun" } else { "before the job began" };
    progress.note(&format!("nested host broken {when}: {}", breakage.why));
    progress.note("---- end of its console ----");
    progress.note(breakage.console.trim_end());
    progress.note("----------------------------");
}

/// Copies what a host prints as it comes.
fn copy_live(mut from: ChildStdout) -> io::Result<()> {
    let mut buffer = [0; 8192];
    let mut out = io::stdout();
    loop {
        let count = from.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
            return Ok(());
        };
        // A closed output must not stop the host: go on reading.
        let _ = out.write_all(chunk).and_then(|()| out.flush());
    }
}
