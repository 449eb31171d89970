//! The fuzz step: builds every fuzz target of the workspace and runs each for a while.
//!
//! Works with a stable compiler: coverage feedback comes from LLVM's own pass, the engine from `libfuzzer-sys`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kindling_integration_tests::error::{Context as _, Error, Result};
use kindling_integration_tests::harness::Vmm;
use kindling_integration_tests::run;
use kindling_integration_tests::workspace::{TARGET, cargo, target_dir};
use serde::Deserialize;

use crate::Context;
use crate::parallel::{in_parallel, processors};
use crate::shell::show;
use crate::steps::Passed;

const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Copt-level=2";

/// One input may take this long before it counts as a hang.
const INPUT_LIMIT_SECONDS: u32 = 10;

/// Most memory a target may use.
const MEMORY_LIMIT_MIB: u32 = 1024;

/// Lines of a failed target that are shown.
const LINES_SHOWN: usize = 60;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
    metadata: Option<Mark>,
}

/// `[package.metadata] cargo-fuzz = true`, which marks packages of fuzz targets.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mark {
    #[serde(default)]
    cargo_fuzz: bool,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// A fuzz target and its seed corpus.
pub struct Fuzzer {
    name: String,
    seeds: PathBuf,
}

/// Builds all targets, by whatever carries out a command; returns them, and where they are.
pub fn build(carry_out: impl FnOnce(&mut Command) -> Result<()>) -> Result<(Vec<Fuzzer>, PathBuf)> {
    let metadata = run::output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&metadata)
        .map_err(|error| Error::Protocol(format!("cargo metadata cannot be read: {error}")))?;
    let packages: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| package.metadata.as_ref().is_some_and(|mark| mark.cargo_fuzz))
        .collect();
    if packages.is_empty() {
        return Err(Error::Protocol("no package has `cargo-fuzz = true` in its metadata".to_owned()));
    }
    let target_dir = target_dir().join("fuzz");
    let mut command = cargo();
    command.args(["build", "--quiet", "--target", TARGET, "--target-dir"]).arg(&target_dir);
    for package in &packages {
        command.args(["--package", &package.name]);
    }
    carry_out(command.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    Ok((packages.iter().flat_map(|package| fuzzers(package)).collect(), target_dir))
}

/// Builds all targets and runs each.
pub fn run(context: &Context) -> Result<Passed> {
    let (fuzzers, target_dir) = build(show)?;
    // A target has one thread.
    let seconds = context.fuzz_seconds;
    let results = in_parallel(&fuzzers, processors(), |_, fuzzer| fuzzer.run(&target_dir, seconds));
    results.into_iter().collect::<Result<()>>()?;
    let note = format!("{} targets, {} s each", fuzzers.len(), context.fuzz_seconds);
    Ok(Passed { note, tests: 0 })
}

fn fuzzers(package: &Package) -> Vec<Fuzzer> {
    let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
    let is_program = |target: &&Target| target.kind.iter().any(|kind| kind == "bin");
    let fuzzer = |target: &Target| Fuzzer {
        name: target.name.clone(),
        seeds: folder.join("corpus").join(&target.name),
    };
    package.targets.iter().filter(is_program).map(fuzzer).collect()
}

impl Fuzzer {
    /// Runs the seeds, and then what grows from them, in a copy of the corpus.
    fn run(&self, target_dir: &Path, seconds: u32) -> Result<()> {
        let name = &self.name;
        let scratch = tempfile::tempdir().doing(|| "cannot create a folder for the corpus".to_owned())?;
        let seeds = copy_files(&self.seeds, scratch.path())?;
        if seeds == 0 {
            let text = format!("fuzz target {name} has no seeds in {}", self.seeds.display());
            println!("{name} FAILED: no seeds");
            return Err(Error::Protocol(text));
        }
        let artifacts = target_dir.join("artifacts").join(name);
        fs::create_dir_all(&artifacts).doing(|| format!("cannot create {}", artifacts.display()))?;

        let mut fuzzer =
            Vmm::with_program(target_dir.join(TARGET).join("debug").join(name), [scratch.path()]);
        fuzzer.command().args([
            format!("-max_total_time={seconds}"),
            format!("-timeout={INPUT_LIMIT_SECONDS}"),
            format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"),
            format!("-artifact_prefix={}/", artifacts.display()),
            "-print_final_stats=1".to_owned(),
        ]);
        let limit = Duration::from_secs(u64::from(seconds) + 120);
        let ended = fuzzer.run(limit)?;
        if ended.code() == Some(0) {
            let runs = statistic(&ended.stderr, "stat::number_of_executed_units:").unwrap_or("?");
            println!("{name}: {seeds} seeds, {runs} inputs");
            return Ok(());
        }
        let lines = ended.stderr_lines();
        println!("{}", lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default().join("\n"));
        let artifact = statistic(&ended.stderr, "Test unit written to ").unwrap_or("no input was written");
        let detail = format!("{}; input: {artifact}", ended.status);
        println!("{name} FAILED: {detail}");
        Err(Error::Command { command: format!("fuzz target {name}"), detail })
    }
}

/// What follows `label` on its line.
fn statistic<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.split_once(label)?.1.trim()))
}

/// Copies the files of a folder, none if there is no such folder, and returns how many.
fn copy_files(from: &Path, to: &Path) -> Result<usize> {
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(0);
    };
    let mut count = 0;
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        let name = path.file_name().unwrap_or_default();
        fs::copy(&path, to.join(name)).doing(|| format!("cannot copy {}", path.display()))?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_packages_with_their_programs_are_fuzzed() {
        let json = r#"{"packages":[
            {"name":"a","manifest_path":"/w/a/Cargo.toml","targets":[],"metadata":null},
            {"name":"a-fuzz","manifest_path":"/w/a/fuzz/Cargo.toml","metadata":{"cargo-fuzz":true},
             "targets":[{"name":"a_x","kind":["bin"]},{"name":"a_lib","kind":["lib"]}]}]}"#;
        let metadata: Metadata = serde_json::from_str(json).unwrap();
        assert!(metadata.packages[0].metadata.is_none());
        assert!(metadata.packages[1].metadata.as_ref().unwrap().cargo_fuzz);
        let fuzzers = fuzzers(&metadata.packages[1]);
        assert_eq!(fuzzers.len(), 1);
        assert_eq!(fuzzers[0].seeds, Path::new("/w/a/fuzz/corpus/a_x"));
    }

    #[test]
    fn the_written_input_is_found_in_what_the_engine_says() {
        let text = "==1== ERROR\nartifact_prefix='/a/'; Test unit written to /a/crash-12\nBase64: AA==\n";
        assert_eq!(statistic(text, "Test unit written to "), Some("/a/crash-12"));
        assert_eq!(statistic(text, "stat::"), None);
    }
}
