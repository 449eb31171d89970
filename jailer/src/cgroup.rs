//! Control groups: `<mount>/<parent>/<id>` made in every hierarchy that a setting needs, with its values written, and
//! joined as one of the last steps, so that what the jailer used is not on the monitor's account.
//!
//! Version 1 has a hierarchy per controller or group of controllers. A new cpuset there is empty and cannot be joined
//! before it has processors and memory nodes, which it inherits here. Version 2 has one hierarchy, in which a controller has
//! to be enabled from the root down to the parent.

mod hierarchy;

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use crate::cli::{CgroupSetting, CgroupVersion, Options};
use crate::error::Error;
use crate::folders::{Folder, c_string};
use crate::sys;
use crate::undo::Undo;
use hierarchy::{Hierarchy, hierarchies};
use std::os::unix::ffi::OsStrExt;

/// Where the kernel lists mounts.
const MOUNTS: &str = "/proc/self/mounts";
/// Processes of a group; one that writes 0 to it joins.
const PROCESSES: &CStr = c"cgroup.procs";
/// Controllers that the children of a group have (version 2).
const SUBTREE_CONTROL: &CStr = c"cgroup.subtree_control";
/// More than such a file holds of what is looked for.
const VALUE_MAX: u64 = 4096;
/// What a cpuset (version 1) cannot be without.
const CPUSET: [&CStr; 2] = [c"cpuset.cpus", c"cpuset.mems"];

/// The groups to join.
#[derive(Debug, Default)]
pub(crate) struct Cgroups(Vec<Group>);

#[derive(Debug)]
struct Group {
    processes: File,
    path: PathBuf,
    /// The processes of the hierarchy's root, where a process goes that is to leave.
    elsewhere: File,
}

impl Cgroups {
    /// Makes the groups that the options ask for, and sets their values.
    pub fn make(options: &Options, name: &CStr, undo: &mut Undo) -> Result<Self, Error> {
        let joins_existing = options.cgroup_version == CgroupVersion::V2 && options.parent_cgroup.is_some();
        if options.cgroup.is_empty() && !joins_existing {
            return Ok(Cgroups::default());
        }
        let path = Path::new(MOUNTS);
        let mounts = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        Self::make_below(&mounts, options, name, undo)
    }

    /// The same with the contents of the kernel's list of mounts.
    fn make_below(mounts: &str, options: &Options, name: &CStr, undo: &mut Undo) -> Result<Self, Error> {
        let default = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let parent = options.parent_cgroup.as_deref().unwrap_or(default);
        let mut groups = Cgroups::default();
        for hierarchy in hierarchies(mounts, options.cgroup_version, &options.cgroup)? {
            if hierarchy.settings.is_empty() {
                groups.0.extend(existing(&hierarchy, parent)?);
            } else {
                groups.0.push(make(&hierarchy, &parent.join(&options.id), undo)?);
            }
        }
        Ok(groups)
    }

    /// Moves the process into the groups.
    pub fn join(&mut self, undo: &mut Undo) -> Result<(), Error> {
        for Group { mut processes, path, elsewhere } in self.0.drain(..) {
            processes.write_all(b"0").map_err(Error::file("join cgroup", &path))?;
            undo.joined_cgroup(elsewhere);
        }
        Ok(())
    }
}

/// A group that somebody else has made, if it is there.
fn existing(hierarchy: &Hierarchy<'_>, parent: &Path) -> Result<Option<Group>, Error> {
    let root = root_of(hierarchy)?;
    let mut folder = open_root(hierarchy)?;
    for name in names(parent) {
        match open_folder(&folder, &c_string(name, parent)?) {
            Ok(next) => folder = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("open cgroup", &folder.path.join(parent))(error)),
        }
    }
    group(&folder, root).map(Some)
}

/// Makes a group and its parents, and writes its values.
fn make(hierarchy: &Hierarchy<'_>, path: &Path, undo: &mut Undo) -> Result<Group, Error> {
    let root = root_of(hierarchy)?;
    let mut folder = open_root(hierarchy)?;
    for name in names(path) {
        if hierarchy.version == CgroupVersion::V2 {
            enable_controllers(&folder, &hierarchy.settings)?;
        }
        let name = c_string(name, path)?;
        let child = folder.path_of(&name);
        match sys::make_folder_at(&folder.file, &name, 0o755) {
            Ok(()) => undo.made_folder(&folder.file, &name)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::file("make cgroup", &child)(error)),
        }
        let child = open_folder(&folder, &name).map_err(Error::file("open cgroup", &child))?;
        if hierarchy.controllers.contains(&"cpuset") && hierarchy.version == CgroupVersion::V1 {
            inherit(&folder, &child)?;
        }
        folder = child;
    }
    for setting in &hierarchy.settings {
        let name = c_string(setting.file.as_bytes(), &folder.path)?;
        write(&folder, &name, setting.value.as_bytes())?;
    }
    group(&folder, root)
}

fn group(folder: &Folder, elsewhere: File) -> Result<Group, Error> {
    let processes = sys::open_at(&folder.file, PROCESSES, libc::O_WRONLY, 0)
        .map_err(Error::file("open", &folder.path_of(PROCESSES)))?;
    Ok(Group { processes, path: folder.path.clone(), elsewhere })
}

fn open_root(hierarchy: &Hierarchy<'_>) -> Result<Folder, Error> {
    let path = hierarchy.mount.clone();
    let file = File::open(&path).map_err(Error::file("open cgroup", &path))?;
    Ok(Folder { file, path })
}

fn root_of(hierarchy: &Hierarchy<'_>) -> Result<File, Error> {
    let root = open_root(hierarchy)?;
    sys::open_at(&root.file, PROCESSES, libc::O_WRONLY, 0)
        .map_err(Error::file("open", &root.path_of(PROCESSES)))
}

fn open_folder(folder: &Folder, name: &CStr) -> io::Result<Folder> {
    let file = sys::open_at(&folder.file, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    Ok(Folder { file, path: folder.path_of(name) })
}

/// The names that a relative path consists of.
fn names(path: &Path) -> impl Iterator<Item = &[u8]> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    })
}

/// Lets the children of a group have the controllers that settings need (version 2).
fn enable_controllers(folder: &Folder, settings: &[&CgroupSetting]) -> Result<(), Error> {
    let enabled = read(folder, SUBTREE_CONTROL)?;
    for controller in settings.iter().map(|setting| setting.controller()) {
        // The files of the hierarchy itself are always there.
        if controller != "cgroup" && !enabled.split_whitespace().any(|name| name == controller) {
            write(folder, SUBTREE_CONTROL, format!("+{controller}").as_bytes())?;
        }
    }
    Ok(())
}

/// Gives an empty cpuset (version 1) what its parent has.
fn inherit(parent: &Folder, child: &Folder) -> Result<(), Error> {
    for name in CPUSET {
        if read(child, name)?.trim().is_empty() {
            write(child, name, read(parent, name)?.trim().as_bytes())?;
        }
    }
    Ok(())
}

fn read(folder: &Folder, name: &CStr) -> Result<String, Error> {
    let mut text = String::new();
    sys::open_at(&folder.file, name, libc::O_RDONLY, 0)
        .and_then(|file| file.take(VALUE_MAX).read_to_string(&mut text))
        .map_err(Error::file("read", &folder.path_of(name)))?;
    Ok(text)
}

/// Writes a value with one call, as the kernel wants it.
fn write(folder: &Folder, name: &CStr, value: &[u8]) -> Result<(), Error> {
    sys::open_at(&folder.file, name, libc::O_WRONLY, 0)
        .and_then(|mut file| file.write_all(value))
        .map_err(Error::file("write", &folder.path_of(name)))
}

#[cfg(test)]
mod tests;
