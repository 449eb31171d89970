//! Whom the folders on the way to a jail may belong to, and who may change them. These tests need root, as the jailer does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::{GID, Jailed, Place, STRANGER, UID, command, copy, failed, give, listing, own_mounts, run};

const NONE: [&str; 0] = [];

const JAILER: &str = env!("CARGO_BIN_EXE_jailer");

#[test]
fn folders_and_files_of_another_user_are_refused() {
    for component in ["jails", "jails/vmm", "jails/vmm/a", "jails/vmm/a/root", "jails/vmm/a/root/run"] {
        let place = Place::new();
        fs::create_dir_all(place.make_root().join("run")).unwrap();
        give(&place.path().join(component), STRANGER, STRANGER);
        let line = place.refused(&NONE);
        assert!(line.contains(&format!("{component} belongs to user {STRANGER}")), "{line}");
    }
    let place = Place::new();
    let copy = place.make_root().join("vmm");
    fs::write(&copy, "not the monitor").unwrap();
    give(&copy, STRANGER, STRANGER);
    assert!(place.refused(&NONE).contains("vmm belongs to another user"));
}

#[test]
fn a_root_folder_that_others_can_change_is_refused() {
    let place = Place::new();
    copy(Path::new(JAILER), &place.path().join("jailer"));
    for library in ["lib", "lib64"] {
        fs::create_dir(place.path().join(library)).unwrap();
    }
    fs::set_permissions(place.path(), Permissions::from_mode(0o777)).unwrap();
    let before = place.listing();
    // The mounts are this program's alone, and gone with it.
    let script = r#"
        cd "$1"
        for library in lib lib64; do mount --bind "/$library" "$library"; done
        exec chroot . /jailer --id a --uid 1 --gid 1 --exec-file /vmm --chroot-base-dir /jails
    "#;
    let mut unshare = Command::new("unshare");
    let output = unshare.args(["--mount", "sh", "-ec", script, "sh"]).arg(place.path()).output().unwrap();
    let line = failed(&output);
    assert!(line.contains("jailer: / can be changed by others (mode 0777)"), "{line}");
    assert_eq!(place.listing(), before);
}

#[test]
fn folders_that_others_can_change_are_refused() {
    for component in ["", "jails", "jails/vmm", "jails/vmm/a", "jails/vmm/a/root"] {
        for (mode, group) in [(0o777, 0), (0o702, 0), (0o770, STRANGER)] {
            let place = Place::new();
            let folder = place.make_root();
            let folder = folder
                .ancestors()
                .find(|path| path.ends_with(component) || component.is_empty() && *path == place.path());
            let folder = folder.unwrap();
            give(folder, 0, group);
            fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
            let line = place.refused(&NONE);
            assert!(line.contains(&format!("{} can be changed by others", folder.display())), "{line}");
        }
    }
}

#[test]
fn folders_of_the_jails_own_user_and_group_are_trusted() {
    let place = Place::new();
    let root = place.make_root();
    for folder in root.ancestors().take(4) {
        give(folder, UID, GID);
        fs::set_permissions(folder, Permissions::from_mode(0o775)).unwrap();
    }
    Jailed::start(&mut place.jailer(&NONE)).end();
}

/// Gives a folder a POSIX access control list of that name, by which the stranger may do everything and the group
/// `group`, each as far as `mask` goes. Returns whether the file system has such lists.
#[must_use]
fn set_acl(folder: &Path, name: &CStr, group: u16, mask: u16) -> bool {
    // linux/posix_acl.h, linux/posix_acl_xattr.h
    const VERSION: u32 = 2;
    const USER_OBJ: u16 = 0x01;
    const USER: u16 = 0x02;
    const GROUP_OBJ: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let mut list = VERSION.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (USER_OBJ, 7, u32::MAX),
        (USER, 7, STRANGER),
        (GROUP_OBJ, group, u32::MAX),
        (MASK, mask, u32::MAX),
        (OTHER, 5, u32::MAX),
    ] {
        list.extend([tag, rights].map(u16::to_le_bytes).concat());
        list.extend(id.to_le_bytes());
    }
    let path = CString::new(folder.as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings end in NUL, and the call reads the list.
    if unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), list.as_ptr().cast(), list.len(), 0) } == 0 {
        return true;
    }
    let error = io::Error::last_os_error();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}");
    eprintln!("not tried: the file system of {} has no access control lists", folder.display());
    false
}

#[test]
fn a_folder_that_an_access_control_list_lets_others_change_is_refused() {
    for component in ["jails", "jails/vmm", "jails/vmm/a", "jails/vmm/a/root", "jails/vmm/a/root/run"] {
        for (group, mask) in [(5, 7), (7, 7), (5, 3)] {
            let place = Place::new();
            fs::create_dir_all(place.make_root().join("run")).unwrap();
            let folder = place.path().join(component);
            if !set_acl(&folder, c"system.posix_acl_access", group, mask) {
                return;
            }
            let line = place.refused(&NONE);
            let fault = format!("can be changed by others (mode 07{mask}5, with an access control list)");
            assert!(line.contains(&format!("{} {fault}", folder.display())), "{line}");
        }
    }
}

#[test]
fn a_folder_whose_access_control_list_gives_no_right_to_write_is_trusted() {
    let place = Place::new();
    place.make_root();
    if set_acl(&place.base(), c"system.posix_acl_access", 5, 5) {
        Jailed::start(&mut place.jailer(&NONE)).end();
    }
}

#[test]
fn what_is_made_below_a_default_access_control_list_can_be_changed_by_nobody_in_it() {
    let place = Place::new();
    fs::create_dir(place.base()).unwrap();
    if set_acl(&place.base(), c"system.posix_acl_default", 7, 7) {
        Jailed::start(&mut place.jailer(&NONE)).end();
        let files = listing(&place.base());
        assert!(files.len() > 5, "{files:?}");
        for path in files.keys() {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o022, 0, "{}", path.display());
        }
    }
}

#[test]
fn a_base_that_is_missing_is_made_and_one_that_cannot_be_is_named() {
    let place = Place::new();
    own_mounts();
    let folder = place.path().join("read-only");
    fs::create_dir(&folder).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "ro", "none", folder.to_str().unwrap()]);
    let base = folder.join("x/y");
    let mut command = command("a", &place.executable(), &base);
    let line = failed(&command.output().unwrap());
    let expected = format!("cannot make folder {}: Read-only file system", folder.join("x").display());
    assert!(line.contains(&expected), "{line}");
    run("umount", &[folder.to_str().unwrap()]);
    let output = command.args(["--", "mark"]).output().unwrap();
    assert!(output.status.success() && base.join("vmm/a/root/vmm").exists(), "{output:?}");
}
