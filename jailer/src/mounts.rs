//! The mount namespace of a jail: its root, and a `/dev` that exists nowhere else.
//!
//! The root's tree of mounts is cloned by descriptor before the process leaves the host's namespace. In the new one,
//! `pivot_root` makes an empty file system the root and what was the root is unmounted; the tree is mounted on a folder of
//! that file system, and `chroot` goes there. The jail is not the root of its namespace itself because the kernel gives new user
//! namespaces, and all capabilities in them, to a process whose root is. No path of the host is looked up twice. What clients
//! mount below the root later still appears in the jail, because its mounts receive the host's; nothing goes the other
//! way. Needs Linux 5.12.

use std::ffi::{CStr, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::error::Error;
use crate::folders::{Folder, Owner};
use crate::sys::{self, check, new_file};
use crate::undo::Undo;

// linux/mount.h
const OPEN_TREE_CLONE: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A device node: its name, the rights of its owner, and its number.
type Node = (&'static CStr, u32, libc::dev_t);

const NODES: [Node; 3] = [
    (c"kvm", 0o600, libc::makedev(10, 232)),
    (c"net/tun", 0o600, libc::makedev(10, 200)),
    (c"urandom", 0o400, libc::makedev(1, 9)),
];

/// The only folder of the file system above the jail; the jail is mounted there.
const JAIL: &CStr = c"jail";

/// What the jail's file system will be, not yet attached anywhere.
#[derive(Debug)]
pub(crate) struct Mounts {
    above: File,
    root: File,
    dev: File,
}

impl Mounts {
    /// Clones the mounts of the jail's root, and makes its `/dev` and what is above it.
    pub fn prepare(root: &Folder, owner: Owner) -> Result<Self, Error> {
        let clone = || {
            let flags =
                OPEN_TREE_CLONE | (libc::O_CLOEXEC | libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as c_uint;
            // SAFETY: the path is a string that ends in NUL; the descriptor is new.
            let tree = unsafe {
                new_file(libc::syscall(libc::SYS_open_tree, root.file.as_raw_fd(), c"".as_ptr(), flags))
            }?;
            let attributes =
                MountAttr { set: MOUNT_ATTR_NOSUID, propagation: libc::MS_SLAVE, ..MountAttr::default() };
            set_attributes(&tree, &attributes)?;
            Ok(tree)
        };
        let root = clone().map_err(Error::file("clone the mounts of", &root.path))?;
        let above = above().map_err(Error::process("make the file system above the jail"))?;
        let dev = devices(owner).map_err(Error::process("make the device nodes of the jail"))?;
        Ok(Mounts { above, root, dev })
    }

    /// Moves the process into a mount namespace of its own that has nothing but these.
    pub fn enter(&self, undo: &mut Undo) -> Result<(), Error> {
        sys::unshare(libc::CLONE_NEWNS).map_err(Error::process("make a mount namespace"))?;
        self.leave_host().map_err(Error::process("leave the file systems of the host"))?;
        self.change_root().map_err(Error::process("make the jail the root"))?;
        attach(&self.dev, c"/dev").map_err(Error::process("mount /dev in the jail"))?;
        undo.mounted(c"/dev");
        Ok(())
    }

    fn leave_host(&self) -> io::Result<()> {
        let none = ptr::null();
        // SAFETY: the strings end in NUL, or are not there, as this operation allows.
        check(unsafe {
            libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, ptr::null())
        })?;
        attach(&self.above, c"/")?;
        // SAFETY: the call takes a number.
        check(unsafe { libc::fchdir(self.above.as_raw_fd()) })?;
        // The old root is put on top of the new one, and taken away again.
        // SAFETY: the paths are strings that end in NUL.
        check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
        // SAFETY: as above.
        check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }).map(drop)
    }

    fn change_root(&self) -> io::Result<()> {
        attach(&self.root, JAIL)?;
        // SAFETY: the call takes a number.
        check(unsafe { libc::fchdir(self.root.as_raw_fd()) })?;
        // SAFETY: the path is a string that ends in NUL.
        check(unsafe { libc::chroot(c".".as_ptr()) }).map(drop)
    }
}

/// A file system with nothing but a folder for the jail, read-only.
fn above() -> io::Result<File> {
    let above = file_system(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)?;
    sys::make_folder_at(&above, JAIL, 0o755)?;
    make_read_only(&above)?;
    Ok(above)
}

/// A file system with the device nodes and nothing else, read-only.
fn devices(owner: Owner) -> io::Result<File> {
    let dev = file_system(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)?;
    sys::make_folder_at(&dev, c"net", 0o755)?;
    for (name, mode, device) in NODES {
        sys::make_device_at(&dev, name, mode, device, (owner.uid, owner.gid))?;
    }
    make_read_only(&dev)?;
    Ok(dev)
}

/// A new file system in memory.
fn file_system(attributes: u64) -> io::Result<File> {
    // SAFETY: the name is a string that ends in NUL; the descriptor is new.
    let context = unsafe { new_file(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC)) }?;
    configure(&context, FSCONFIG_SET_STRING, Some((c"mode", c"0755")))?;
    configure(&context, FSCONFIG_CMD_CREATE, None)?;
    // SAFETY: the call takes numbers; the descriptor is new.
    unsafe {
        new_file(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as c_uint))
    }
}

fn make_read_only(tree: &File) -> io::Result<()> {
    set_attributes(tree, &MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })
}

fn configure(context: &File, command: c_uint, option: Option<(&CStr, &CStr)>) -> io::Result<()> {
    let (key, value) =
        option.map_or((ptr::null(), ptr::null()), |(key, value)| (key.as_ptr(), value.as_ptr()));
    // SAFETY: the strings end in NUL, or are not there where the command takes none.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) }).map(drop)
}

fn set_attributes(tree: &File, attributes: &MountAttr) -> io::Result<()> {
    let flags = (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as c_uint;
    // SAFETY: the path ends in NUL, and the kernel reads as much of the structure as it is told that there is.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Attaches a tree of mounts at `path`, whose last component is not followed if it is a symbolic link.
fn attach(tree: &File, path: &CStr) -> io::Result<()> {
    // SAFETY: the paths are strings that end in NUL.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}
