//! Which rules of the filters of system calls no run of `vmm` has needed. A tool for whoever changes the profiles: a rule
//! that nothing needs goes, or its comment says why it stays.
//!
//! With `$KINDLING_TRACES` naming a folder it stands in for `vmm`, which it runs under strace(1); so any tests can be run
//! with it, though those that measure time fail. With the folder as its argument it says what the traces lack:
//!
//! ```text
//! cargo build --profile tools -p kindling-integration-tests --bin seccomp-usage
//! KINDLING_TRACES=/tmp/traces KINDLING_TRACED=target/tools/vmm KINDLING_VMM=target/tools/seccomp-usage \
//!     cargo verify --step bare-metal
//! target/tools/seccomp-usage /tmp/traces
//! ```

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use kindling_integration_tests::workspace;
use serde_json::Value;

/// The kinds of thread, and what the names of theirs begin with. The first one has its program's name.
const KINDS: [(&str, &str); 4] = [("api", "api"), ("vcpu", "vcpu "), ("io", "io "), ("vmm", "")];

/// A rule, and whether a call was made that it allows.
struct Rule {
    file: &'static str,
    syscall: String,
    conditions: Vec<Value>,
    comment: String,
    used: bool,
}

/// A thread in a trace.
#[derive(Default)]
struct Thread {
    kind: Option<&'static str>,
    bound: bool,
}

fn main() -> ExitCode {
    let result = match env::var_os("KINDLING_TRACES") {
        Some(folder) => Err(run_traced(Path::new(&folder))),
        None => match env::args_os().nth(1) {
            Some(folder) => report(Path::new(&folder)),
            None => Err(io::Error::other("the argument is the folder with the traces")),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seccomp-usage: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes strace with `vmm`; returns only if that fails.
fn run_traced(folder: &Path) -> io::Error {
    let vmm = env::var_os("KINDLING_TRACED").unwrap_or_else(|| "vmm".into());
    let trace = folder.join(format!("trace.{}", std::process::id()));
    // Signals to this process are for `vmm`, so strace is not to be its parent. The names of threads are to be read; of
    // everything else the numbers.
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-qq", "-e", "signal=none", "-e", "raw=!prctl", "-o"]).arg(trace).arg(vmm);
    strace.args(env::args_os().skip(1)).exec()
}

fn report(folder: &Path) -> io::Result<()> {
    let mut rules = rules()?;
    let mut traces = 0;
    for file in fs::read_dir(folder)? {
        read_trace(&file?.path(), &mut rules)?;
        traces += 1;
    }
    let unused: Vec<_> = rules.iter().filter(|rule| !rule.used).collect();
    for Rule { file, syscall, conditions, comment, .. } in &unused {
        let arguments = conditions.iter().filter_map(|condition| condition["comment"].as_str());
        let arguments: Vec<&str> = arguments.collect();
        println!("{file}: {syscall}({}): {comment}", arguments.join(", "));
    }
    println!("{} of {} rules were not needed in {traces} runs", unused.len(), rules.len());
    Ok(())
}

fn rules() -> io::Result<Vec<Rule>> {
    let folder = workspace::root().join("crates/seccomp-profiles/profiles/x86_64");
    let mut rules = Vec::new();
    for file in ["every", "vmm", "api", "vcpu", "io"] {
        let text = fs::read_to_string(folder.join(file).with_extension("json"))?;
        let filter: Value = serde_json::from_str(&text)?;
        for rule in filter[file]["filter"].as_array().into_iter().flatten() {
            let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
            let conditions = rule["args"].as_array().cloned().unwrap_or_default();
            rules.push(Rule {
                file,
                syscall: text("syscall"),
                conditions,
                comment: text("comment"),
                used: false,
            });
        }
    }
    Ok(rules)
}

fn read_trace(path: &PathBuf, rules: &mut [Rule]) -> io::Result<()> {
    let mut threads = BTreeMap::<String, Thread>::new();
    for line in BufReader::new(fs::File::open(path)?).lines() {
        // `<thread> <call>(<argument>, …) = <result>`, cut after the arguments where another thread came between.
        let line = line?;
        let Some((id, call)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        let thread = threads.entry(id.to_owned()).or_default();
        if name == "prctl"
            && let Some(name) = arguments.strip_prefix("PR_SET_NAME, \"")
        {
            thread.kind = KINDS.iter().find(|(_, start)| name.starts_with(start)).map(|(kind, _)| *kind);
        }
        if thread.bound {
            let arguments = arguments.split([')', '<']).next().unwrap_or_default();
            let arguments: Vec<u64> = arguments.split(", ").map_while(|word| number(word.trim())).collect();
            let kind = thread.kind.unwrap_or("vmm");
            for rule in rules.iter_mut().filter(|rule| [kind, "every"].contains(&rule.file)) {
                let allows = rule.syscall == name && rule.conditions.iter().all(|one| holds(one, &arguments));
                rule.used |= allows || (name == "prctl" && rule.syscall == name);
            }
        }
        thread.bound |= name == "seccomp";
    }
    Ok(())
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn holds(condition: &Value, arguments: &[u64]) -> bool {
    let number = |name: &str| condition[name].as_u64().unwrap_or_default();
    let index = usize::try_from(number("index")).unwrap_or(usize::MAX);
    let Some(argument) = arguments.get(index) else { return false };
    let argument = if condition["type"] == "dword" { argument & u64::from(u32::MAX) } else { *argument };
    match &condition["op"] {
        Value::String(op) if op == "le" => argument <= number("val"),
        Value::String(_) => argument == number("val"),
        op => argument & op["masked_eq"].as_u64().unwrap_or_default() == number("val"),
    }
}
