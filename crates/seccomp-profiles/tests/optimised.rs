//! Programs are not as seccompiler makes them: they are shorter, and say the same of every system call.

#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod common;

use std::collections::BTreeSet;

use common::{Profile, THREADS, text};
use kindling_seccomp_profiles::{Arguments, Filters, Level, Thread, compile};
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
};
use proptest::prelude::*;
use seccompiler::{TargetArch, compile_from_json};
use serde_json::{Value, json};

/// What a program says of a system call, whose data are `struct seccomp_data` as eight-byte words; and in how many steps.
fn run(program: &[[u8; 8]], data: &[u64; 8]) -> (u32, usize) {
    const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
    const MASK: u32 = BPF_ALU | BPF_AND | BPF_K;
    const RETURN: u32 = BPF_RET | BPF_K;
    const JUMP: u32 = BPF_JMP | BPF_JA;
    const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    const ABOVE: u32 = BPF_JMP | BPF_JGT | BPF_K;
    const AT_LEAST: u32 = BPF_JMP | BPF_JGE | BPF_K;
    let (mut at, mut value, mut steps) = (0, 0, 0);
    loop {
        let [c0, c1, jt, jf, k @ ..] = program[at];
        let k = u32::from_le_bytes(k);
        let branch = |yes: bool| usize::from(if yes { jt } else { jf });
        steps += 1;
        at += 1;
        match u32::from(u16::from_le_bytes([c0, c1])) {
            LOAD => value = (data[k as usize / 8] >> (8 * (k % 8))) as u32,
            MASK => value &= k,
            RETURN => return (k, steps),
            JUMP => at += k as usize,
            EQUAL => at += branch(value == k),
            ABOVE => at += branch(value > k),
            AT_LEAST => at += branch(value >= k),
            other => panic!("{other:#x}"),
        }
    }
}

fn data(number: u32, arch: u32, arguments: [u64; 6]) -> [u64; 8] {
    let [a, b, c, d, e, f] = arguments;
    [u64::from(number) | u64::from(arch) << 32, 0, a, b, c, d, e, f]
}

const ARCHES: [u32; 2] = [0xc000_003e, 0x4000_0003];

/// What seccompiler makes of a filter.
fn original(thread: &str, filter: &Value) -> Vec<[u8; 8]> {
    let text = json!({ thread: filter }).to_string();
    let programs = compile_from_json(text.as_bytes(), TargetArch::x86_64).unwrap();
    programs[thread]
        .iter()
        .map(|each| common::instruction(each.code.into(), each.jt, each.jf, each.k))
        .collect()
}

/// The values that a filter asks for, and their neighbours.
fn interesting(program: &[[u8; 8]]) -> BTreeSet<u32> {
    let operands = program.iter().map(|[.., a, b, c, d]| u32::from_le_bytes([*a, *b, *c, *d]));
    operands.flat_map(|k| [k.wrapping_sub(1), k, k.wrapping_add(1)]).chain([0, u32::MAX]).collect()
}

#[test]
fn the_profiles_are_found_in_a_third_of_the_steps() {
    for (thread, name) in THREADS {
        let mut filter: Value = serde_json::from_str::<Value>(&text(name)).unwrap()[name].take();
        let mut every: Value = serde_json::from_str::<Value>(&text("every")).unwrap()["every"].take();
        filter["filter"].as_array_mut().unwrap().append(every["filter"].as_array_mut().unwrap());
        let original = original(name, &filter);
        let filters = Filters::embedded(Level::Arguments);
        let shorter = filters.program(thread).unwrap().as_chunks().0;
        assert!(shorter.len() * 2 < original.len(), "{name}: {} of {}", shorter.len(), original.len());
        let mut steps = [0; 2];
        for number in (0..500).chain([u32::MAX]) {
            for argument in interesting(&original) {
                // The one upper half that a rule asks for, and another.
                for argument in [u64::from(argument), u64::from(argument) | 1 << 40] {
                    let data = data(number, ARCHES[0], [argument; 6]);
                    let (results, counts): (Vec<_>, Vec<_>) =
                        [original.as_slice(), shorter].map(|program| run(program, &data)).into_iter().unzip();
                    assert_eq!(results[0], results[1], "{name}: {number} {argument:#x}");
                    steps[0] += counts[0];
                    steps[1] += counts[1];
                }
            }
        }
        assert!(steps[1] * 3 < steps[0], "{name}: {steps:?}");
        assert!(Profile::read(name).0.len() > 20);
    }
}

/// A rule for one of a few system calls, with few values, so that rules meet.
fn rule() -> impl Strategy<Value = Value> {
    let op = prop_oneof![
        prop::sample::select(vec!["eq", "ne", "le", "lt", "ge", "gt"]).prop_map(Value::from),
        (0_u64..8).prop_map(|mask| json!({ "masked_eq": mask })),
    ];
    let value = prop_oneof![3 => 0_u64..6, 1 => any::<u64>()];
    let condition = (0..3_u8, any::<bool>(), op, value).prop_map(|(index, is_long, op, value)| {
        json!({ "index": index, "type": if is_long { "qword" } else { "dword" }, "op": op, "val": value })
    });
    let calls = vec!["read", "write", "ioctl", "fcntl", "futex", "openat", "statx", "clone3"];
    (prop::sample::select(calls), prop::collection::vec(condition, 1..4))
        .prop_map(|(call, conditions)| json!({ "syscall": call, "args": conditions }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn programs_say_what_seccompilers_say(
        rules in prop::collection::vec(rule(), 0..30),
        others in prop::collection::vec(prop::sample::select(vec!["close", "brk", "mmap", "poll"]), 0..3),
        calls in prop::collection::vec((0_usize..1000, 0_usize..1000, 0_usize..1000, 0_usize..1000, 0_usize..1000), 200),
    ) {
        let others = others.into_iter().map(|call| json!({ "syscall": call }));
        let rules: Vec<Value> = rules.into_iter().chain(others).collect();
        let filter = json!({ "mismatch_action": "trap", "match_action": "allow", "filter": rules });
        let all = json!({ "vmm": filter, "api": filter, "vcpu": filter, "io": filter }).to_string();
        let filters = Filters::read(&compile(&[&all], Arguments::Checked).unwrap()).unwrap();
        let shorter = filters.program(Thread::Io).unwrap().as_chunks().0;
        let original = original("io", &filter);
        prop_assert!(shorter.len() <= original.len());
        let values: Vec<u32> = interesting(&original).into_iter().collect();
        let numbers: Vec<u32> = (0..20).chain([72, 202, 257, 332, 435]).collect();
        let value = |index: usize| values[index % values.len()];
        for (number, a, b, c, d) in calls {
            let arguments = [u64::from(value(a)), u64::from(value(b)) | u64::from(value(d)) << 32, value(c).into(), 0, 0, 0];
            let data = data(numbers[number % numbers.len()], ARCHES[usize::from(d % 50 == 0)], arguments);
            prop_assert_eq!(run(shorter, &data).0, run(&original, &data).0, "{:x?}", data);
        }
    }
}
