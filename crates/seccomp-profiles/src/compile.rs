//! From JSON to a filter file. Serves the build script, which includes this file, and who makes filters of their own.
//!
//! The JSON is seccompiler's (its `docs/json_format.md`): an object with a filter under each kind of thread. Several texts
//! count as one. The rules of a filter called [`EVERY`] belong to all the others too. Where there is no filter `vsock`, that kind
//! of thread gets the filter `io`.

use std::collections::BTreeMap;

use seccompiler::{TargetArch, compile_from_json, sock_filter};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::format::{ARCH_X86_64, MAGIC, THREADS, VERSION};
use crate::optimise::optimise;

/// The filter whose rules belong to every kind of thread.
pub const EVERY: &str = "every";

/// Whether the values of arguments count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// They do.
    Checked,
    /// A system call that is allowed is allowed with any.
    Ignored,
}

/// What is wrong with the JSON.
#[derive(Debug, Error)]
pub enum CompileError {
    /// A text is not JSON.
    #[error("not JSON")]
    Json(#[source] serde_json::Error),
    /// A text or a part of it is not what it should be.
    #[error("{place} must be {expected}")]
    Shape {
        /// Where.
        place: String,
        /// What should be there.
        expected: &'static str,
    },
    /// There is no such kind of thread.
    #[error("{0:?} is no kind of thread: they are vmm, api, vcpu, io and vsock, and `every` for all of them")]
    Unknown(String),
    /// A filter is there more than once.
    #[error("there are two filters called {0:?}")]
    Twice(String),
    /// A filter is not there.
    #[error("there is no filter for the {0} thread")]
    Missing(&'static str),
    /// A rule without arguments allows nothing where another rule for the same system call has some.
    #[error("the filter for the {thread} thread has rules with and without arguments for {syscall}")]
    Mixed {
        /// The kind of thread.
        thread: &'static str,
        /// The system call.
        syscall: String,
    },
    /// A filter cannot be translated.
    #[error("cannot compile the filter for the {thread} thread")]
    Compile {
        /// The kind of thread.
        thread: &'static str,
        /// What seccompiler said.
        #[source]
        source: seccompiler::Error,
    },
}

/// Makes a filter file for x86_64 of the filters in `texts`.
///
/// # Errors
///
/// [`CompileError`]: the first thing that is wrong.
pub fn compile(texts: &[&str], arguments: Arguments) -> Result<Vec<u8>, CompileError> {
    let mut filters = filters(texts)?;
    let every = filters.remove(EVERY);
    if let Some(io) = filters.get("io").cloned() {
        filters.entry("vsock".to_owned()).or_insert(io);
    }
    let mut counts = Vec::new();
    let mut instructions = Vec::new();
    for thread in THREADS {
        let mut filter = filters.remove(thread).ok_or(CompileError::Missing(thread))?;
        add(&mut filter, every.as_ref(), thread)?;
        if arguments == Arguments::Ignored {
            rules_mut(&mut filter, thread)?.iter_mut().for_each(|rule| drop(rule.remove("args")));
        }
        check_arguments(&mut filter, thread)?;
        let program = translate(thread, &filter)?;
        // At most INSTRUCTIONS_MAX, or there would be no program.
        counts.extend((program.len() as u32).to_le_bytes());
        instructions.extend(program.iter().flat_map(bytes));
    }
    let head = [VERSION, ARCH_X86_64].into_iter().flat_map(u32::to_le_bytes);
    Ok(MAGIC.into_iter().chain(head).chain(counts).chain(instructions).collect())
}

fn filters(texts: &[&str]) -> Result<BTreeMap<String, Map<String, Value>>, CompileError> {
    let mut filters = BTreeMap::new();
    for text in texts {
        let shape = |place: &str| CompileError::Shape { place: place.to_owned(), expected: "an object" };
        let text: Value = serde_json::from_str(text).map_err(CompileError::Json)?;
        let Value::Object(members) = text else { return Err(shape("a text")) };
        for (name, filter) in members {
            if name != EVERY && !THREADS.contains(&name.as_str()) {
                return Err(CompileError::Unknown(name));
            }
            let Value::Object(filter) = filter else { return Err(shape(&name)) };
            if filters.contains_key(&name) {
                return Err(CompileError::Twice(name));
            }
            filters.insert(name, filter);
        }
    }
    Ok(filters)
}

/// Adds the rules of the filter for every thread to `filter`, behind its own: those are asked for more often.
fn add(
    filter: &mut Map<String, Value>,
    every: Option<&Map<String, Value>>,
    thread: &str,
) -> Result<(), CompileError> {
    let Some(every) = every else { return Ok(()) };
    let same = |name: &str| filter.get(name) == every.get(name);
    if filter.len() != every.len() || !every.keys().all(|name| name == "filter" || same(name)) {
        let expected = "like that of `every` but for its rules";
        return Err(CompileError::Shape { place: thread.to_owned(), expected });
    }
    let rules = |filter: &Map<String, Value>, name: &str| match filter.get("filter") {
        Some(Value::Array(rules)) => Ok(rules.clone()),
        _ => Err(not_rules(name)),
    };
    let all = [rules(filter, thread)?, rules(every, EVERY)?].concat();
    filter.insert("filter".to_owned(), all.into());
    Ok(())
}

fn not_rules(name: &str) -> CompileError {
    CompileError::Shape { place: format!("{name}.filter"), expected: "an array of objects" }
}

fn rules_mut<'f>(
    filter: &'f mut Map<String, Value>,
    thread: &str,
) -> Result<Vec<&'f mut Map<String, Value>>, CompileError> {
    let Some(Value::Array(rules)) = filter.get_mut("filter") else { return Err(not_rules(thread)) };
    rules.iter_mut().map(|rule| rule.as_object_mut().ok_or_else(|| not_rules(thread))).collect()
}

/// Refuses what seccompiler takes in another sense than a reader would.
fn check_arguments(filter: &mut Map<String, Value>, thread: &'static str) -> Result<(), CompileError> {
    let mut has_arguments = BTreeMap::new();
    for rule in rules_mut(filter, thread)? {
        let has = rule.get("args").is_some_and(|args| !args.is_null());
        let Some(Value::String(syscall)) = rule.get("syscall") else { continue };
        if *has_arguments.entry(syscall.clone()).or_insert(has) != has {
            return Err(CompileError::Mixed { thread, syscall: syscall.clone() });
        }
    }
    Ok(())
}

fn translate(thread: &'static str, filter: &Map<String, Value>) -> Result<Vec<sock_filter>, CompileError> {
    let text = json!({ thread: filter }).to_string();
    let programs = compile_from_json(text.as_bytes(), TargetArch::x86_64);
    let mut programs = programs.map_err(|source| CompileError::Compile { thread, source })?;
    programs.remove(thread).map(optimise).ok_or(CompileError::Missing(thread))
}

fn bytes(instruction: &sock_filter) -> [u8; 8] {
    let [code_low, code_high] = instruction.code.to_le_bytes();
    let [k0, k1, k2, k3] = instruction.k.to_le_bytes();
    [code_low, code_high, instruction.jt, instruction.jf, k0, k1, k2, k3]
}
