//! The jailer's control groups of version 2 on a kernel whose controllers no hierarchy of version 1 has, as the nested host's.
//! The jailer's own tests have what any kernel shows.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::jail::{JAILER_VARIABLE, USER};
use kindling_integration_tests::harness::{Process, scaled};
use kindling_integration_tests::runner::VMM_VARIABLE;
use kindling_integration_tests::terminal::check;
use tempfile::TempDir;

/// For the jail to be made, and for the group to be empty.
const SOON: Duration = Duration::from_secs(60);

const CONTROLLERS: [&str; 2] = ["pids", "memory"];

/// The hierarchy, mounted for the calling thread and what it starts, and in it a place of the test's own. Both are gone
/// in the end.
struct Hierarchy {
    mount: TempDir,
    name: String,
}

impl Hierarchy {
    /// Or why there is none whose controllers can be enabled.
    fn mount() -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = own_mounts().and_then(|()| mount("cgroup2", folder.path(), "cgroup2", 0));
        mounted.map_err(|error| format!("cgroup2 cannot be mounted: {error}"))?;
        let hierarchy = Self { mount: folder, name: format!("kindling-{}", std::process::id()) };
        let there = hierarchy.read("", "cgroup.controllers");
        if let Some(missing) = CONTROLLERS.iter().find(|name| !has(&there, name)) {
            return Err(format!("cgroup2 has no controller {missing} here"));
        }
        // What only looks like the root has processes of its own, and its children get no controllers then.
        if hierarchy.path("").join("cgroup.type").exists() {
            return Err("this is not the root of cgroup2".to_owned());
        }
        Ok(hierarchy)
    }

    /// A group, by its path in the hierarchy.
    fn path(&self, group: &str) -> PathBuf {
        self.mount.path().join(group)
    }

    fn read(&self, group: &str, file: &str) -> String {
        let path = self.path(group).join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim_end().to_owned()
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        for group in ["inner/a", "inner", ""] {
            let path = self.path(&self.name).join(group);
            // A process that has ended leaves its group a moment later.
            wait(|| !path.exists() || fs::remove_dir(&path).is_ok());
        }
        let path = c_string(self.mount.path().to_str().unwrap());
        // SAFETY: the path ends in NUL and lives across the call.
        let _ = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

fn has(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|word| word == name)
}

fn c_string(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong) -> io::Result<()> {
    let [source, target, kind] = [source, target.to_str().unwrap(), kind].map(c_string);
    // SAFETY: the strings end in NUL and live across the call; there is no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, ptr::null()) })
}

/// Gives the calling thread a mount namespace of its own.
fn own_mounts() -> io::Result<()> {
    // SAFETY: the call takes a number.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount("", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE)
}

#[track_caller]
fn wait(mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + scaled(SOON);
    while !what() {
        assert!(Instant::now() < deadline, "it did not come about in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this is the nested host, which has what is needed.
fn is_nested() -> bool {
    fs::read_to_string("/proc/cmdline").unwrap().contains("kindling.init=host")
}

#[test]
fn controllers_are_enabled_down_to_the_group_which_has_its_values_and_the_monitor() {
    let hierarchy = match Hierarchy::mount() {
        Ok(hierarchy) => hierarchy,
        Err(why) => {
            assert!(!is_nested(), "{why}");
            eprintln!("nothing was tested: {why}");
            return;
        }
    };
    let parent = format!("{}/inner", hierarchy.name);
    let (jails, user) = (tempfile::tempdir().unwrap(), USER.to_string());
    // Whatever the mask of permissions is: the jailer trusts no folder that others can change.
    fs::set_permissions(jails.path(), Permissions::from_mode(0o755)).unwrap();
    let vmm = PathBuf::from(std::env::var_os(VMM_VARIABLE).unwrap());
    let mut jailer = Command::new(std::env::var_os(JAILER_VARIABLE).unwrap());
    jailer.args(["--id", "a", "--uid", &user, "--gid", &user, "--parent-cgroup", &parent]);
    jailer.args(["--cgroup-version", "2", "--cgroup", "pids.max=64", "--cgroup", "memory.max=1G"]);
    jailer.arg("--chroot-base-dir").arg(jails.path()).arg("--exec-file").arg(&vmm);
    jailer.args(["--", "--api-sock", "/run/api"]).stdin(Stdio::null());
    let mut monitor = Process::new(jailer.spawn().unwrap(), "the monitor");
    let root = jails.path().join(vmm.file_name().unwrap()).join("a/root");
    // The monitor has its threads when it answers.
    wait(|| UnixStream::connect(root.join("run/api")).is_ok() || monitor.status().unwrap().is_some());
    assert_eq!(monitor.status().unwrap(), None);

    for group in ["", &hierarchy.name, &parent] {
        let enabled = hierarchy.read(group, "cgroup.subtree_control");
        assert!(CONTROLLERS.iter().all(|name| has(&enabled, name)), "{group:?}: {enabled}");
    }
    let (group, id) = (format!("{parent}/a"), monitor.id());
    assert_eq!(hierarchy.read(&group, "cgroup.subtree_control"), "");
    assert_eq!(hierarchy.read(&group, "pids.max"), "64");
    assert_eq!(hierarchy.read(&group, "memory.max"), (1_u64 << 30).to_string());
    assert_eq!(hierarchy.read(&group, "cgroup.procs"), id.to_string());
    let groups = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap();
    assert!(groups.lines().any(|line| line == format!("0::/{group}")), "{groups}");
    // It is the monitor that the controllers count.
    let threads = fs::read_dir(format!("/proc/{id}/task")).unwrap().count();
    assert_eq!(hierarchy.read(&group, "pids.current"), threads.to_string());
    assert_ne!(hierarchy.read(&group, "memory.current"), "0");
}
