//! The `vmm` under test in a jail: a stand-in for it that takes the same arguments, and becomes it through the jailer.
//!
//! Tests need not know. A test's files keep their paths: the folder of each path that the arguments name, or that a
//! configuration file among them names, is mounted at the same place in the jail, if it is one of the test's own, and given
//! to the jail's user. What the test puts there later, that user can reach, too, if the test runs with an empty mask of
//! permissions. The process that was started becomes the monitor, so signals, standard streams and terminals are
//! the same, and so is the network namespace.
//!
//! The jail is on a file system of the process's own mount namespace, and gone with it.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::ptr;

use super::files::SCRATCH_VARIABLE;
use crate::bare_metal::IMAGES_VARIABLE;
use crate::error::{Context, Result};
use crate::guest_image::FOLDER_VARIABLE;
use crate::root_image;
use crate::runner::VMM_VARIABLE;
use crate::terminal::check;

/// Names the stand-in, which tests then start in place of the `vmm` that [`VMM_VARIABLE`] names.
pub const VARIABLE: &str = "KINDLING_JAILED_VMM";

/// Names the jailer.
pub const JAILER_VARIABLE: &str = "KINDLING_JAILER";

/// The user and the group of every jail. They own nothing else.
pub const USER: u32 = 64_001;

/// Where jails are; a file system of each one's own covers it.
const BASE: &str = "/srv";

/// What the machine is called unless the arguments say otherwise, as `vmm` itself has it.
const DEFAULT_ID: &str = "anonymous-instance";

/// A test that is not run in a jail.
#[derive(Clone, Copy, Debug)]
pub struct Outside {
    /// The test binary.
    pub binary: &'static str,
    /// What the test's name begins with.
    pub test: &'static str,
    /// Why it cannot hold there.
    pub why: &'static str,
}

const fn outside(binary: &'static str, test: &'static str, why: &'static str) -> Outside {
    Outside { binary, test, why }
}

/// All of them.
pub const OUTSIDE: [Outside; 10] = [
    outside("bare_metal", "doctor::", "it is about the host, which is looked at before there is a jail"),
    outside("bare_metal", "landlock::a_restricted_vmm", "a jail has no /proc to tell the monitor its size"),
    outside("bare_metal", "landlock::whoever_takes_over", "a jail has no file of the host to keep it from"),
    outside("bare_metal", "serial::a_pseudo_terminal", "a jail has no pseudo-terminals of its own"),
    outside("bad_input", "configuration::config_file_that_is_not_permitted", NOBODY),
    outside("bad_input", "images::initrd_that_is_not_permitted", NOBODY),
    outside("bad_input", "images::kernel_that_is_not_permitted", NOBODY),
    outside("bad_input", "kvm::", "the test makes a root folder of its own"),
    outside("linux", "cgroup::", "the test makes a jail of its own"),
    outside("linux", "host::", "it is about what tests stand on, and starts no monitor"),
];

const NOBODY: &str = "the test runs vmm as a user without rights, who can make no jail";

/// Whether tests start `vmm` in jails.
pub fn is_used() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Becomes the monitor with these arguments; returns only if that fails. A command that starts no guest needs no jail.
pub fn become_jailed(arguments: Vec<OsString>) -> Result<Infallible> {
    let mut command = match arguments.first() {
        Some(first) if first == "seccomp" => {
            let mut vmm = Command::new(variable(VMM_VARIABLE)?);
            vmm.args(arguments);
            vmm
        }
        _ => jailer(arguments)?,
    };
    Err(command.exec()).doing(|| format!("cannot start {}", command.get_program().display()))
}

/// Makes the jail, and returns the jailer for it.
fn jailer(mut arguments: Vec<OsString>) -> Result<Command> {
    let (vmm, jailer) = (variable(VMM_VARIABLE)?, variable(JAILER_VARIABLE)?);
    let id = take_id(&mut arguments);
    let name = vmm.file_name().unwrap_or(OsStr::new("vmm"));
    let root = Path::new(BASE).join("jailer").join(name).join(&id).join("root");
    // SAFETY: the call takes a number.
    let mask = unsafe { libc::umask(0o022) };
    fs::create_dir_all(BASE).doing(|| format!("cannot make {BASE}"))?;
    own_mounts().doing(|| "cannot make a place for a jail".to_owned())?;
    fs::create_dir_all(&root).doing(|| format!("cannot make {}", root.display()))?;
    let tests = std::env::temp_dir();
    let tests = root.join(tests.strip_prefix("/").unwrap_or(&tests));
    fs::create_dir_all(&tests).doing(|| format!("cannot make {}", tests.display()))?;
    for path in visible(&arguments) {
        show(&path, &root).doing(|| format!("cannot show {} in the jail", path.display()))?;
    }
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    let user = USER.to_string();
    let mut command = Command::new(jailer);
    command.args(["--uid", &user, "--gid", &user, "--netns", "/proc/self/ns/net"]);
    command.arg("--exec-file").arg(vmm).arg("--id").arg(id).arg("--").args(arguments);
    Ok(command)
}

fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).ok_or_else(|| super::not_set(name))
}

/// The name of the machine, which the jailer hands on itself.
fn take_id(arguments: &mut Vec<OsString>) -> OsString {
    match arguments.iter().position(|argument| argument == "--id") {
        Some(at) if at + 1 < arguments.len() => arguments.drain(at..at + 2).next_back().unwrap_or_default(),
        _ => DEFAULT_ID.into(),
    }
}

/// Gives the process a mount namespace of its own, with an empty file system for jails.
fn own_mounts() -> io::Result<()> {
    // SAFETY: the call takes a number.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
    let base = CString::new(BASE)?;
    mount(Some(c"tmpfs"), &base, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)?;
    fs::set_permissions(BASE, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}

fn mount(from: Option<&CStr>, to: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end in NUL, or are not there.
    check(unsafe { libc::mount(pointer(from), to.as_ptr(), pointer(kind), flags, ptr::null()) })
}

/// Mounts a file or folder in the jail under its own path.
fn show(path: &Path, root: &Path) -> io::Result<()> {
    let inside = root.join(path.strip_prefix("/").unwrap_or(path));
    if path.is_dir() {
        fs::create_dir_all(&inside)?;
    } else {
        inside.parent().map(fs::create_dir_all).transpose()?;
        fs::File::create(&inside)?;
    }
    let (from, to) =
        (CString::new(path.as_os_str().as_bytes())?, CString::new(inside.as_os_str().as_bytes())?);
    mount(Some(&from), &to, None, libc::MS_BIND | libc::MS_REC)
}

/// What there is to be in the jail: what guests are booted from, and of the test's own folders those that the arguments
/// name, which are given to the jail's user.
fn visible(arguments: &[OsString]) -> Vec<PathBuf> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let bases: Vec<_> = [Some(std::env::temp_dir()), given(SCRATCH_VARIABLE)].into_iter().flatten().collect();
    let mut own: Vec<PathBuf> = named(arguments).iter().filter_map(|path| top(path, &bases)).collect();
    own.sort();
    own.dedup();
    own.retain(|path| path.exists());
    for folder in own.iter().filter(|path| path.is_dir()) {
        // One that cannot be given away is missed by the test that needs it.
        let _ = std::os::unix::fs::chown(folder, Some(USER), Some(USER));
    }
    let images = [FOLDER_VARIABLE, IMAGES_VARIABLE, root_image::VARIABLE];
    let images = images.into_iter().filter_map(given).filter(|path| path.is_dir() || path.is_file());
    images.chain(own).collect()
}

/// The absolute paths in arguments, and in the files that are arguments themselves.
fn named(arguments: &[OsString]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut add = |text: &str| {
        let words = text.split([',', '=', '"']).filter(|word| word.starts_with('/'));
        paths.extend(words.map(PathBuf::from));
    };
    for (option, value) in arguments.iter().zip(arguments.iter().skip(1).map(Some).chain([None])) {
        add(&option.to_string_lossy());
        if option == "--config-file"
            && let Some(text) = value.and_then(|path| fs::read_to_string(path).ok())
        {
            add(&text);
        }
    }
    paths
}

/// The file or folder directly below one of the bases that a path leads to or through.
fn top(path: &Path, bases: &[PathBuf]) -> Option<PathBuf> {
    bases.iter().find_map(|base| match path.strip_prefix(base).ok()?.components().next()? {
        Component::Normal(name) => Some(base.join(name)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_name_of_the_machine_is_taken_from_the_arguments() {
        let mut arguments = words("--api-sock /s --id web --no-api");
        assert_eq!(take_id(&mut arguments), "web");
        assert_eq!(arguments, words("--api-sock /s --no-api"));
        assert_eq!(take_id(&mut arguments), DEFAULT_ID);
    }

    #[test]
    fn of_all_paths_those_of_the_tests_own_folders_count() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("vm.json");
        fs::write(&config, r#"{"drives": [{"path_on_host": "/base/b/disk"}]}"#).unwrap();
        let text =
            format!("run --disk /base/a/x/disk,ro --kernel /boot/k --config-file {}", config.display());
        let bases = [PathBuf::from("/base")];
        let tops: Vec<_> = named(&words(&text)).iter().filter_map(|path| top(path, &bases)).collect();
        assert_eq!(tops, [PathBuf::from("/base/a"), PathBuf::from("/base/b")]);
        assert_eq!(top(Path::new("/base"), &bases), None);
    }
}
