//! Builds everything so that it counts, runs the tests, and has the counts added up.
//!
//! The counters of a process are in a file that it maps (*continuous mode* of LLVM's profile runtime), one per program: nothing
//! has to be written at the end, which filters of system calls forbid and a killed process does not live to do. It opens
//! the file when it starts, before it confines itself, so that nothing of that has to be turned off.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::place::kvm_opens;
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::run;
use kindling_integration_tests::runner::VMM_VARIABLE;
use kindling_integration_tests::workspace::{STATIC_RUSTFLAGS, TARGET, cargo, root, target_dir};
use serde::Deserialize;

use crate::tools::Tools;

/// Continuous mode needs the relocation. Names in profiles stay as they are because not all builds of LLVM can decompress.
const COUNTING_RUSTFLAGS: &str = "-C instrument-coverage -C llvm-args=-runtime-counter-relocation \
    -C llvm-args=-enable-name-compression=false";

/// A file per program (`%m`), mapped by all that run it (`%c`).
const PROFILE_NAMES: &str = "%m%c.profraw";

/// Everything but what needs flags of its own, and the tests themselves.
const PACKAGES: [&str; 9] = [
    "--workspace",
    "--exclude",
    "kindling-bare-metal-guest",
    "--exclude",
    "kindling-*-fuzz",
    "--exclude",
    "kindling-integration-tests",
    "--exclude",
    "kindling-client-tests",
];

/// Also what tests run that is no test.
const PROGRAMS: [&str; 2] = ["--bins", "--examples"];

/// Doc tests are left out: the stable compiler keeps none of their programs.
const TESTS: &str = "--tests";

/// The tests of `vmm` that any KVM will do for. In another root folder it does not find its profile, of which it complains; and
/// what counts takes more memory than the shipped binary.
const VMM_TESTS: [&str; 6] =
    ["--package", "kindling-integration-tests", "--test", "bad_input", "--test", "bare_metal"];
const BUT: [&str; 5] = ["--", "--skip", "stranger", "--skip", "memory::a_monitor_takes"];

/// The part of cargo's messages that matters here.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
}

/// What was counted, and the programs that tell which lines it was.
pub struct Profile {
    data: PathBuf,
    programs: Vec<PathBuf>,
    /// Whether the tests passed. Those that fail count, too.
    pub tests: Result<()>,
}

/// Builds and runs the tests.
pub fn run(tools: &Tools, progress: &Progress) -> Result<Profile> {
    if !kvm_opens() {
        let text = "cannot open /dev/kvm, without which less is run than the floors ask for";
        return Err(Error::Protocol(text.to_owned()));
    }
    let programs = || build(counting("build").args(PACKAGES).args(PROGRAMS));
    let mut programs = progress.during("building vmm, jailer and examples", programs)?;
    let vmm = programs.iter().find(|program| program.file_name() == Some(OsStr::new("vmm"))).cloned();
    let vmm = vmm.ok_or_else(|| Error::Protocol("cargo names no vmm".to_owned()))?;
    let tests = || build(counting("test").arg("--no-run").args(PACKAGES).arg(TESTS));
    programs.extend(progress.during("building the tests", tests)?);

    let profiles = empty_folder("profiles")?;
    let tests = run_tests(&vmm, &profiles);
    let data = folder().join("merged.profdata");
    let mut merge = tools.profdata();
    merge.args(["merge", "--sparse", "--output"]).arg(&data).args(files_in(&profiles)?);
    progress.during("adding the counts up", || run::quiet(&mut merge))?;
    Ok(Profile { data, programs, tests })
}

/// Runs the tests, with profiles in the folder `profiles`.
fn run_tests(vmm: &Path, profiles: &Path) -> Result<()> {
    let test = || {
        let mut command = counting("test");
        command.arg("--no-fail-fast").env("LLVM_PROFILE_FILE", profiles.join(PROFILE_NAMES));
        command
    };
    let first = run::show(test().args(PACKAGES).arg(TESTS));
    first.and(run::show(test().env(VMM_VARIABLE, vmm).args(VMM_TESTS).args(BUT)))
}

impl Profile {
    /// The count of every line, in the format of lcov; kept in a file, too.
    pub fn export(&self, tools: &Tools) -> Result<String> {
        let text = run::output(self.report(&mut tools.cov(), "export").arg("--format=lcov"))?;
        let file = folder().join("lcov.info");
        fs::write(&file, &text).doing(|| format!("cannot write {}", file.display()))?;
        Ok(text)
    }

    /// Writes the source with its counts, and returns the first page.
    pub fn html(&self, tools: &Tools) -> Result<PathBuf> {
        let folder = empty_folder("html")?;
        let mut cov = tools.cov();
        run::quiet(self.report(&mut cov, "show").args(["--format=html", "--output-dir"]).arg(&folder))?;
        Ok(folder.join("index.html"))
    }

    fn report<'a>(&self, cov: &'a mut Command, what: &str) -> &'a mut Command {
        cov.arg(what).arg("--instr-profile").arg(&self.data);
        for program in &self.programs {
            cov.arg("--object").arg(program);
        }
        cov.arg("--sources").args(["crates", "vmm", "jailer"].map(|folder| root().join(folder)))
    }
}

fn folder() -> PathBuf {
    target_dir().join("coverage")
}

/// A cargo command for builds that count. Their target folder is an argument: what the tests build themselves does not count.
fn counting(what: &str) -> Command {
    let mut command = cargo();
    command.args([what, "--quiet", "--target", TARGET, "--target-dir"]).arg(folder());
    command.env("RUSTFLAGS", format!("{STATIC_RUSTFLAGS} {COUNTING_RUSTFLAGS}"));
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    // Lines are told by the counters. The standard library's assertions make system calls that the filters forbid.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_DEBUG_ASSERTIONS", "false");
    command
}

/// Builds, and returns the programs.
fn build(command: &mut Command) -> Result<Vec<PathBuf>> {
    let command = command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let messages = run::output(command)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    Ok(messages.filter_map(|message| message.executable).collect())
}

/// A folder below the target folder without what is left there from another run, which would count.
fn empty_folder(name: &str) -> Result<PathBuf> {
    let folder = folder().join(name);
    let removed = if folder.exists() { fs::remove_dir_all(&folder) } else { Ok(()) };
    let made = removed.and_then(|()| fs::create_dir_all(&folder));
    made.doing(|| format!("cannot empty {}", folder.display()))?;
    Ok(folder)
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).doing(|| format!("cannot list {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}
