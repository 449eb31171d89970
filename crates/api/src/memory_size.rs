//! Guest memory sizes as people type them: `vmm run --memory 512M`.

use thiserror::Error;

use crate::machine_config::MEM_SIZE_MIB;

/// Why a memory size was refused. The text suits a command line that names the option itself.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum MemorySizeError {
    /// Not a number followed by a known unit.
    #[error("must be a whole number of MiB, or one with a unit of M, MiB, G, GiB, T or TiB, such as 512M")]
    Syntax,
    /// Outside [`MEM_SIZE_MIB`].
    #[error("must be between {} and {} MiB", MEM_SIZE_MIB.start(), MEM_SIZE_MIB.end())]
    Range,
}

/// Reads a memory size into MiB, the unit of [`MachineConfig::mem_size_mib`](crate::MachineConfig::mem_size_mib).
///
/// A plain number is in MiB. Units are binary and read without regard to case: `M` and `MiB`, `G` and `GiB`, `T` and
/// `TiB`. There is no `MB` or `GB`, which could mean either.
///
/// # Errors
///
/// If the text has another form, or the size is outside [`MEM_SIZE_MIB`].
pub fn parse_memory_size(text: &str) -> Result<u64, MemorySizeError> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let mib_per_unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mib" => 1,
        "g" | "gib" => 1 << 10,
        "t" | "tib" => 1 << 20,
        _ => return Err(MemorySizeError::Syntax),
    };
    if number.is_empty() {
        return Err(MemorySizeError::Syntax);
    }
    // Only digits are left, so that the one way to fail is a number too large.
    let number: u64 = number.parse().map_err(|_| MemorySizeError::Range)?;
    number.checked_mul(mib_per_unit).filter(|mib| MEM_SIZE_MIB.contains(mib)).ok_or(MemorySizeError::Range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_units_become_mib() {
        for (text, mib) in [
            ("1", 1),
            ("128", 128),
            ("0128", 128),
            ("128M", 128),
            ("128m", 128),
            ("512MiB", 512),
            ("1G", 1024),
            ("3gib", 3072),
            ("2T", 2 << 20),
            ("1TiB", 1 << 20),
            ("4096T", 1 << 32),
        ] {
            assert_eq!(parse_memory_size(text), Ok(mib), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for text in
            ["", "M", "1.5G", "-1", "+1", " 1", "1 G", "1MB", "1GB", "64K", "1P", "0x10", "1MM", "1é", "１"]
        {
            assert_eq!(parse_memory_size(text), Err(MemorySizeError::Syntax), "{text}");
        }
        for text in ["0", "0G", "4097T", "18446744073709551615T", "18446744073709551616"] {
            assert_eq!(parse_memory_size(text), Err(MemorySizeError::Range), "{text}");
        }
        assert_eq!(MemorySizeError::Range.to_string(), "must be between 1 and 4294967296 MiB");
    }
}
