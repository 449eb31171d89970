//! Folders on the way to the jail: opened one below the other, each from the descriptor of the one above, and trusted
//! only when nobody but root and the jail's own user can change what is in them.

use std::ffi::{CStr, CString};
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use crate::error::Error;
use crate::sys;
use crate::undo::Undo;

/// Mode of the folders that lead to a jail.
const ON_THE_WAY: u32 = 0o755;

/// Whom the monitor runs as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// An open folder and what it is called in messages.
#[derive(Debug)]
pub(crate) struct Folder {
    pub file: File,
    pub path: PathBuf,
}

impl Folder {
    /// The folder of an absolute path without `..`, whose missing components are made.
    pub fn open_or_make_all(path: &Path, owner: Owner, undo: &mut Undo) -> Result<Self, Error> {
        let root = Path::new("/");
        let file = File::open(root).map_err(Error::file("open folder", root))?;
        let mut folder = Folder { file, path: root.to_owned() }.trusted(owner)?;
        for component in path.components() {
            if let Component::Normal(name) = component {
                folder = folder.open_or_make(&c_string(name.as_bytes(), path)?, owner, undo)?;
            }
        }
        Ok(folder)
    }

    /// The folder `name` in this one, which is made if it is not there.
    pub fn open_or_make(&self, name: &CStr, owner: Owner, undo: &mut Undo) -> Result<Self, Error> {
        let path = self.path_of(name);
        match sys::make_folder_at(&self.file, name, ON_THE_WAY) {
            Ok(()) => undo.made_folder(&self.file, name)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::file("make folder", &path)(error)),
        }
        let file = match sys::open_at(&self.file, name, libc::O_RDONLY | libc::O_DIRECTORY, 0) {
            Ok(file) => file,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
                return Err(Error::refused(&path, "is not a folder (a symbolic link is none, either)"));
            }
            Err(error) => return Err(Error::file("open folder", &path)(error)),
        };
        Folder { file, path }.trusted(owner)
    }

    /// The folder itself, if nobody can change it but those who may.
    fn trusted(self, owner: Owner) -> Result<Self, Error> {
        let meta = self.file.metadata().map_err(Error::file("look at folder", &self.path))?;
        let has_acl = sys::has_acl(&self.file)
            .map_err(Error::file("look for an access control list of folder", &self.path))?;
        match distrust(&meta, has_acl, owner) {
            Some(fault) => Err(Error::refused(&self.path, fault)),
            None => Ok(self),
        }
    }

    /// Gives the folder to the jail's user, and to nobody else.
    pub fn give_to(&self, owner: Owner, undo: &mut Undo) -> Result<(), Error> {
        undo.will_own(&self.file)?;
        fchown(&self.file, Some(owner.uid), Some(owner.gid))
            .and_then(|()| self.file.set_permissions(Permissions::from_mode(0o700)))
            .map_err(Error::file("change the owner of", &self.path))
    }

    /// The path of `name` in this folder.
    pub fn path_of(&self, name: &CStr) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
    }

    /// Removes a file that an earlier run has left: a plain one with one name. Anything else that is called so is
    /// refused, because it is not ours.
    pub fn remove_leftover(&self, name: &CStr, owner: Owner) -> Result<(), Error> {
        let path = self.path_of(name);
        let stat = match sys::stat_at(&self.file, name) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::file("look at", &path)(error)),
        };
        match foreign(stat.st_mode, stat.st_nlink, owner.trusts(stat.st_uid)) {
            Some(fault) => Err(Error::refused(&path, fault)),
            None => sys::remove_at(&self.file, name).map_err(Error::file("remove", &path)),
        }
    }

    /// Opens the file `name`, or makes it with `mode`; tells whether it is new. `NotFound` if it was there at first, and
    /// then was not.
    pub fn open_or_make_file(&self, name: &CStr, mode: u32) -> io::Result<(File, bool)> {
        match sys::open_at(&self.file, name, libc::O_RDONLY | libc::O_CREAT | libc::O_EXCL, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Not to wait where the name is that of a FIFO.
                let flags = libc::O_RDONLY | libc::O_NONBLOCK;
                sys::open_at(&self.file, name, flags, 0).map(|file| (file, false))
            }
            result => result.map(|file| (file, true)),
        }
    }

    /// Makes the file `name`, which must not be there, for writing. `mode` is what it gets at once.
    pub fn make_file(&self, name: &CStr, mode: u32, undo: &mut Undo) -> Result<File, Error> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = sys::open_at(&self.file, name, flags, mode)
            .map_err(Error::file("make file", &self.path_of(name)))?;
        undo.made_file(&self.file, name)?;
        Ok(file)
    }
}

impl Owner {
    fn trusts(self, uid: u32) -> bool {
        uid == 0 || uid == self.uid
    }
}

/// Why a folder cannot be trusted, if so. One that is sticky may be written by others: they cannot rename or remove what
/// is not theirs, and what they put there is looked at in turn.
fn distrust(meta: &Metadata, has_acl: bool, owner: Owner) -> Option<String> {
    let mode = meta.mode() & 0o7777;
    // With an access control list, the group's bits are the most that any user or group in it gets.
    let is_group_trusted = !has_acl && (meta.gid() == 0 || meta.gid() == owner.gid);
    let others = if is_group_trusted { 0o002 } else { 0o022 };
    if !owner.trusts(meta.uid()) {
        Some(format!("belongs to user {}, neither root nor the user of --uid", meta.uid()))
    } else if mode & 0o1000 == 0 && mode & others != 0 {
        let list = if has_acl { ", with an access control list" } else { "" };
        Some(format!("can be changed by others (mode {mode:04o}{list})"))
    } else {
        None
    }
}

/// Why what is called as a file of an earlier run is none, if so: that is a plain file with one name.
pub(crate) fn foreign(mode: u32, links: u64, is_owner_trusted: bool) -> Option<&'static str> {
    match mode & libc::S_IFMT {
        libc::S_IFREG if links > 1 => Some("is a hard link"),
        libc::S_IFREG if !is_owner_trusted => Some("belongs to another user"),
        libc::S_IFREG => None,
        libc::S_IFLNK => Some("is a symbolic link"),
        _ => Some("is in the way"),
    }
}

/// Bytes as a string for system calls; they have no NUL if they came from the command line.
pub(crate) fn c_string(bytes: &[u8], path: &Path) -> Result<CString, Error> {
    CString::new(bytes).map_err(|_| Error::refused(path, "holds a NUL"))
}
