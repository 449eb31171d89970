//! Resets the machine through the keyboard controller with its first two instructions: the guest of the start
//! benchmark.
#![cfg_attr(panic = "abort", no_std)]
#![no_main]

core::arch::global_asm!(
    ".section .text.start, \"ax\"",
    ".global start",
    "start:",
    "mov al, 0xfe",
    "out 0x64, al",
    "2: hlt",
    "jmp 2b",
);

#[cfg(panic = "abort")]
#[panic_handler]
fn unreachable(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
