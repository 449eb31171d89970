//! `vmm` as a user to whom nothing belongs, in a folder of its own. Permissions do not stop root, so root's run is that of
//! another user.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use kindling_integration_tests::error::chain;
use kindling_integration_tests::harness::{Ended, Vmm, vmm_path};
use tempfile::TempDir;

use super::{LIMIT, kernel, one_line};

/// The user and the group that own nothing.
const NOBODY: libc::uid_t = 65534;

/// A folder with a static `vmm`, a `kernel` and an empty `dev` in it, which everybody may read.
pub struct Stranger(TempDir);

impl Stranger {
    /// Makes the folder.
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        open(root.path());
        let vmm = root.path().join("vmm");
        // Where it was built, another user may not reach it.
        std::fs::copy(vmm_path().unwrap(), &vmm).unwrap();
        open(&vmm);
        let stranger = Self(root);
        stranger.file("kernel", kernel());
        std::fs::create_dir(stranger.path().join("dev")).unwrap();
        open(&stranger.path().join("dev"));
        stranger
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Puts a file there that everybody may read.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    }

    /// Puts a file there that nobody may read.
    pub fn closed_file(&self, name: &str, content: impl AsRef<[u8]>) {
        self.file(name, content);
        std::fs::set_permissions(self.path().join(name), PermissionsExt::from_mode(0o000)).unwrap();
    }

    /// What `vmm` says when it is run in the folder without any privilege over files.
    pub fn refused(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        code: i32,
        start: &str,
    ) -> String {
        let mut vmm = Vmm::with_program(self.path().join("vmm"), arguments);
        vmm.command().current_dir(self.path());
        if is_root() {
            // SAFETY: the closure makes system calls only, and allocates nothing.
            unsafe { vmm.command().pre_exec(become_nobody) };
        }
        let ended = vmm.run(LIMIT).unwrap_or_else(|error| {
            panic!(
                "{}; another user must be able to reach {} and to execute what is in it",
                chain(&error),
                self.path().display()
            )
        });
        one_line(&ended, code, start)
    }

    /// The same with the folder as the root folder.
    pub fn refused_in_root(&self, arguments: &[&str], code: i32, start: &str) -> String {
        one_line(&self.run_in_root(arguments), code, start)
    }

    /// How `vmm` ends when it is run so.
    pub fn run_in_root(&self, arguments: &[&str]) -> Ended {
        let mut vmm = Vmm::with_program("/vmm", arguments);
        let root = CString::new(self.path().as_os_str().as_bytes()).unwrap();
        let is_root = is_root();
        let enter = move || {
            if !is_root {
                // Its own user namespace lets a user change the root folder, and nothing outside of it.
                // SAFETY: unshare touches no memory.
                check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
            }
            // SAFETY: both paths are strings that end in NUL and live across the calls.
            check(unsafe { libc::chroot(root.as_ptr()) })?;
            // SAFETY: as above.
            check(unsafe { libc::chdir(c"/".as_ptr()) })?;
            if is_root { become_nobody() } else { Ok(()) }
        };
        // SAFETY: the closure makes system calls only, and allocates nothing.
        unsafe { vmm.command().pre_exec(enter) };
        vmm.run(LIMIT).unwrap_or_else(|error| {
            panic!(
                "{}; changing the root folder takes root (CAP_SYS_CHROOT, CAP_SETUID, CAP_SETGID) or user namespaces \
                 (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, \
                 kernel.apparmor_restrict_unprivileged_userns), and `vmm` has to be linked statically",
                chain(&error)
            )
        })
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Gives up all groups, then the group and the user. For `pre_exec`: async-signal-safe.
fn become_nobody() -> io::Result<()> {
    // SAFETY: no groups are read from the null pointer.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: setgid takes a number.
    check(unsafe { libc::setgid(NOBODY) })?;
    // SAFETY: setuid takes a number.
    check(unsafe { libc::setuid(NOBODY) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
