//! The logic of files on a folder that stands for a mounted hierarchy; `tests/cgroup.rs` uses the kernel's.

use std::ffi::OsString;
use std::fs;

use tempfile::TempDir;

use super::*;

/// A hierarchy with the group `vmm/a`, and the kernel's line about it.
struct Fake {
    folder: TempDir,
    mounts: String,
}

impl Fake {
    fn new(kind: &str, options: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("vmm/a")).unwrap();
        for group in ["", "vmm", "vmm/a"] {
            fs::write(folder.path().join(group).join("cgroup.procs"), "").unwrap();
        }
        for (file, text) in files {
            fs::write(folder.path().join(file), text).unwrap();
        }
        let mounts = format!("none {} {kind} rw,{options} 0 0\n", folder.path().display());
        Fake { folder, mounts }
    }

    fn make(&self, options: &[&str]) -> Result<Cgroups, Error> {
        let needed = ["jailer", "--id", "a", "--exec-file", "vmm", "--uid", "1", "--gid", "1"];
        let options = crate::cli::parse(needed.iter().chain(options).map(OsString::from)).unwrap();
        Cgroups::make_below(&self.mounts, &options, c"vmm", &mut Undo::default())
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap()
    }
}

#[test]
fn a_controller_is_enabled_from_the_root_to_the_parent_where_it_is_not_yet() {
    let fake = Fake::new(
        "cgroup2",
        "nsdelegate",
        &[
            ("cgroup.subtree_control", "cpu memory"),
            ("vmm/cgroup.subtree_control", ""),
            ("vmm/a/memory.max", "max"),
            ("vmm/a/cgroup.max.depth", "max"),
        ],
    );
    let mut groups = fake
        .make(&["--cgroup-version=2", "--cgroup=memory.max=1=2", "--cgroup=cgroup.max.depth=999"])
        .unwrap();
    assert_eq!(fake.read("cgroup.subtree_control"), "cpu memory", "it has it already");
    assert_eq!(fake.read("vmm/cgroup.subtree_control"), "+memory");
    assert_eq!(
        (fake.read("vmm/a/memory.max").as_str(), fake.read("vmm/a/cgroup.max.depth").as_str()),
        ("1=2", "999")
    );
    assert_eq!(fake.read("vmm/a/cgroup.procs"), "", "joined later");
    groups.join(&mut Undo::default()).unwrap();
    assert_eq!(fake.read("vmm/a/cgroup.procs"), "0");
}

#[test]
fn an_empty_cpuset_inherits_down_to_the_group_and_a_full_one_is_left_alone() {
    let fake = Fake::new(
        "cgroup",
        "cpuset",
        &[
            ("cpuset.cpus", "0-3\n"),
            ("cpuset.mems", "0\n"),
            ("vmm/cpuset.cpus", "2\n"),
            ("vmm/cpuset.mems", "\n"),
            ("vmm/a/cpuset.cpus", ""),
            ("vmm/a/cpuset.mems", ""),
        ],
    );
    fake.make(&["--cgroup=cpuset.mems=0"]).unwrap();
    assert_eq!(fake.read("vmm/cpuset.cpus"), "2\n");
    assert_eq!(fake.read("vmm/a/cpuset.cpus"), "2");
    assert_eq!(fake.read("vmm/a/cpuset.mems"), "0");
}

#[test]
fn settings_of_one_hierarchy_are_one_group_and_a_missing_file_is_named() {
    let fake = Fake::new("cgroup", "cpu,cpuacct", &[("vmm/a/cpu.shares", ""), ("vmm/a/cpuacct.usage", "")]);
    let groups = fake.make(&["--cgroup=cpu.shares=9", "--cgroup=cpuacct.usage=0"]).unwrap();
    assert_eq!(groups.0.len(), 1);
    let error = crate::error::one_line(&fake.make(&["--cgroup=cpu.none=9"]).unwrap_err());
    assert!(error.contains("vmm/a/cpu.none: No such file"), "{error}");
}

#[test]
fn a_link_in_a_hierarchy_is_not_followed() {
    let fake = Fake::new("cgroup", "pids", &[("target", "precious")]);
    std::os::unix::fs::symlink("../../target", fake.folder.path().join("vmm/a/pids.max")).unwrap();
    assert!(fake.make(&["--cgroup=pids.max=9"]).is_err());
    assert_eq!(fake.read("target"), "precious");
    std::os::unix::fs::symlink("vmm", fake.folder.path().join("other")).unwrap();
    assert!(fake.make(&["--cgroup=pids.max=9", "--parent-cgroup=other"]).is_err());
}
