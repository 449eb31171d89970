//! What `buildkite/pipeline.yml` runs is there, and nothing is left out.

use std::fs;

use clap::Parser;
use kindling_integration_tests::workspace::root;

use crate::Options;
use crate::steps::STEPS;

/// The command lines of the pipeline, without what they begin with or are piped into.
fn commands(start: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("buildkite/pipeline.yml")).unwrap();
    let commands = text.lines().filter_map(|line| line.split_once(start)?.1.split('|').next());
    commands.map(|command| command.trim().to_owned()).collect()
}

#[test]
fn the_pipeline_runs_every_step() {
    let mut steps = Vec::new();
    for command in commands("cargo verify ") {
        let arguments = ["verify"].into_iter().chain(command.split_whitespace());
        let options = Options::try_parse_from(arguments).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(!options.steps.is_empty(), "{command}");
        steps.extend(options.steps.iter().map(|step| step.name));
    }
    for step in &STEPS {
        assert!(steps.contains(&step.name), "no step of the pipeline runs {}", step.name);
    }
}

#[test]
fn the_pipeline_runs_every_benchmark_of_the_monitor() {
    let mut wanted: Vec<String> = fs::read_dir(root().join("integration-tests/benches"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut run = commands("cargo bench --package kindling-integration-tests --bench ");
    wanted.sort();
    run.sort();
    assert_eq!(run, wanted);
}
