#![no_main]
//! A filter file is the fuzzer's bytes. What is taken for one has a program for every kind of thread, and they make up the
//! file.

use kindling_seccomp_profiles::{FILE_MAX, Filters, Thread};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(filters) = Filters::read(data) else { return };
    let threads = [Thread::Vmm, Thread::Api, Thread::Vcpu, Thread::Io, Thread::Vsock];
    let programs = threads.map(|thread| filters.program(thread));
    let joined: Vec<u8> = programs.iter().flat_map(|program| program.unwrap_or_default()).copied().collect();
    assert!(data.ends_with(&joined) && data.len() <= FILE_MAX);
    for program in programs {
        assert!(program.is_some_and(|program| !program.is_empty() && program.len().is_multiple_of(8)));
    }
});
