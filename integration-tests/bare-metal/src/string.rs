//! What compiled Rust expects of a C library.

core::arch::global_asm!(
    ".section .text.string, \"ax\"",
    ".global memcpy",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".global memset",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    // No bytes are equal: the comparison with itself sets ZF for them.
    ".global bcmp",
    "bcmp:",
    "mov rcx, rdx",
    "cmp rcx, rcx",
    "repe cmpsb",
    "setne al",
    "movzx eax, al",
    "ret",
);
