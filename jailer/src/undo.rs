//! What has to be taken back when a later step fails, so that a jail that did not come about leaves nothing.
//!
//! Everything is named by open descriptors. They lead to where it is also from inside the jail, where the paths of the
//! host mean nothing any more.

use std::ffi::{CStr, CString};
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use crate::error::Error;
use crate::sys;

/// The steps taken so far, the last one on top.
#[derive(Debug, Default)]
pub(crate) struct Undo(Vec<Step>);

#[derive(Debug)]
enum Step {
    RemoveFile(File, CString),
    RemoveFolder(File, CString),
    GiveBack { file: File, uid: u32, gid: u32, mode: u32 },
    Unmount(&'static CStr),
    LeaveCgroup(File),
    Release(File),
}

impl Undo {
    /// A file has been made.
    pub fn made_file(&mut self, folder: &File, name: &CStr) -> Result<(), Error> {
        self.0.push(Step::RemoveFile(keep(folder)?, name.to_owned()));
        Ok(())
    }

    /// A folder has been made; it is removed if it is empty by then.
    pub fn made_folder(&mut self, folder: &File, name: &CStr) -> Result<(), Error> {
        self.0.push(Step::RemoveFolder(keep(folder)?, name.to_owned()));
        Ok(())
    }

    /// The owner and mode of a file are going to be changed.
    pub fn will_own(&mut self, file: &File) -> Result<(), Error> {
        let meta = file.metadata().map_err(Error::process("look at a folder again"))?;
        let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
        self.0.push(Step::GiveBack { file: keep(file)?, uid, gid, mode });
        Ok(())
    }

    /// Something has been mounted inside the jail.
    pub fn mounted(&mut self, path: &'static CStr) {
        self.0.push(Step::Unmount(path));
    }

    /// The process has joined a cgroup, which it has to leave for that to be removed. `elsewhere` is the list of
    /// processes of another one in the same hierarchy.
    pub fn joined_cgroup(&mut self, elsewhere: File) {
        self.0.push(Step::LeaveCgroup(elsewhere));
    }

    /// A lock has been taken. It is held until all later steps are taken back, or this is dropped.
    pub fn locked(&mut self, lock: File) {
        self.0.push(Step::Release(lock));
    }

    /// Takes everything back, the last step first. What fails is left: the error that led here is the one to tell.
    pub fn run(&mut self) {
        while let Some(step) = self.0.pop() {
            let _ = match step {
                Step::RemoveFile(folder, name) => sys::remove_at(&folder, &name),
                Step::RemoveFolder(folder, name) => sys::remove_folder_at(&folder, &name),
                Step::GiveBack { file, uid, gid, mode } => fchown(&file, Some(uid), Some(gid))
                    .and_then(|()| file.set_permissions(Permissions::from_mode(mode))),
                Step::Unmount(path) => {
                    // SAFETY: the path is a string that ends in NUL.
                    sys::check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map(drop)
                }
                Step::LeaveCgroup(mut processes) => processes.write_all(b"0"),
                Step::Release(lock) => {
                    drop(lock);
                    Ok(())
                }
            };
        }
    }
}

fn keep(file: &File) -> Result<File, Error> {
    file.try_clone().map_err(Error::process("keep a folder open"))
}
