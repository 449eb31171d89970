//! The example, run on the KVM of this machine with kernels of a few bytes.
//!
//! Needs /dev/kvm; where there is none, KINDLING_NO_KVM=1 skips what needs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests are outside them.

mod common;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::*;

/// Prints the string ESI points to and resets the machine; the same instructions in 32-bit and in 64-bit mode.
const PRINT_AND_RESET: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz reset
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xb0, 0xfe, // reset: mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];
/// mov esi, [rsi + boot_params.hdr.cmd_line_ptr]
const LINUX64_CMDLINE: &[u8] = &[0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00];
/// mov esi, [ebx + hvm_start_info.cmdline_paddr]
const PVH_CMDLINE: &[u8] = &[0x8b, 0x73, 0x18];

/// Runs the example with a kernel; `None` where there is no KVM and that is all right.
fn run_example(kernel: &[u8], cmdline: &str) -> Option<Output> {
    if std::env::var_os("KINDLING_NO_KVM").is_some() {
        eprintln!("KINDLING_NO_KVM is set: skipped");
        return None;
    }
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("cannot open /dev/kvm; set KINDLING_NO_KVM=1 to skip what needs it");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(kernel).unwrap();
    let test = std::env::current_exe().unwrap(); // TARGET/PROFILE/deps/example-HASH
    let example: PathBuf = test.ancestors().nth(2).unwrap().join("examples/serial_console");
    assert!(
        example.exists(),
        "{} is missing: cargo build -p kindling-boot --example serial_console",
        example.display()
    );
    Some(Command::new(example).arg(file.path()).arg(cmdline).output().unwrap())
}

#[track_caller]
fn assert_prints(output: &Output, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{stderr}");
}

#[test]
fn a_64_bit_kernel_prints_its_command_line_and_resets() {
    let code = [LINUX64_CMDLINE, PRINT_AND_RESET].concat();
    if let Some(output) = run_example(&elf(MIB, &[Segment::load(MIB, &code)]), "hello from long mode") {
        assert_prints(&output, "hello from long mode");
    }
}

#[test]
fn a_pvh_kernel_prints_its_command_line_and_resets() {
    let code = [PVH_CMDLINE, PRINT_AND_RESET].concat();
    let kernel = elf(0, &[Segment::load(MIB, &code), Segment::notes(&pvh_note(MIB), 4)]);
    if let Some(output) = run_example(&kernel, "hello from protected mode") {
        assert_prints(&output, "hello from protected mode");
    }
}

#[test]
fn a_bzimage_prints_its_command_line_and_resets() {
    let code = [LINUX64_CMDLINE, PRINT_AND_RESET].concat();
    if let Some(output) = run_example(&patch(bzimage(), 3 * 512 + 0x200, &code), "hello from a bzImage") {
        assert_prints(&output, "hello from a bzImage");
    }
}

#[test]
fn a_triple_fault_ends_the_run() {
    let ud2 = [0x0f, 0x0b];
    if let Some(output) = run_example(&elf(MIB, &[Segment::load(MIB, &ud2)]), "") {
        assert_prints(&output, "");
    }
}

#[test]
fn what_is_wrong_with_a_kernel_is_said_on_one_line() {
    if let Some(output) = run_example(b"\x1f\x8b\x08\0", "") {
        assert!(!output.status.success());
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "kernel: neither an ELF file nor a bzImage, but a file compressed by gzip: decompress it first\n"
        );
    }
}
