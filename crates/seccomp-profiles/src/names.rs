//! The names of system calls.

include!(concat!(env!("OUT_DIR"), "/names.rs"));

/// The name of a system call of this architecture, if it has one.
pub fn name(number: u32) -> Option<&'static str> {
    let number = usize::try_from(number).ok()?;
    let end = ENDS.get(number)?;
    let start = number.checked_sub(1).and_then(|before| ENDS.get(before)).unwrap_or(&0);
    ALL.get(usize::from(*start)..usize::from(*end)).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_names_and_gaps_have_none() {
        for (number, expected) in [
            (libc::SYS_read, Some("read")),
            (libc::SYS_execve, Some("execve")),
            (libc::SYS_clone3, Some("clone3")),
            (340, None),
            (0x4000_0000, None),
        ] {
            assert_eq!(name(number as u32), expected, "{number}");
        }
    }
}
