//! A standard error that takes nothing: the exit code says what the message would have.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use kindling_integration_tests::harness::{Process, vmm_path};
use kindling_integration_tests::run::die_with_parent;

use super::{BAD_ARGUMENTS, BAD_CONFIGURATION, LIMIT};

/// Asserts the exit code of `vmm` with a kernel that is missing, and with an option that does not exist.
fn ends_as_documented(prepare: impl Fn(&mut Command)) {
    let cases = [
        (&["run", "--kernel", "/nonexistent/kernel"][..], BAD_CONFIGURATION),
        (&["run", "--no-such-option"], BAD_ARGUMENTS),
    ];
    for (arguments, code) in cases {
        let mut command = Command::new(vmm_path().unwrap());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        prepare(&mut command);
        let child = die_with_parent(&mut command).spawn().unwrap();
        let status = Process::new(child, "vmm").wait(LIMIT).unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {status}");
    }
}

#[test]
fn broken_standard_error() {
    ends_as_documented(|command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stderr(writer);
    });
}

#[test]
fn full_standard_error() {
    ends_as_documented(|command| {
        command.stderr(File::options().write(true).open("/dev/full").unwrap());
    });
}

#[test]
fn closed_standard_error() {
    ends_as_documented(|command| {
        // SAFETY: the closure makes one system call and allocates nothing; nothing is written there before the program
        // begins.
        unsafe {
            command.pre_exec(|| match libc::close(2) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        };
    });
}
