//! Where control groups are: hierarchies as the kernel's list of mounts shows them, and the settings that each is for.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::cli::{CgroupSetting, CgroupVersion};
use crate::error::Error;

/// A hierarchy, and what is to be set in it.
#[derive(Debug)]
pub(super) struct Hierarchy<'a> {
    pub version: CgroupVersion,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The options of its mount, which hold its controllers (version 1).
    pub controllers: Vec<&'a str>,
    pub settings: Vec<&'a CgroupSetting>,
}

/// The hierarchies that `settings` need, each with its own. Without settings, that of version 2.
pub(super) fn hierarchies<'a>(
    mounts: &'a str,
    version: CgroupVersion,
    settings: &'a [CgroupSetting],
) -> Result<Vec<Hierarchy<'a>>, Error> {
    let kind = match version {
        CgroupVersion::V1 => "cgroup",
        CgroupVersion::V2 => "cgroup2",
    };
    let mut found: Vec<Hierarchy<'_>> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (mount, found, options) = (fields.next()?, fields.next()?, fields.next()?);
            let controllers = options.split(',').collect();
            let mount = unescape(mount);
            (found == kind).then_some(Hierarchy { version, mount, controllers, settings: Vec::new() })
        })
        .collect();
    if version == CgroupVersion::V2 {
        // There is but one, wherever it is mounted.
        found.truncate(1);
        let Some(hierarchy) = found.first_mut() else {
            return Err(Error::option("--cgroup-version", "no cgroup2 file system is mounted"));
        };
        hierarchy.settings.extend(settings);
        return Ok(found);
    }
    for setting in settings {
        let controller = setting.controller();
        match found.iter_mut().find(|hierarchy| hierarchy.controllers.contains(&controller)) {
            Some(hierarchy) => hierarchy.settings.push(setting),
            None => {
                let fault = format!("no cgroup file system with the controller {controller} is mounted");
                return Err(Error::option("--cgroup", fault));
            }
        }
    }
    found.retain(|hierarchy| !hierarchy.settings.is_empty());
    Ok(found)
}

/// A path of the list of mounts, in which the kernel writes some bytes as three octal digits behind a backslash.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
proc /proc proc rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/cpu\\040set cgroup rw,cpuset 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
cgroup2 /again cgroup2 rw 0 0
garbage
";

    fn settings(all: &[&str]) -> Vec<CgroupSetting> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn controllers_that_are_mounted_together_are_one_hierarchy() {
        let settings = settings(&["cpu.shares=1", "cpuset.cpus=0", "cpuacct.usage=0"]);
        let found = hierarchies(HYBRID, CgroupVersion::V1, &settings).unwrap();
        let found: Vec<_> =
            found.iter().map(|one| (one.mount.to_str().unwrap(), one.settings.len())).collect();
        assert_eq!(found, [("/sys/fs/cgroup/cpu,cpuacct", 2), ("/sys/fs/cgroup/cpu set", 1)]);
    }

    #[test]
    fn version_2_is_one_hierarchy_with_or_without_settings() {
        for settings in [settings(&[]), settings(&["memory.max=1", "pids.max=2"])] {
            let found = hierarchies(HYBRID, CgroupVersion::V2, &settings).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].mount, PathBuf::from("/sys/fs/cgroup/unified"));
            assert_eq!(found[0].settings.len(), settings.len());
        }
    }

    #[test]
    fn what_is_not_mounted_is_named() {
        let memory = settings(&["memory.limit_in_bytes=1"]);
        let error = hierarchies(HYBRID, CgroupVersion::V1, &memory).unwrap_err();
        assert!(error.to_string().contains("controller memory"), "{error}");
        let error = hierarchies("proc /proc proc rw 0 0\n", CgroupVersion::V2, &memory).unwrap_err();
        assert!(error.to_string().contains("cgroup2"), "{error}");
    }
}
