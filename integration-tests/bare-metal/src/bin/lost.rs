//! Jumps to where there is no memory with its first two instructions, in ring 0: KVM has no instruction to go on with.
#![cfg_attr(panic = "abort", no_std)]
#![no_main]

core::arch::global_asm!(
    ".section .text.start, \"ax\"",
    ".global start",
    "start:",
    "mov eax, {nowhere}",
    "jmp rax",
    // Below the first GiB, which the loader maps, and beyond what a small guest has.
    nowhere = const 0x3000_0000,
);

#[cfg(panic = "abort")]
#[panic_handler]
fn unreachable(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
