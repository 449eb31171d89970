//! `/dev/kvm` missing or not permitted. The static `vmm` runs in a root folder of the test's own making, entered
//! through a user namespace so that this needs no privileges and even root's run is that of a stranger.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use kindling_integration_tests::harness::{Ended, Vmm, vmm_path};

use super::{KVM_UNAVAILABLE, LIMIT, kernel};

/// Has `command` run without any privilege over files, and with `root` as its root folder if there is one.
fn as_stranger(vmm: &mut Vmm, root: Option<&Path>) {
    let root = root.map(|root| CString::new(root.as_os_str().as_bytes()).unwrap());
    let enter = move || {
        // SAFETY: unshare touches no memory.
        let mut result = unsafe { libc::unshare(libc::CLONE_NEWUSER) };
        if let (0, Some(root)) = (result, &root) {
            // SAFETY: both paths are strings that end in NUL and live across the calls.
            result = unsafe { libc::chroot(root.as_ptr()) | libc::chdir(c"/".as_ptr()) };
        }
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { vmm.command().pre_exec(enter) };
}

fn one_line(ended: &Ended, code: i32) -> String {
    assert_eq!(ended.code(), Some(code), "{}", ended.stderr);
    assert_eq!(ended.stderr_lines().len(), 1, "{}", ended.stderr);
    ended.stderr.clone()
}

/// What `vmm` says when nothing is permitted to it.
pub fn refused_as_stranger<'a>(arguments: impl IntoIterator<Item = &'a OsStr>, code: i32) -> String {
    let mut vmm = Vmm::new(arguments).unwrap();
    as_stranger(&mut vmm, None);
    one_line(&vmm.run(LIMIT).unwrap(), code)
}

/// What `vmm` says in a root folder of its own, once `prepare` has been there.
fn refused_in_root(prepare: impl FnOnce(&Path)) -> String {
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(vmm_path().unwrap(), root.path().join("vmm")).unwrap();
    std::fs::write(root.path().join("kernel"), kernel()).unwrap();
    std::fs::create_dir(root.path().join("dev")).unwrap();
    prepare(root.path());
    let mut vmm = Vmm::with_program("/vmm", ["run", "--kernel", "/kernel"]);
    as_stranger(&mut vmm, Some(root.path()));
    one_line(&vmm.run(LIMIT).unwrap(), KVM_UNAVAILABLE)
}

#[test]
fn missing_kvm() {
    let line = refused_in_root(|_| ());
    assert!(
        line.contains("/dev/kvm") && line.contains("No such file") && line.contains("vmm doctor"),
        "{line}"
    );
}

#[test]
fn kvm_that_is_not_permitted() {
    let line = refused_in_root(|root| {
        let device = root.join("dev/kvm");
        std::fs::write(&device, "").unwrap();
        std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o000)).unwrap();
    });
    assert!(line.contains("/dev/kvm") && line.contains("Permission denied"), "{line}");
}

#[test]
fn kvm_that_is_something_else() {
    let line = refused_in_root(|root| std::fs::write(root.join("dev/kvm"), "").unwrap());
    assert!(line.contains("/dev/kvm"), "{line}");
}
