//! The embedded filters, filter files and what makes them.

#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod common;

use common::{THREADS, bind, in_child, instruction, texts};
use kindling_seccomp_profiles::{Arguments, FileError, Filters, Level, ProgramError, Thread, compile};
use libc::{BPF_ABS, BPF_ALU, BPF_DIV, BPF_JA, BPF_JMP, BPF_K, BPF_LD, BPF_MEM, BPF_RET, BPF_RSH, BPF_W};
use proptest::prelude::*;
use serde_json::{Value, json};

fn compiled(texts: &[String], arguments: Arguments) -> Result<Vec<u8>, String> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    compile(&texts, arguments).map_err(|error| error.to_string())
}

fn good() -> Vec<u8> {
    compiled(&texts(), Arguments::Checked).unwrap()
}

#[test]
fn the_embedded_filters_are_those_of_the_profiles() {
    for (level, arguments) in [(Level::Calls, Arguments::Ignored), (Level::Arguments, Arguments::Checked)] {
        let file = compiled(&texts(), arguments).unwrap();
        let (read, embedded) = (Filters::read(&file).unwrap(), Filters::embedded(level));
        for (thread, name) in THREADS {
            let program = embedded.program(thread).unwrap();
            assert!(read.program(thread) == Some(program) && program.len() > 200, "{name}");
        }
    }
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let good = good();
    for len in 0..good.len() {
        let expected = if len < 8 { FileError::Magic } else { FileError::Length { found: len, said: 0 } };
        match (Filters::read(&good[..len]).unwrap_err(), expected) {
            (FileError::Length { found, said }, FileError::Length { .. }) => {
                assert!(found == len && said > len as u64);
            }
            (error, expected) => assert_eq!(error, expected),
        }
    }
    let longer = [good.as_slice(), &[0]].concat();
    let error = Filters::read(&longer).unwrap_err();
    assert_eq!(error, FileError::Length { found: longer.len(), said: good.len() as u64 });
}

#[test]
fn each_field_of_the_header_is_checked() {
    let with = |offset: usize, value: u32| {
        let mut file = good();
        file[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        Filters::read(&file).unwrap_err()
    };
    assert_eq!(with(0, 0), FileError::Magic);
    assert_eq!(with(8, 1), FileError::Version(1));
    assert_eq!(with(12, 0xc000_00b7), FileError::Architecture(0xc000_00b7));
    assert!(matches!(with(16, u32::MAX), FileError::Length { .. }));
    assert!(matches!(with(28, 0), FileError::Length { .. }));
}

/// A file with this program for every kind of thread.
fn file(program: &[[u8; 8]]) -> Vec<u8> {
    let mut file = [&b"KNDLSECC"[..], &2_u32.to_le_bytes(), &0xc000_003e_u32.to_le_bytes()].concat();
    THREADS.iter().for_each(|_| file.extend((program.len() as u32).to_le_bytes()));
    THREADS.iter().for_each(|_| file.extend(program.as_flattened()));
    file
}

fn refused(program: &[[u8; 8]]) -> ProgramError {
    match Filters::read(&file(program)).unwrap_err() {
        FileError::Program { thread: "vmm", source } => source,
        other => panic!("{other:?}"),
    }
}

fn allow() -> [u8; 8] {
    instruction(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW)
}

#[test]
fn programs_that_the_kernel_refuses_are_refused_with_the_reason() {
    let then_allow = |code, jt, jf, k| refused(&[instruction(code, jt, jf, k), allow()]);
    let operand = |k| ProgramError::Operand { index: 0, k };
    assert_eq!(refused(&[]), ProgramError::Length(0));
    assert_eq!(refused(&vec![allow(); 4097]), ProgramError::Length(4097));
    assert_eq!(then_allow(0xffff, 0, 0, 0), ProgramError::Code { index: 0, code: 0xffff });
    // Half a word of the system call.
    assert!(matches!(then_allow(BPF_LD | libc::BPF_H | BPF_ABS, 0, 0, 0), ProgramError::Code { .. }));
    assert_eq!(then_allow(BPF_LD | BPF_W | BPF_ABS, 0, 0, 64), operand(64));
    assert_eq!(then_allow(BPF_LD | BPF_W | BPF_ABS, 0, 0, 2), operand(2));
    assert_eq!(then_allow(BPF_ALU | BPF_DIV | BPF_K, 0, 0, 0), operand(0));
    assert_eq!(then_allow(BPF_ALU | BPF_RSH | BPF_K, 0, 0, 32), operand(32));
    assert_eq!(then_allow(BPF_LD | BPF_MEM, 0, 0, 16), operand(16));
    assert_eq!(then_allow(BPF_LD | BPF_MEM, 0, 0, 3), ProgramError::Unwritten { index: 0 });
    assert_eq!(then_allow(BPF_JMP | BPF_JA, 0, 0, 1), ProgramError::Jump { index: 0 });
    assert_eq!(then_allow(BPF_JMP | BPF_JA, 0, 0, u32::MAX), ProgramError::Jump { index: 0 });
    assert_eq!(then_allow(BPF_JMP | libc::BPF_JEQ | BPF_K, 0, 1, 0), ProgramError::Jump { index: 0 });
    assert_eq!(refused(&[allow(), instruction(BPF_LD | libc::BPF_IMM, 0, 0, 0)]), ProgramError::End);
    assert!(Filters::read(&file(&[allow()])).is_ok());
}

/// Instructions of which a filter may have many.
fn any_instruction() -> impl Strategy<Value = [u8; 8]> {
    let code = prop_oneof![8 => 0_u32..=0xb7, 1 => any::<u16>().prop_map(u32::from)];
    let k = prop_oneof![4 => 0_u32..20, 2 => 0_u32..70, 1 => any::<u32>()];
    (code, 0_u8..4, 0_u8..4, k).prop_map(|(code, jt, jf, k)| instruction(code, jt, jf, k))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Hundreds of programs go to the kernel in one child. Each allows everything, with its first instruction.
    #[test]
    fn what_the_kernel_takes_is_what_is_read(
        programs in prop::collection::vec(prop::collection::vec(any_instruction(), 0..6), 200)
    ) {
        let programs: Vec<Vec<[u8; 8]>> = programs
            .into_iter()
            .map(|mut program| {
                program.insert(0, allow());
                // Mostly whole programs: those that do not end in a return are all the same.
                if program.len() != 3 {
                    program.push(allow());
                }
                program
            })
            .collect();
        let (taken, status) = in_child(|report| {
            for program in &programs {
                let taken = u8::from(bind(program));
                // SAFETY: writes a byte that lives across the call.
                unsafe { libc::write(report, (&raw const taken).cast(), 1) };
            }
        });
        prop_assert_eq!(status.code(), Some(0));
        let mut count = 0;
        for (program, taken) in programs.iter().zip(&taken) {
            let read = Filters::read(&file(program));
            prop_assert_eq!(read.is_ok(), *taken == 1, "{:x?}: {:?}", program, read.err());
            count += u32::from(*taken);
        }
        prop_assert!(taken.len() == programs.len() && count > 3, "{} taken", count);
    }
}

/// The filters that there must be in one text, each with this filter.
fn all(filter: &Value) -> Value {
    json!({ "vmm": filter, "api": filter, "vcpu": filter, "io": filter })
}

fn minimal() -> Value {
    json!({ "mismatch_action": "trap", "match_action": "allow", "filter": [{ "syscall": "read" }] })
}

#[test]
fn what_is_wrong_with_the_json_is_said() {
    let fault = |texts: &[Value]| {
        let texts: Vec<String> = texts.iter().map(Value::to_string).collect();
        compiled(&texts, Arguments::Checked).unwrap_err()
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut all = all(&minimal());
        change(&mut all);
        fault(&[all])
    };
    let argument = json!({ "index": 0, "type": "dword", "op": "eq", "val": 1 });
    assert_eq!(compiled(&["{".to_owned()], Arguments::Checked).unwrap_err(), "not JSON");
    assert_eq!(fault(&[json!([])]), "a text must be an object");
    assert_eq!(fault(&[json!({ "vmm": minimal() })]), "there is no filter for the api thread");
    assert_eq!(fault(&[all(&minimal()), json!({ "io": minimal() })]), "there are two filters called \"io\"");
    assert!(fault(&[json!({ "main": minimal() })]).starts_with("\"main\" is no kind of thread"));
    assert_eq!(changed(&|all| all["io"] = json!(1)), "io must be an object");
    assert_eq!(changed(&|all| all["io"]["filter"] = json!([1])), "io.filter must be an array of objects");
    let cannot_compile = "cannot compile the filter for the io thread";
    assert_eq!(changed(&|all| all["io"]["filter"] = json!([{ "syscall": "fly" }])), cannot_compile);
    assert_eq!(changed(&|all| all["io"]["comment"] = json!("what is this?")), cannot_compile);
    let mixed = json!([{ "syscall": "read" }, { "syscall": "read", "args": [argument] }]);
    assert_eq!(
        changed(&|all| all["io"]["filter"] = mixed.clone()),
        "the filter for the io thread has rules with and without arguments for read"
    );
    let every = json!({ "mismatch_action": "log", "match_action": "allow", "filter": [] });
    assert_eq!(
        changed(&|all| all["every"] = every.clone()),
        "vmm must be like that of `every` but for its rules"
    );
}

#[test]
fn rules_for_every_thread_are_added_and_arguments_can_be_ignored() {
    let close =
        json!({ "syscall": "close", "args": [{ "index": 0, "type": "dword", "op": "eq", "val": 1 }] });
    let mut merged = all(&minimal());
    merged["every"] = json!({ "mismatch_action": "trap", "match_action": "allow", "filter": [close] });
    let mut both = minimal();
    both["filter"] = json!([{ "syscall": "read" }, close]);
    let mut without_arguments = minimal();
    without_arguments["filter"] = json!([{ "syscall": "read" }, { "syscall": "close" }]);
    for (arguments, equal) in [(Arguments::Checked, both), (Arguments::Ignored, without_arguments)] {
        let expected = compiled(&[all(&equal).to_string()], Arguments::Checked).unwrap();
        assert!(compiled(&[merged.to_string()], arguments).unwrap() == expected, "{arguments:?}");
    }
}

#[test]
fn the_sockets_devices_thread_gets_the_filter_io_where_it_has_none() {
    let program = |texts: &[Value], thread| {
        let texts: Vec<String> = texts.iter().map(Value::to_string).collect();
        let filters = Filters::read(&compiled(&texts, Arguments::Checked).unwrap()).unwrap();
        filters.program(thread).unwrap().to_owned()
    };
    let mut four = all(&minimal());
    four["io"]["filter"] = json!([{ "syscall": "connect" }]);
    let texts = [four, json!({ "vsock": minimal() })];
    let [read, connect] = [Thread::Vmm, Thread::Io].map(|thread| program(&texts[..1], thread));
    assert!(read != connect);
    assert!(program(&texts[..1], Thread::Vsock) == connect);
    assert!(program(&texts, Thread::Vsock) == read && program(&texts, Thread::Io) == connect);
}

#[test]
fn a_filter_of_ones_own_binds_a_thread() {
    let program = [
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        instruction(BPF_JMP | libc::BPF_JEQ | BPF_K, 0, 1, libc::SYS_getppid as u32),
        instruction(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | 7),
        allow(),
    ];
    let filters = Filters::read(&file(&program)).unwrap();
    let (_, status) = in_child(|_| {
        if filters.install(Thread::Vcpu).is_ok() {
            // SAFETY: the calls take no pointers; the last one ends the child.
            unsafe {
                let result = libc::syscall(libc::SYS_getppid);
                let error = *libc::__errno_location();
                libc::_exit(if result == -1 { error } else { 0 });
            }
        }
    });
    assert_eq!(status.code(), Some(7));
}
