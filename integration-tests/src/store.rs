//! Folders that are made once and checked against their checksums each time they are used.
//!
//! They are under `target/guest`. A folder appears there under its final name only when it is complete, and only one
//! process at a time makes any.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::error::{Context, Result};
use crate::kernel;
use crate::packages;
use crate::progress::Progress;
use crate::run;
use crate::terminal::check;
use crate::workspace;

const CHECKSUMS: &str = "SHA256SUMS";

/// How the names of folders begin that are in use only while something is made.
const TEMPORARY: [&str; 3] = [".image-", kernel::TEMPORARY, packages::TEMPORARY];

/// The folder of folders, locked.
pub struct Store {
    base: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the folder under the target folder, when no other process has it open.
    pub fn open(progress: &Progress) -> Result<Self> {
        let base = workspace::target_dir().join("guest");
        fs::create_dir_all(&base).doing(|| format!("cannot create {}", base.display()))?;
        let lock = lock(&base.join("lock"), progress)?;
        remove_leftovers(&base);
        Ok(Self { base, _lock: lock })
    }

    /// Where downloaded packages are kept.
    pub fn cache(&self) -> PathBuf {
        self.base.join("cache")
    }

    /// The folder `name`, made by `fill` unless it is there and intact. `fill` gets a folder for temporary files and the
    /// folder to fill.
    pub fn folder(
        &self,
        name: &str,
        progress: &Progress,
        fill: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = self.base.join(name);
        if is_intact(&folder) {
            return Ok(folder);
        }
        let temporary = self.temporary()?;
        let new = temporary.path().join("image");
        fs::create_dir(&new).doing(|| format!("cannot create {}", new.display()))?;
        fill(temporary.path(), &new)?;
        let list = run::output(
            Command::new("sh").args(["-c", "find . -type f -exec sha256sum {} +"]).current_dir(&new),
        )?;
        fs::write(new.join(CHECKSUMS), list).doing(|| format!("cannot write {CHECKSUMS}"))?;
        if folder.exists() {
            progress.note(&format!("{} is damaged and made again", folder.display()));
            let away = temporary.path().join("damaged");
            fs::rename(&folder, &away).doing(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::rename(&new, &folder).doing(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    fn temporary(&self) -> Result<TempDir> {
        let temporary = tempfile::Builder::new().prefix(TEMPORARY[0]).tempdir_in(&self.base);
        temporary.doing(|| format!("cannot create a folder in {}", self.base.display()))
    }
}

/// Waits until no other process makes a folder; the lock ends with the file.
fn lock(path: &Path, progress: &Progress) -> Result<File> {
    let file = File::create(path).doing(|| format!("cannot create {}", path.display()))?;
    // SAFETY: the descriptor is open for as long as the file.
    let flock = |operation| check(unsafe { libc::flock(file.as_raw_fd(), operation) });
    if flock(libc::LOCK_EX | libc::LOCK_NB).is_err() {
        let waiting = "waiting for another process that prepares the guest";
        progress
            .during(waiting, || flock(libc::LOCK_EX))
            .doing(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Removes what a process left that ended while it made a folder. Under the lock, nobody does any more.
fn remove_leftovers(base: &Path) {
    let entries =
        [base.to_owned(), base.join("cache")].into_iter().filter_map(|folder| fs::read_dir(folder).ok());
    for entry in entries.flatten().flatten() {
        let name = entry.file_name();
        if TEMPORARY.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_intact(folder: &Path) -> bool {
    let check = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", CHECKSUMS])
        .current_dir(folder)
        .output();
    folder.join(CHECKSUMS).is_file() && check.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_folder_is_intact_only_while_all_its_checksums_hold() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_intact(folder.path()));
        fs::write(folder.path().join("a"), "contents").unwrap();
        let list = run::output(Command::new("sha256sum").arg("a").current_dir(folder.path())).unwrap();
        fs::write(folder.path().join(CHECKSUMS), list).unwrap();
        assert!(is_intact(folder.path()));
        fs::write(folder.path().join("a"), "Contents").unwrap();
        assert!(!is_intact(folder.path()));
        fs::remove_file(folder.path().join("a")).unwrap();
        assert!(!is_intact(folder.path()));
    }

    #[test]
    fn a_folder_is_made_once_and_again_when_it_is_damaged() {
        let base = tempfile::tempdir().unwrap();
        let progress = Progress::new();
        let lock = lock(&base.path().join("lock"), &progress).unwrap();
        let store = Store { base: base.path().to_owned(), _lock: lock };
        let make = |contents: &'static str| {
            let fill = move |_: &Path, new: &Path| {
                fs::write(new.join("a"), contents).doing(|| "cannot write".to_owned())
            };
            store.folder("x", &progress, fill).map(|folder| fs::read_to_string(folder.join("a")).unwrap())
        };
        assert_eq!(make("first").unwrap(), "first");
        assert_eq!(make("second").unwrap(), "first");
        fs::write(base.path().join("x/a"), "damage").unwrap();
        assert_eq!(make("third").unwrap(), "third");
        let fail = |_: &Path, _: &Path| Err(Error::Package("none".to_owned()));
        assert!(store.folder("y", &progress, fail).is_err());
        assert!(!base.path().join("y").exists());
    }

    #[test]
    fn only_what_an_unfinished_preparation_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let kept = ["lock", "kernel_1", "cache/kernel.deb", "image-x"];
        let left = [".image-aaaaaa/image", "cache/.unpacked-b/boot", "cache/.download-c"];
        for path in kept.iter().chain(&left) {
            fs::create_dir_all(base.path().join(path)).unwrap();
        }
        remove_leftovers(base.path());
        assert!(kept.iter().all(|path| base.path().join(path).exists()));
        assert!(!left.iter().any(|path| base.path().join(path).exists()));
        assert!(!base.path().join(".image-aaaaaa").exists());
    }
}
