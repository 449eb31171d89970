//! Filters that report the use of a rule: a program for each kind of thread that asks one rule after the other.

use std::collections::BTreeSet;

use kindling_integration_tests::usage::{Condition, EVERY, Rule};
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRACE, SECCOMP_RET_TRAP,
};

/// The version of the layout of filter files.
const VERSION: u32 = 2;

/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;

/// Where `struct seccomp_data` has the number of the call, the architecture and the arguments.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// The kinds of thread, in the order of their programs.
const THREADS: [&str; 5] = ["vmm", "api", "vcpu", "io", "vsock"];

const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
const IF_EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const IF_GREATER: u32 = BPF_JMP | BPF_JGT | BPF_K;

/// An instruction, or a jump whose way is not known yet: to the next rule if the condition does not hold (or does).
#[derive(Clone, Copy)]
enum Step {
    Do(u32, u32),
    Unless(u32),
    IfGreater(u32),
}

/// A filter file (`crates/seccomp-profiles/src/format.rs`) by which a rule that is not in `used` is reported by its place in
/// `rules`.
pub fn filters(rules: &[Rule], used: &BTreeSet<usize>) -> Vec<u8> {
    file(&THREADS.map(|thread| program(rules, used, thread)))
}

/// The filter file that has what `first` allows go through `second`. None if the first is no such file.
pub fn behind(first: &[u8], second: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 16;
    let programs = |file: &[u8]| -> Option<Vec<Vec<[u8; 8]>>> {
        let (header, rest) = file.split_at_checked(HEADER + 4 * THREADS.len())?;
        let mut instructions = rest.as_chunks().0.iter().copied();
        let counts = header.get(HEADER..)?.as_chunks().0.iter().map(|count| u32::from_le_bytes(*count));
        Some(counts.map(|count| instructions.by_ref().take(count as usize).collect()).collect())
    };
    let mut joined = programs(first)?;
    for (program, next) in joined.iter_mut().zip(programs(second)?) {
        let length = program.len();
        for (index, one) in program.iter_mut().enumerate() {
            if *one == instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW) {
                *one = instruction(BPF_JMP | BPF_JA, 0, 0, (length - index - 1) as u32);
            }
        }
        program.extend(next);
    }
    Some(file(&joined))
}

/// Programs for all kinds of thread, as a file.
fn file(programs: &[Vec<[u8; 8]>]) -> Vec<u8> {
    let header = [VERSION, ARCH].into_iter().chain(programs.iter().map(|program| program.len() as u32));
    let header = b"KNDLSECC".iter().copied().chain(header.flat_map(u32::to_le_bytes));
    header.chain(programs.iter().flatten().flatten().copied()).collect()
}

fn program(rules: &[Rule], used: &BTreeSet<usize>, thread: &str) -> Vec<[u8; 8]> {
    let end = |action| instruction(BPF_RET | BPF_K, 0, 0, action);
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCH_AT),
        instruction(IF_EQUAL, 1, 0, ARCH),
        end(SECCOMP_RET_KILL_PROCESS),
    ];
    let theirs = |(_, rule): &(usize, &Rule)| rule.filter == thread || rule.filter == EVERY;
    for (place, rule) in rules.iter().enumerate().filter(theirs) {
        let steps = steps(rule);
        for (index, step) in steps.iter().enumerate() {
            // What is left of the rule, and its end.
            let next = (steps.len() - index) as u8;
            program.push(match *step {
                Step::Do(code, value) => instruction(code, 0, 0, value),
                Step::Unless(value) => instruction(IF_EQUAL, 0, next, value),
                Step::IfGreater(value) => instruction(IF_GREATER, next, 0, value),
            });
        }
        program.push(end(match used.contains(&place) {
            true => SECCOMP_RET_ALLOW,
            false => SECCOMP_RET_TRACE | place as u32,
        }));
    }
    program.push(end(SECCOMP_RET_TRAP));
    program
}

fn steps(rule: &Rule) -> Vec<Step> {
    let mut steps = vec![Step::Do(LOAD, NUMBER_AT), Step::Unless(rule.number)];
    for Condition { index, mask, is_at_most, value } in &rule.conditions {
        // Both halves of the argument, as far as they are looked at.
        for half in [0, 1] {
            let word = |number: u64| (number >> (32 * half)) as u32;
            if word(*mask) == 0 {
                continue;
            }
            steps.push(Step::Do(LOAD, ARGUMENTS_AT + 8 * index + 4 * half));
            if word(*mask) != u32::MAX {
                steps.push(Step::Do(BPF_ALU | BPF_AND | BPF_K, word(*mask)));
            }
            steps.push(if *is_at_most { Step::IfGreater(word(*value)) } else { Step::Unless(word(*value)) });
        }
    }
    steps
}

fn instruction(code: u32, jump_if: u8, jump_unless: u8, operand: u32) -> [u8; 8] {
    let ([code_low, code_high], [a, b, c, d]) = ((code as u16).to_le_bytes(), operand.to_le_bytes());
    [code_low, code_high, jump_if, jump_unless, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use kindling_integration_tests::usage;
    use kindling_seccomp_profiles::Filters;

    use super::*;

    #[test]
    fn filters_are_such_that_vmm_takes_them() {
        let rules = usage::rules().unwrap();
        for used in [BTreeSet::new(), (0..rules.len()).collect()] {
            let file = filters(&rules, &used);
            Filters::read(&file).unwrap();
            Filters::read(&behind(&file, &file).unwrap()).unwrap();
        }
    }
}
