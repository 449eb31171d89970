//! The rules of the filters of system calls, as the profiles of `kindling-seccomp-profiles` have them, and the list of those
//! that a run of tests has used.

use std::collections::BTreeSet;

use kindling_seccomp_profiles::name;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// Names the test binary that `seccomp-usage` runs.
pub const TESTS_VARIABLE: &str = "KINDLING_SECCOMP_TESTS";

/// What the line with the used rules begins with.
pub const USED: &str = "used rules: ";

/// The filter whose rules belong to every kind of thread.
pub const EVERY: &str = "every";

/// More than there are system calls.
const NUMBERS: u32 = 1000;

const PROFILES: [&str; 6] = [
    include_str!("../../crates/seccomp-profiles/profiles/x86_64/every.json"),
    include_str!("../../crates/seccomp-profiles/profiles/x86_64/vmm.json"),
    include_str!("../../crates/seccomp-profiles/profiles/x86_64/api.json"),
    include_str!("../../crates/seccomp-profiles/profiles/x86_64/vcpu.json"),
    include_str!("../../crates/seccomp-profiles/profiles/x86_64/io.json"),
    include_str!("../../crates/seccomp-profiles/profiles/x86_64/vsock.json"),
];

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The filter that it is part of.
    pub filter: String,
    /// The number of the system call.
    pub number: u32,
    /// What has to hold for its arguments.
    pub conditions: Vec<Condition>,
    /// What it is, in words.
    pub text: String,
}

/// What has to hold for an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which one.
    pub index: u32,
    /// The bits that are looked at.
    pub mask: u64,
    /// The value is the greatest and not the only one.
    pub is_at_most: bool,
    /// The value.
    pub value: u64,
}

#[derive(Deserialize)]
struct Filter {
    filter: Vec<RuleText>,
}

#[derive(Deserialize)]
struct RuleText {
    syscall: String,
    comment: String,
    #[serde(default)]
    args: Vec<ConditionText>,
}

#[derive(Deserialize)]
struct ConditionText {
    index: u32,
    #[serde(rename = "type")]
    width: String,
    op: Value,
    val: u64,
    comment: String,
}

/// All rules, in the order of the profiles.
pub fn rules() -> Result<Vec<Rule>> {
    let bad = |what: &dyn std::fmt::Display| Error::Protocol(format!("the profiles: {what}"));
    let mut rules = Vec::new();
    for text in PROFILES {
        let filters: std::collections::BTreeMap<String, Filter> =
            serde_json::from_str(text).map_err(|error| bad(&error))?;
        for (filter, rule) in
            filters.iter().flat_map(|(name, filter)| filter.filter.iter().map(move |rule| (name, rule)))
        {
            let number = (0..NUMBERS).find(|number| name(*number) == Some(&rule.syscall));
            let number = number.ok_or_else(|| bad(&rule.syscall))?;
            let conditions: Option<Vec<_>> = rule.args.iter().map(condition).collect();
            let conditions = conditions.ok_or_else(|| bad(&format!("a condition of {}", rule.syscall)))?;
            let arguments: Vec<_> = rule.args.iter().map(|argument| argument.comment.as_str()).collect();
            let text = format!("{filter}: {}({}): {}", rule.syscall, arguments.join(", "), rule.comment);
            rules.push(Rule { filter: filter.clone(), number, conditions, text });
        }
    }
    Ok(rules)
}

fn condition(text: &ConditionText) -> Option<Condition> {
    let width = match text.width.as_str() {
        "dword" => u64::from(u32::MAX),
        "qword" => u64::MAX,
        _ => return None,
    };
    let (mask, is_at_most) = match &text.op {
        Value::String(op) if op == "eq" => (width, false),
        // Of half an argument only: of a whole one, the halves are not compared one by one.
        Value::String(op) if op == "le" && width == u64::from(u32::MAX) => (width, true),
        op => (width & op.get("masked_eq")?.as_u64()?, false),
    };
    Some(Condition { index: text.index, mask, is_at_most, value: text.val })
}

/// The rules that lines of output say have been used, by their place in [`rules`].
pub fn used(output: &str) -> BTreeSet<usize> {
    let lines = output.lines().filter_map(|line| line.split_once(USED)).map(|(_, numbers)| numbers);
    lines.flat_map(|numbers| numbers.split_whitespace().filter_map(|number| number.parse().ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_the_profiles() {
        let rules = rules().unwrap();
        let find = |start: &str| rules.iter().find(|rule| rule.text.starts_with(start)).unwrap();
        let run = find("vcpu: ioctl(KVM_RUN)");
        assert_eq!(i64::from(run.number), libc::SYS_ioctl);
        let expected = Condition { index: 1, mask: u32::MAX.into(), is_at_most: false, value: 0xae80 };
        assert_eq!(run.conditions, [expected]);
        assert!(find("every: read()").conditions.is_empty());
    }

    #[test]
    fn the_last_words_of_a_run_are_understood() {
        let output = "test a ... ok\r\nused rules: 1 22\r\nother\nused rules: 3\n";
        assert_eq!(used(output), BTreeSet::from([1, 3, 22]));
        assert_eq!(used("used rules: \n"), BTreeSet::new());
    }
}
