#![no_main]
//! To come.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|_data: &[u8]| {});
