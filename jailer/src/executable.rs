//! The copy of the monitor that runs in the jail. A copy, so that jails share no page of code: what one does to its
//! processor's caches tells nothing of another.

use std::ffi::CStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use crate::error::Error;
use crate::folders::{Folder, Owner};
use crate::undo::Undo;

/// Root's, and read by the jail's group: the monitor can execute its file, and not change it.
const MODE: u32 = 0o550;

/// The file to copy, opened once and never looked up again.
#[derive(Debug)]
pub(crate) struct Executable<'a> {
    file: File,
    meta: Metadata,
    path: &'a Path,
}

impl<'a> Executable<'a> {
    /// Opens the file that `--exec-file` names. The path is the administrator's and may lead over symbolic links.
    pub fn open(path: &'a Path) -> Result<Self, Error> {
        // Not to wait where the name leads to a FIFO.
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(path).map_err(Error::file("open executable", path))?;
        let meta = file.metadata().map_err(Error::file("look at executable", path))?;
        if !meta.is_file() || meta.mode() & 0o111 == 0 {
            return Err(Error::refused(path, "is not an executable file"));
        }
        if meta.mode() & 0o002 != 0 {
            return Err(Error::refused(path, "can be written by anybody, and is not executed therefore"));
        }
        Ok(Executable { file, meta, path })
    }

    /// Copies it into the jail's root.
    pub fn copy_to(&self, root: &Folder, name: &CStr, owner: Owner, undo: &mut Undo) -> Result<(), Error> {
        let path = root.path_of(name);
        let doing = "copy the executable to";
        let mut copy = root.make_file(name, 0, undo)?;
        let mut source = (&self.file).take(self.meta.len());
        let length = io::copy(&mut source, &mut copy).map_err(Error::file(doing, &path))?;
        let after = self.file.metadata().map_err(Error::file("look at executable", self.path))?;
        let stamp = |meta: &Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
        if length != self.meta.len() || stamp(&after) != stamp(&self.meta) {
            return Err(Error::refused(self.path, "changed while it was copied"));
        }
        // With its mode last: until then nobody can execute it.
        fchown(&copy, Some(0), Some(owner.gid))
            .and_then(|()| copy.set_permissions(Permissions::from_mode(MODE)))
            .map_err(Error::file(doing, &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_seen_to_change_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmm");
        let root = Folder { file: File::open(folder.path()).unwrap(), path: folder.path().to_owned() };
        for (name, text) in [(c"longer", "12345"), (c"shorter", "123"), (c"other", "4321")] {
            std::fs::write(&path, "1234").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            let executable = Executable::open(&path).unwrap();
            // A change of the same length is told by the time, whose steps may be as long as this.
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::fs::write(&path, text).unwrap();
            let result = executable.copy_to(&root, name, Owner { uid: 1, gid: 1 }, &mut Undo::default());
            assert!(result.unwrap_err().to_string().ends_with("changed while it was copied"), "{text}");
        }
    }
}
