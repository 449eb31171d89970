//! The layout of a filter file. Serves the reader, the compiler and the build script, which includes this file.
//!
//! | bytes | what, little-endian |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 4 | [`VERSION`] |
//! | 4 | the architecture as the kernel numbers it (`AUDIT_ARCH_*`, linux/audit.h) |
//! | 4 for each of [`THREADS`] | instructions of its program |
//! | 8 for each instruction | the programs, one behind the other: `struct sock_filter` (linux/filter.h) |

/// What a filter file begins with.
pub const MAGIC: [u8; 8] = *b"KNDLSECC";

/// The version of this layout.
pub const VERSION: u32 = 2;

/// The kinds of thread, in the order of their programs.
pub const THREADS: [&str; 5] = ["vmm", "api", "vcpu", "io", "vsock"];

/// Where the header has the lengths of the programs.
pub const COUNTS_AT: usize = 16;

/// Bytes before the first program.
pub const HEADER_BYTES: usize = COUNTS_AT + 4 * THREADS.len();

/// Bytes of an instruction.
pub const INSTRUCTION_BYTES: usize = 8;

/// Most instructions of a program (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// `AUDIT_ARCH_X86_64`.
pub const ARCH_X86_64: u32 = 0xc000_003e;
