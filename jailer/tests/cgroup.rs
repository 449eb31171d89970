//! The kernel's control groups. These tests need root, as the jailer does, and the hierarchies that this machine has mounted or
//! lets be mounted; one that finds none says so and proves nothing. The logic is tested without any, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Jailed, Place, own_mounts, run, wait};
use tempfile::TempDir;

/// A group of a test's own in a hierarchy, removed in the end with what is in it.
struct Parent {
    mount: PathBuf,
    /// The folder of a mount of its own.
    folder: Option<TempDir>,
    name: String,
}

impl Parent {
    /// In the hierarchy that has a mount option (version 1) or in that of version 2, which is mounted for the calling
    /// thread where it is not.
    fn new(test: &str, controller: Option<&str>) -> Option<Self> {
        let kind = if controller.is_some() { "cgroup" } else { "cgroup2" };
        let find = || {
            let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
            mounts.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                let fits = controller.is_none_or(|name| fields[3].split(',').any(|option| option == name));
                (fields[2] == kind && fits).then(|| PathBuf::from(fields[1]))
            })
        };
        let mut folder = None;
        let mount = find().or_else(|| {
            own_mounts();
            let path = folder.insert(tempfile::tempdir().unwrap()).path();
            let mut command = Command::new("mount");
            command.args(["-t", kind, "-o", controller.unwrap_or("rw"), "none"]).arg(path);
            command.status().unwrap().success().then(|| path.to_owned())
        });
        if mount.is_none() {
            eprintln!("no {kind} hierarchy with {controller:?} here: nothing was tested");
        }
        let name = format!("kindling-jailer-{}-{test}", std::process::id());
        Some(Parent { mount: mount?, folder, name })
    }

    fn path(&self) -> PathBuf {
        self.mount.join(&self.name)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join("inner/a").join(file)).unwrap().trim().to_owned()
    }

    /// The option that has groups made two levels below the root of the hierarchy.
    fn option(&self) -> String {
        format!("--parent-cgroup={}/inner", self.name)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for folder in ["inner/a", "inner", ""] {
            let path = self.path().join(folder);
            wait(|| !path.exists() || fs::remove_dir(&path).is_ok());
        }
        if let Some(folder) = &self.folder {
            let _ = Command::new("umount").arg("--lazy").arg(folder.path()).status();
        }
    }
}

/// The group of a process in a hierarchy.
fn group(jailed: &Jailed, hierarchy: &str) -> String {
    let text = jailed.proc("cgroup");
    let line =
        text.lines().find(|line| line.split(':').nth(1).unwrap().split(',').any(|one| one == hierarchy));
    line.unwrap().rsplit(':').next().unwrap().to_owned()
}

#[test]
fn version_1_sets_values_in_each_hierarchy_and_joins_them() {
    let place = Place::new();
    for (controller, settings) in [
        ("pids", &["pids.max=7"][..]),
        ("cpu", &["cpu.shares=100"]),
        ("freezer", &["freezer.state=THAWED"]),
        // The memory nodes, which it cannot do without, are inherited.
        ("cpuset", &["cpuset.cpus=0"]),
    ] {
        let Some(parent) = Parent::new(controller, Some(controller)) else { continue };
        let mut options = vec![parent.option()];
        options.extend(settings.iter().map(|setting| format!("--cgroup={setting}")));
        let jailed = Jailed::start(&mut place.jailer(&options));
        assert!(group(&jailed, controller).ends_with(&format!("{}/inner/a", parent.name)), "{controller}");
        for setting in settings {
            let (file, value) = setting.split_once('=').unwrap();
            assert_eq!(parent.read(file), value);
        }
        assert_eq!(parent.read("cgroup.procs"), jailed.pid.to_string());
        jailed.end();
    }
}

#[test]
fn version_1_without_settings_makes_nothing() {
    let place = Place::new();
    let Some(parent) = Parent::new("nothing", Some("pids")) else { return };
    let jailed = Jailed::start(&mut place.jailer(&[parent.option()]));
    assert!(!parent.path().exists());
    jailed.end();
}

#[test]
fn a_value_that_the_kernel_refuses_leaves_neither_group_nor_jail() {
    let place = Place::new();
    let Some(parent) = Parent::new("value", Some("pids")) else { return };
    let line = place.refused(&[parent.option(), "--cgroup=pids.max=lots".to_owned()]);
    let file = parent.path().join("inner/a/pids.max");
    assert!(line.contains(&format!("cannot write {}: Invalid argument", file.display())), "{line}");
    assert!(!parent.path().exists());
    let line = place.refused(&[parent.option(), "--cgroup=pids.nothing=1".to_owned()]);
    assert!(line.contains("pids.nothing: "), "{line}");
    assert!(!parent.path().exists());
}

#[test]
fn a_program_that_cannot_be_executed_leaves_no_group() {
    let place = Place::new();
    fs::write(place.executable(), "no program").unwrap();
    for (controller, options) in [
        (Some("pids"), &["--cgroup=pids.max=9"][..]),
        (None, &["--cgroup-version=2", "--cgroup=cgroup.max.depth=1"]),
        (None, &["--cgroup-version=2", "--cgroup=cgroup.max.depth=1", "--daemonize"]),
    ] {
        let Some(parent) = Parent::new("execute", controller) else { continue };
        let mut all = vec![parent.option()];
        all.extend(options.iter().map(|option| (*option).to_owned()));
        assert!(place.refused(&all).contains("cannot execute"));
        assert!(!parent.path().exists(), "{options:?}");
    }
}

#[test]
fn version_2_sets_values_and_joins() {
    let place = Place::new();
    let Some(parent) = Parent::new("v2", None) else { return };
    let mut options = vec![
        parent.option(),
        "--cgroup-version=2".to_owned(),
        "--cgroup=cgroup.max.descendants=3".to_owned(),
    ];
    // Controllers are here only where no hierarchy of version 1 has them, as in the nested host: see `cgroup.rs` of the tests
    // with stock guests.
    let controllers = fs::read_to_string(parent.mount.join("cgroup.controllers")).unwrap();
    let pids = controllers.split_whitespace().any(|name| name == "pids");
    if pids {
        options.push("--cgroup=pids.max=7".to_owned());
    }
    for more in [None, Some("--daemonize"), Some("--new-pid-ns")] {
        let mut options = options.clone();
        options.extend(more.map(str::to_owned));
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let jailed = match more {
            None => Jailed::start(&mut place.jailer(&options)),
            Some(_) => Jailed::detached(&place, &options),
        };
        assert!(group(&jailed, "").ends_with(&format!("{}/inner/a", parent.name)));
        assert_eq!(parent.read("cgroup.max.descendants"), "3");
        assert_eq!(parent.read("cgroup.procs"), jailed.pid.to_string());
        assert!(!pids || parent.read("pids.max") == "7");
        drop(jailed);
        let _ = fs::remove_file(place.root().join("report"));
    }
}

#[test]
fn version_2_names_a_controller_that_is_not_there() {
    let place = Place::new();
    let Some(parent) = Parent::new("missing", None) else { return };
    let line = place.refused(&[
        parent.option(),
        "--cgroup-version=2".to_owned(),
        "--cgroup=nothing.max=1".to_owned(),
    ]);
    assert!(line.contains("cannot write") && line.contains("cgroup.subtree_control"), "{line}");
    assert!(!parent.path().exists());
}

#[test]
fn version_2_without_settings_joins_a_group_that_is_there_and_no_other() {
    let place = Place::new();
    let Some(parent) = Parent::new("join", None) else { return };
    let options = [format!("--parent-cgroup={}", parent.name), "--cgroup-version=2".to_owned()];
    let jailed = Jailed::start(&mut place.jailer(&options));
    assert!(!group(&jailed, "").contains(&parent.name) && !parent.path().exists());
    jailed.end();
    fs::create_dir(parent.path()).unwrap();
    let jailed = Jailed::start(&mut place.jailer(&options));
    assert!(group(&jailed, "").ends_with(&parent.name));
    jailed.end();
}

#[test]
fn a_hierarchy_that_cannot_be_written_is_named_and_no_jail_is_left() {
    let place = Place::new();
    let Some(parent) = Parent::new("read-only", None) else { return };
    own_mounts();
    let mount: &Path = &parent.mount;
    run("mount", &["-o", "remount,bind,ro", mount.to_str().unwrap()]);
    let line = place.refused(&["--cgroup-version=2", "--cgroup=cgroup.max.depth=1", &parent.option()]);
    assert!(line.contains(mount.to_str().unwrap()) && line.contains("Read-only file system"), "{line}");
    // For the drop of `parent`, which was never made.
    run("mount", &["-o", "remount,bind,rw", mount.to_str().unwrap()]);
}
