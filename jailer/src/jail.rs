//! The folders of a jail, and that no more than one process lives in it.
//!
//! `<base>/<exec name>/<id>` is the jail's place on the host and `root` in it what the monitor sees as `/`. Clients put
//! disks and kernels into `root` before; those are left alone. A start holds the lock of the file `lock` beside it until
//! the monitor runs, and leaves the number of the monitor's process in the file `pid` there, where the monitor cannot
//! reach it: it tells the next start whether somebody lives in this jail.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cli::Options;
use crate::error::Error;
use crate::folders::{Folder, Owner, c_string, foreign};
use crate::sys;
use crate::undo::Undo;

/// What jailers lock, beside the jail's root. Nobody but root can open it: whoever can open a file can lock it, and so
/// keep a guest from starting.
const LOCK: &CStr = c"lock";
/// Who lives in the jail, beside its root.
const RECORD: &CStr = c"pid";
/// In it, the socket of the API, unless the monitor is told otherwise.
const RUN: &CStr = c"run";
const SOCKET: &CStr = c"firecracker.socket";
/// More than the digits of a process number.
const RECORD_MAX: u64 = 16;

/// A jail that is ready to be entered.
#[derive(Debug)]
pub(crate) struct Jail {
    /// The folder of the id.
    place: Folder,
    /// What becomes `/`.
    pub root: Folder,
    /// The executable's name in the root.
    pub name: CString,
    pid_name: CString,
}

impl Jail {
    /// Makes the folders that are missing, and removes what a monitor that has ended left of the jailer's making. Other
    /// jailers are kept out as long as `undo` lives.
    pub fn build(options: &Options, name: CString, owner: Owner, undo: &mut Undo) -> Result<Self, Error> {
        let current;
        let base = if options.chroot_base_dir.is_absolute() {
            &options.chroot_base_dir
        } else {
            let here = std::env::current_dir().map_err(Error::process("find the current folder"))?;
            current = here.join(&options.chroot_base_dir);
            &current
        };
        let id = c_string(options.id.as_bytes(), Path::new(&options.id))?;
        let place = Folder::open_or_make_all(base, owner, undo)?
            .open_or_make(&name, owner, undo)?
            .open_or_make(&id, owner, undo)?;
        lock(&place, undo)?;
        let root = place.open_or_make(c"root", owner, undo)?;
        let pid_name = c_string(&[name.as_bytes(), b".pid"].concat(), &place.path)?;
        let jail = Jail { place, root, name, pid_name };
        jail.remove_leftovers(owner)?;
        // Mounted over in the jail.
        jail.root.open_or_make(c"dev", owner, undo)?;
        let run = jail.root.open_or_make(RUN, owner, undo)?;
        jail.remove_socket(&run)?;
        run.give_to(owner, undo)?;
        jail.root.give_to(owner, undo)?;
        Ok(jail)
    }

    fn remove_leftovers(&self, owner: Owner) -> Result<(), Error> {
        if let Some(pid) = self.recorded()
            && self.lives_here(pid)?
        {
            let fault = format!("is in use: process {pid} lives in it");
            return Err(Error::refused(&self.root.path, fault));
        }
        self.place.remove_leftover(RECORD, owner)?;
        self.root.remove_leftover(&self.pid_name, owner)?;
        self.root.remove_leftover(&self.name, owner)
    }

    /// The monitor does not start where its socket is; only a monitor makes one there.
    fn remove_socket(&self, run: &Folder) -> Result<(), Error> {
        match sys::stat_at(&run.file, SOCKET) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFSOCK => {
                sys::remove_at(&run.file, SOCKET).map_err(Error::file("remove", &run.path_of(SOCKET)))
            }
            _ => Ok(()),
        }
    }

    /// The process that the last start has recorded, if that can be read.
    fn recorded(&self) -> Option<u32> {
        let file = sys::open_at(&self.place.file, RECORD, libc::O_RDONLY | libc::O_NONBLOCK, 0).ok()?;
        let mut text = String::new();
        file.take(RECORD_MAX).read_to_string(&mut text).ok()?;
        text.trim_end().parse().ok()
    }

    /// Whether a thread of a process has this jail's root for its own. The number of the process alone would not do: it may
    /// be another's by now. Nor would its first thread: that may have ended while another still waits for a disk.
    fn lives_here(&self, pid: u32) -> Result<bool, Error> {
        let proc = Path::new("/proc/self");
        fs::symlink_metadata(proc).map_err(Error::file("see who is running in", proc))?;
        let here = self.root.file.metadata().map_err(Error::file("look at folder", &self.root.path))?;
        match fs::read_dir(format!("/proc/{pid}/task")) {
            Ok(mut threads) => Ok(threads.any(|thread| match thread {
                Ok(thread) => thread_lives_in(&here, &thread.path()),
                Err(error) => !is_gone(&error),
            })),
            // Unless it is gone, somebody is there and cannot be seen.
            Err(error) => Ok(!is_gone(&error)),
        }
    }

    /// Writes down which process the monitor is, for the next start and for clients.
    pub fn record(&self, pid: u32, undo: &mut Undo) -> Result<(), Error> {
        for (folder, name) in [(&self.place, RECORD), (&self.root, self.pid_name.as_c_str())] {
            let mut file: File = folder.make_file(name, 0o644, undo)?;
            file.write_all(pid.to_string().as_bytes())
                .map_err(Error::file("write", &folder.path_of(name)))?;
        }
        Ok(())
    }
}

/// Keeps other jailers out as long as `undo` lives.
fn lock(place: &Folder, undo: &mut Undo) -> Result<(), Error> {
    let path = place.path_of(LOCK);
    let busy = || Error::refused(&place.path, "is being used by another jailer right now");
    let (file, is_new) = match place.open_or_make_file(LOCK, 0o600) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(busy()),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(Error::refused(&path, "is a symbolic link"));
        }
        Err(error) => return Err(Error::file("open", &path)(error)),
    };
    match sys::lock(&file) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(busy()),
        Err(error) => return Err(Error::file("lock", &path)(error)),
    }
    let meta = file.metadata().map_err(Error::file("look at", &path))?;
    if meta.nlink() == 0 {
        // Whoever had the lock has failed, and removed the file that it had made.
        return Err(busy());
    }
    let is_open_to_others = || (meta.mode() & 0o077 != 0).then_some("can be opened by others");
    if let Some(fault) = foreign(meta.mode(), meta.nlink(), meta.uid() == 0).or_else(is_open_to_others) {
        return Err(Error::refused(&path, fault));
    }
    undo.locked(file);
    // Not earlier: it is for whoever has the lock to remove it.
    if is_new {
        undo.made_file(&place.file, LOCK)?;
    }
    Ok(())
}

/// Whether the thread of a folder in /proc has `here` for its root, or may still be writing to what it had open there.
fn thread_lives_in(here: &Metadata, thread: &Path) -> bool {
    match fs::metadata(thread.join("root")) {
        Ok(root) => (root.dev(), root.ino()) == (here.dev(), here.ino()),
        // A thread that is ending gives up its root first, and then closes its files.
        Err(_) => match fs::read(thread.join("stat")) {
            Ok(stat) => !has_ended(&stat),
            Err(error) => !is_gone(&error),
        },
    }
}

/// Whether a thread's line in /proc (proc_pid_stat(5)) tells that it has ended, and was not waited for.
fn has_ended(stat: &[u8]) -> bool {
    // The name before the state may hold anything, parentheses as well.
    let behind_name = stat.rsplit(|byte| *byte == b')').next();
    behind_name.is_some_and(|fields| matches!(fields, [b' ', b'Z' | b'X', ..]))
}

/// Whether a file of /proc could not be read because there is no such process or thread any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// The name that the path of the executable ends in, as it was given.
pub(crate) fn executable_name(path: &Path) -> Result<CString, Error> {
    let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    match name {
        b"" => Err(Error::option("--exec-file", "must end in the name of a file")),
        b"dev" | b"run" => Err(Error::option("--exec-file", "must not be called as a folder of the jail is")),
        name => c_string(name, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_ended_when_the_state_behind_its_name_says_so() {
        assert!(has_ended(b"7 (vmm) Z 1 7 7"));
        assert!(has_ended(b"7 (vmm) X 1 7 7"));
        assert!(!has_ended(b"7 (vmm) D 1 7 7"));
        assert!(!has_ended(b"7 (a) Z 1) S 1 7 7"));
        assert!(!has_ended(b""));
    }
}
