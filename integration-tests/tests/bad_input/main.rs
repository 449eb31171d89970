//! What `vmm` says to what it cannot work with: one line that names the option or field and the cause, and the
//! documented exit code. Nothing here gets as far as running a guest; a few need `/dev/kvm` to get far enough.
#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod configuration;
mod devices;
mod images;
mod kvm;
mod standard_error;
mod stranger;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kindling_integration_tests::harness::{Ended, Vmm};
use tempfile::TempDir;

/// Ample for a program that ends before it starts a guest.
const LIMIT: Duration = Duration::from_secs(20);

const BAD_CONFIGURATION: i32 = 152;
const BAD_ARGUMENTS: i32 = 153;
const KVM_UNAVAILABLE: i32 = 162;

/// Runs `vmm` with `arguments`; it must end with `code`, print nothing on standard output and exactly one line on
/// standard error that begins with `vmm: ` and then with `start`. Returns the rest of the line.
fn refused(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, code: i32, start: &str) -> String {
    one_line(&Vmm::new(arguments).unwrap().run(LIMIT).unwrap(), code, start)
}

/// What [`refused`] asserts, of a `vmm` that has ended.
fn one_line(ended: &Ended, code: i32, start: &str) -> String {
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(code), ""), "{}", ended.stderr);
    let lines = ended.stderr_lines();
    assert_eq!(lines.len(), 1, "{}", ended.stderr);
    let prefix = format!("vmm: {start}");
    match lines.first().and_then(|line| line.strip_prefix(&prefix)) {
        Some(rest) => rest.to_owned(),
        None => panic!("{:?} does not begin with {prefix:?}", ended.stderr),
    }
}

/// The arguments of `vmm run` with this kernel.
fn run(kernel: &Path) -> Vec<OsString> {
    vec!["run".into(), "--kernel".into(), kernel.into()]
}

/// The same with more of them.
fn run_with(kernel: &Path, more: &[&str]) -> Vec<OsString> {
    let mut arguments = run(kernel);
    arguments.extend(more.iter().map(OsString::from));
    arguments
}

/// A folder with a file in it that goes when the folder does.
fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// The smallest kernel that loads: an ELF file with one segment of one byte at 2 MiB.
fn kernel() -> Vec<u8> {
    images::elf(0x20_0000, 1, 1)
}
