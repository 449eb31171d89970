//! What a nested host is asked to do: the message from [`crate::nested`] to the host's init, a file in its RAM disk.
//!
//! The form is a list of NUL-terminated fields, each opening with one letter, because arguments and environment may
//! hold any byte but NUL.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::{Error, Result};

/// Where the host's init finds the job.
pub const JOB_PATH: &str = "/kindling/job";

/// A program to run in the nested host, and what to load before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Kernel modules to load first, by path in the host, in this order.
    pub modules: Vec<OsString>,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Variables added to the environment.
    pub env: Vec<(OsString, OsString)>,
}

impl Job {
    /// The job as stored in the RAM disk.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut field = |letter: u8, parts: &[&OsStr]| {
            bytes.push(letter);
            for part in parts {
                if part.as_bytes().contains(&0) {
                    return Err(Error::Protocol(format!("{part:?} holds a NUL byte")));
                }
                bytes.extend_from_slice(part.as_bytes());
            }
            bytes.push(0);
            Ok(())
        };
        for module in &self.modules {
            field(b'M', &[module])?;
        }
        for argument in &self.argv {
            field(b'A', &[argument])?;
        }
        for (name, value) in &self.env {
            field(b'E', &[name, OsStr::new("="), value])?;
        }
        Ok(bytes)
    }

    /// Reads what [`Job::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut job = Self::default();
        let bad = |what: &str| Error::Protocol(format!("the job file is damaged: {what}"));
        let Some(fields) = bytes.strip_suffix(&[0]) else {
            return Err(bad("it does not end with NUL"));
        };
        for field in fields.split(|byte| *byte == 0) {
            match field {
                [b'M', path @ ..] => job.modules.push(OsString::from_vec(path.to_vec())),
                [b'A', argument @ ..] => job.argv.push(OsString::from_vec(argument.to_vec())),
                [b'E', pair @ ..] => {
                    let equals = pair
                        .iter()
                        .position(|byte| *byte == b'=')
                        .ok_or_else(|| bad("no = in a variable"))?;
                    let (name, value) = (&pair[..equals], &pair[equals + 1..]);
                    job.env.push((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())));
                }
                _ => return Err(bad("unknown field")),
            }
        }
        if job.argv.is_empty() { Err(bad("no program")) } else { Ok(job) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_the_trip() {
        let job = Job {
            modules: vec!["/m/kvm.ko".into()],
            argv: vec!["/bin/sh".into(), "-c".into(), "".into(), "a b\n'c'".into()],
            env: vec![("A".into(), "x=y".into()), ("B".into(), "".into())],
        };
        assert_eq!(Job::from_bytes(&job.to_bytes().unwrap()).unwrap(), job);
    }

    #[test]
    fn an_argument_with_a_nul_byte_is_refused() {
        let job = Job { argv: vec![OsString::from_vec(vec![b'a', 0])], ..Job::default() };
        assert!(job.to_bytes().is_err());
    }

    #[test]
    fn a_damaged_job_is_refused() {
        for bytes in [&b""[..], b"A", b"X\0", b"Enothing\0Aa\0", b"M/x\0"] {
            assert!(Job::from_bytes(bytes).is_err(), "{bytes:?}");
        }
    }
}
