//! One program: what the kernel would say of it, and how a thread is bound to it.
//!
//! The rules are those of seccomp(2) in the kernel: `bpf_check_classic` and `check_load_and_stores` of net/core/filter.c,
//! `seccomp_check_filter` of kernel/seccomp.c.

use std::io;

use libc::{
    BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_DIV, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP,
    BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MUL, BPF_NEG, BPF_OR, BPF_RET,
    BPF_RSH, BPF_ST, BPF_STX, BPF_SUB, BPF_TAX, BPF_TXA, BPF_W, BPF_X, BPF_XOR,
};
use thiserror::Error;

use crate::format::{INSTRUCTION_BYTES, INSTRUCTIONS_MAX};

/// Bytes of `struct seccomp_data`, which a program looks at.
const DATA_BYTES: u32 = 64;
/// Words of memory that a program has (`BPF_MEMWORDS`).
const WORDS: u32 = 16;

/// Why the kernel would not take a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// A program has 1 to 4096 instructions.
    #[error("{0} instructions, where there must be 1 to {INSTRUCTIONS_MAX}")]
    Length(usize),
    /// There is no such instruction in a seccomp filter.
    #[error("instruction {index} has the code {code:#06x}, which no filter may have")]
    Code {
        /// Its position, from 0.
        index: usize,
        /// Its code.
        code: u16,
    },
    /// An operand is out of its range.
    #[error("instruction {index} has an operand out of range: {k:#x}")]
    Operand {
        /// Its position, from 0.
        index: usize,
        /// The operand.
        k: u32,
    },
    /// A jump leads out of the program.
    #[error("instruction {index} jumps out of the program")]
    Jump {
        /// Its position, from 0.
        index: usize,
    },
    /// A word of memory is read that need not have been written.
    #[error("instruction {index} reads a word of memory that may not have been written")]
    Unwritten {
        /// Its position, from 0.
        index: usize,
    },
    /// The last instruction is not one that returns.
    #[error("the last instruction does not return")]
    End,
}

#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

fn instruction(bytes: &[u8; INSTRUCTION_BYTES]) -> Instruction {
    let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes;
    Instruction { code: u16::from_le_bytes([c0, c1]), jt, jf, k: u32::from_le_bytes([k0, k1, k2, k3]) }
}

/// What an instruction is, as far as the check is concerned.
enum Kind {
    /// Nothing can be wrong with it.
    Plain,
    /// Reads four bytes of the system call.
    Data,
    Divide,
    Shift,
    ReadWord,
    WriteWord,
    Jump,
    Branch,
    Return,
}

const fn code(parts: &[u32]) -> u16 {
    let (mut sum, mut rest) = (0, parts);
    while let [first, others @ ..] = rest {
        sum |= *first as u16;
        rest = others;
    }
    sum
}

fn kind(of: u16) -> Option<Kind> {
    const DATA: u16 = code(&[BPF_LD, BPF_W, BPF_ABS]);
    const LD_LEN: u16 = code(&[BPF_LD, BPF_W, BPF_LEN]);
    const LDX_LEN: u16 = code(&[BPF_LDX, BPF_W, BPF_LEN]);
    const LD_IMM: u16 = code(&[BPF_LD, BPF_IMM]);
    const LDX_IMM: u16 = code(&[BPF_LDX, BPF_IMM]);
    const LD_MEM: u16 = code(&[BPF_LD, BPF_MEM]);
    const LDX_MEM: u16 = code(&[BPF_LDX, BPF_MEM]);
    const ST: u16 = code(&[BPF_ST]);
    const STX: u16 = code(&[BPF_STX]);
    const TAX: u16 = code(&[BPF_MISC, BPF_TAX]);
    const TXA: u16 = code(&[BPF_MISC, BPF_TXA]);
    const RET_K: u16 = code(&[BPF_RET, BPF_K]);
    const RET_A: u16 = code(&[BPF_RET, BPF_A]);
    const JA: u16 = code(&[BPF_JMP, BPF_JA]);
    const NEG: u16 = code(&[BPF_ALU, BPF_NEG]);
    match of {
        DATA => Some(Kind::Data),
        LD_LEN | LDX_LEN | LD_IMM | LDX_IMM | TAX | TXA | NEG => Some(Kind::Plain),
        LD_MEM | LDX_MEM => Some(Kind::ReadWord),
        ST | STX => Some(Kind::WriteWord),
        RET_K | RET_A => Some(Kind::Return),
        JA => Some(Kind::Jump),
        _ => operation(of),
    }
}

/// Instructions with an operand that is a constant or the register X.
fn operation(code: u16) -> Option<Kind> {
    let code = u32::from(code);
    let is_constant = code & BPF_X == BPF_K;
    match (code & 0x7, code & !(0x7 | BPF_X)) {
        (BPF_ALU, BPF_ADD | BPF_SUB | BPF_MUL | BPF_AND | BPF_OR | BPF_XOR) => Some(Kind::Plain),
        (BPF_ALU, BPF_DIV) => Some(if is_constant { Kind::Divide } else { Kind::Plain }),
        (BPF_ALU, BPF_LSH | BPF_RSH) => Some(if is_constant { Kind::Shift } else { Kind::Plain }),
        (BPF_JMP, BPF_JEQ | BPF_JGT | BPF_JGE | BPF_JSET) => Some(Kind::Branch),
        _ => None,
    }
}

/// Checks a program as the kernel does.
///
/// # Errors
///
/// The first thing that the kernel would not take.
pub(crate) fn check(program: &[u8]) -> Result<(), ProgramError> {
    let (instructions, _) = program.as_chunks::<INSTRUCTION_BYTES>();
    let count = instructions.len();
    if !(1..=INSTRUCTIONS_MAX).contains(&count) {
        return Err(ProgramError::Length(count));
    }
    // For each instruction, the words that have been written on every way to it.
    let mut written = vec![u16::MAX; count];
    let mut words: u16 = 0;
    let mut last_returns = false;
    for (index, bytes) in instructions.iter().enumerate() {
        let Instruction { code, jt, jf, k } = instruction(bytes);
        let operand = ProgramError::Operand { index, k };
        words &= written.get(index).copied().unwrap_or_default();
        last_returns = false;
        let mut jump = |distance: u32, words: u16| {
            let target =
                index.checked_add(1).and_then(|next| next.checked_add(usize::try_from(distance).ok()?));
            match target.and_then(|target| written.get_mut(target)) {
                Some(at) => {
                    *at &= words;
                    Ok(())
                }
                None => Err(ProgramError::Jump { index }),
            }
        };
        match kind(code).ok_or(ProgramError::Code { index, code })? {
            Kind::Plain => {}
            Kind::Data if k >= DATA_BYTES || k & 3 != 0 => return Err(operand),
            Kind::Data => {}
            Kind::Divide if k == 0 => return Err(operand),
            Kind::Divide => {}
            Kind::Shift if k >= u32::BITS => return Err(operand),
            Kind::Shift => {}
            Kind::ReadWord | Kind::WriteWord if k >= WORDS => return Err(operand),
            Kind::ReadWord if words >> k & 1 == 0 => return Err(ProgramError::Unwritten { index }),
            Kind::ReadWord => {}
            Kind::WriteWord => words |= 1 << k,
            Kind::Jump => {
                jump(k, words)?;
                words = u16::MAX;
            }
            Kind::Branch => {
                jump(jt.into(), words)?;
                jump(jf.into(), words)?;
                words = u16::MAX;
            }
            Kind::Return => last_returns = true,
        }
    }
    if last_returns { Ok(()) } else { Err(ProgramError::End) }
}

/// Why a thread is not bound to a filter.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The thread could not give up what a set-user-id program would give it.
    #[error("cannot give up new privileges (PR_SET_NO_NEW_PRIVS)")]
    NoNewPrivileges(#[source] io::Error),
    /// The kernel did not take the filter.
    #[error("the kernel refuses the filter of system calls")]
    Refused(#[source] io::Error),
}

/// Binds the calling thread, and those that it starts, to `program`, for good.
pub(crate) fn install(program: &[u8]) -> Result<(), InstallError> {
    // SAFETY: the call takes numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(InstallError::NoNewPrivileges(io::Error::last_os_error()));
    }
    let (instructions, _) = program.as_chunks::<INSTRUCTION_BYTES>();
    let program = libc::sock_fprog {
        // A program that is too long for this is too long for the kernel, which refuses an empty one.
        len: u16::try_from(instructions.len()).unwrap_or_default(),
        // The kernel only reads from it, and minds no alignment.
        filter: instructions.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the structure says where that many instructions of 8 bytes are, and the call only reads them and it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result == 0 { Ok(()) } else { Err(InstallError::Refused(io::Error::last_os_error())) }
}
