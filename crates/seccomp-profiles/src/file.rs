//! Filter files that somebody else made: nothing of them is trusted.

use thiserror::Error;

use crate::format::{
    ARCH_X86_64, COUNTS_AT, HEADER_BYTES, INSTRUCTION_BYTES, INSTRUCTIONS_MAX, MAGIC, THREADS, VERSION,
};
use crate::program::{self, ProgramError};

/// Most bytes of a filter file: who reads one need not read more.
pub const FILE_MAX: usize = HEADER_BYTES + THREADS.len() * INSTRUCTIONS_MAX * INSTRUCTION_BYTES;

/// Why a filter file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FileError {
    /// It does not begin as a filter file does.
    #[error("this is no filter file: `vmm seccomp compile` makes one out of JSON")]
    Magic,
    /// It is of another version.
    #[error("a filter file of version {0}, where version {VERSION} is understood")]
    Version(u32),
    /// It is for another architecture.
    #[error("a filter file for another architecture ({0:#010x})")]
    Architecture(u32),
    /// It is shorter or longer than it says.
    #[error("the filter file has {found} bytes, where it says {said}")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        said: u64,
    },
    /// The kernel would not take a program.
    #[error("the program for the {thread} thread")]
    Program {
        /// The kind of thread.
        thread: &'static str,
        /// What is wrong.
        #[source]
        source: ProgramError,
    },
}

/// Checks that `file` is a filter file whose programs the kernel takes.
///
/// # Errors
///
/// The first thing that is wrong.
pub(crate) fn check(file: &[u8]) -> Result<(), FileError> {
    if file.first_chunk() != Some(&MAGIC) {
        return Err(FileError::Magic);
    }
    let found = file.len();
    let too_short = FileError::Length { found, said: HEADER_BYTES as u64 };
    // Another version may have a shorter header.
    if found < COUNTS_AT {
        return Err(too_short);
    }
    match word(file, 8) {
        VERSION => {}
        version => return Err(FileError::Version(version)),
    }
    match word(file, 12) {
        ARCH_X86_64 => {}
        arch => return Err(FileError::Architecture(arch)),
    }
    if found < HEADER_BYTES {
        return Err(too_short);
    }
    let said = counts(file)
        .map(|count| u64::from(count).saturating_mul(INSTRUCTION_BYTES as u64))
        .fold(HEADER_BYTES as u64, u64::saturating_add);
    if u64::try_from(found) != Ok(said) {
        return Err(FileError::Length { found, said });
    }
    for (index, thread) in THREADS.into_iter().enumerate() {
        program::check(program(file, index)).map_err(|source| FileError::Program { thread, source })?;
    }
    Ok(())
}

/// The program at `index` of a file that was checked; of another one, none.
pub(crate) fn program(file: &[u8], index: usize) -> &[u8] {
    let bytes = |count: u32| (count as usize).saturating_mul(INSTRUCTION_BYTES);
    let start = counts(file).take(index).map(bytes).fold(HEADER_BYTES, usize::saturating_add);
    let len = counts(file).nth(index).map_or(0, bytes);
    file.get(start..).and_then(|rest| rest.get(..len)).unwrap_or_default()
}

/// Instructions of each program.
fn counts(file: &[u8]) -> impl Iterator<Item = u32> {
    let header = file.get(COUNTS_AT..HEADER_BYTES).unwrap_or_default();
    header.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The number at `offset`, 0 where there is none.
fn word(file: &[u8], offset: usize) -> u32 {
    let bytes = file.get(offset..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
