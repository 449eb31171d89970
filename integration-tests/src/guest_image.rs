//! The folder guests are booted from: kernel in both forms, initial RAM file system, and the parts of the nested host.
//!
//! It is made once under `target/guest` and checked against its checksums each time it is used. A folder appears there
//! under its final name only when it is complete.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio;
use crate::error::{Context, Error, Result, chain};
use crate::kernel::{self, Kernel};
use crate::packages::{self, Package};
use crate::progress::Progress;
use crate::run;
use crate::terminal::check;
use crate::workspace::{self, GUEST_INIT};

/// Names a prepared folder, for programs that shall not prepare one themselves.
pub const FOLDER_VARIABLE: &str = "KINDLING_GUEST_DIR";

/// Raised when the contents of the folder change for the same packages.
const FORMAT: u32 = 2;

const CHECKSUMS: &str = "SHA256SUMS";

/// How the names of folders begin that are in use only while an image is prepared.
const TEMPORARY: [&str; 3] = [".image-", kernel::TEMPORARY, packages::TEMPORARY];

/// A complete folder.
#[derive(Clone, Debug)]
pub struct GuestImage {
    folder: PathBuf,
}

impl GuestImage {
    /// Makes the folder or checks the one that is there. Only one process does so at a time.
    pub fn prepare(progress: &Progress) -> Result<Self> {
        let base = workspace::target_dir().join("guest");
        fs::create_dir_all(&base).doing(|| format!("cannot create {}", base.display()))?;
        let init = GUEST_INIT.build(progress)?;
        let _lock = lock(&base.join("lock"), progress)?;
        remove_leftovers(&base);
        let folder = match current(&base, progress) {
            Err(failure @ Error::Download { .. }) => {
                // The lists may name what the mirrors no longer have: other versions, and another kernel's name.
                let text = format!("{}; fetching the package lists", chain(&failure));
                progress.note(&text);
                packages::update().map_err(|error| {
                    progress.note(&chain(&error));
                    failure
                })?;
                current(&base, progress)?
            }
            made => made?,
        };
        let image = Self { folder };
        image.write_initramfs(&init)?;
        Ok(image)
    }

    /// A folder that is known to be complete.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder named by `$KINDLING_GUEST_DIR`, if that is set.
    pub fn from_environment() -> Option<Self> {
        std::env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()).map(Self::at)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The kernel as an ELF file.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The kernel as a bzImage.
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initial RAM file system of guests.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }

    /// The kernel's release, as `uname -r` prints it in the guest.
    pub fn release(&self) -> Result<String> {
        let path = self.folder.join("release");
        fs::read_to_string(&path).doing(|| format!("cannot read {}", path.display()))
    }

    /// Modules for the nested host, in the order in which they load.
    pub fn host_modules(&self) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join("host-modules");
        let entries = fs::read_dir(&folder).doing(|| format!("cannot list {}", folder.display()))?;
        let mut modules: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        modules.sort();
        Ok(modules)
    }

    /// Writes the initial RAM file system, unless the one that is there has the same contents.
    fn write_initramfs(&self, init: &Path) -> Result<()> {
        let init = fs::read(init).doing(|| format!("cannot read {}", init.display()))?;
        let busybox = self.folder.join("busybox");
        let applets = run::output(Command::new(&busybox).arg("--list-full"))?;
        let busybox = fs::read(&busybox).doing(|| format!("cannot read {}", busybox.display()))?;
        let archive =
            initramfs(&init, &busybox, &applets).doing(|| "cannot build the initramfs".to_owned())?;
        let path = self.initramfs();
        if fs::read(&path).is_ok_and(|present| present == archive) {
            return Ok(());
        }
        let partial = self.folder.join(".initramfs.cpio");
        fs::write(&partial, archive).doing(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &path).doing(|| format!("cannot create {}", path.display()))
    }
}

/// Removes what a process left that ended while it prepared a folder. Under the lock, nobody does any more.
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

/// The folder for what the package lists name now, made unless it is there.
fn current(base: &Path, progress: &Progress) -> Result<PathBuf> {
    let kernel = Kernel::find()?;
    let busybox = Package::find("busybox-static")?
        .ok_or_else(|| Error::Package("no package busybox-static".to_owned()))?;
    let folder = base.join(format!("{}_busybox-{}_{FORMAT}", kernel.id(), busybox.version_in_path()));
    if !is_intact(&folder) {
        make(base, &folder, &kernel, &busybox, progress)?;
    }
    Ok(folder)
}

/// Waits until no other process prepares a folder; the lock ends with the file.
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

fn is_intact(folder: &Path) -> bool {
    let check = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", CHECKSUMS])
        .current_dir(folder)
        .output();
    folder.join(CHECKSUMS).is_file() && check.is_ok_and(|output| output.status.success())
}

fn make(base: &Path, folder: &Path, kernel: &Kernel, busybox: &Package, progress: &Progress) -> Result<()> {
    let cache = base.join("cache");
    fs::create_dir_all(&cache).doing(|| format!("cannot create {}", cache.display()))?;
    let temporary = tempfile::Builder::new().prefix(TEMPORARY[0]).tempdir_in(base);
    let temporary = temporary.doing(|| format!("cannot create a folder in {}", base.display()))?;
    let new = temporary.path().join("image");
    fs::create_dir(&new).doing(|| format!("cannot create {}", new.display()))?;
    kernel.install(&cache, &new, progress)?;
    install_busybox(&busybox.fetch(&cache, progress)?, temporary.path(), &new)?;

    let list = run::output(
        Command::new("sh").args(["-c", "find . -type f -exec sha256sum {} +"]).current_dir(&new),
    )?;
    fs::write(new.join(CHECKSUMS), list).doing(|| format!("cannot write {CHECKSUMS}"))?;
    if folder.exists() {
        progress.note(&format!("{} is damaged and made again", folder.display()));
        let away = temporary.path().join("damaged");
        fs::rename(folder, &away).doing(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(&new, folder).doing(|| format!("cannot create {}", folder.display()))
}

fn install_busybox(deb: &Path, temporary: &Path, folder: &Path) -> Result<()> {
    let tree = temporary.join("busybox");
    packages::unpack(deb, &tree)?;
    let places = [tree.join("bin/busybox"), tree.join("usr/bin/busybox")];
    let found = places.iter().find(|path| path.is_file());
    let found = found.ok_or_else(|| Error::Package(format!("no busybox in {}", deb.display())))?;
    fs::copy(found, folder.join("busybox")).doing(|| format!("cannot copy {}", found.display()))?;
    Ok(())
}

/// A root file system of busybox and our init; `applets` are the paths busybox wants to be found under.
pub fn initramfs(init: &[u8], busybox: &[u8], applets: &str) -> std::io::Result<Vec<u8>> {
    let mut archive = cpio::Writer::new(Vec::with_capacity(init.len() + busybox.len() + (1 << 20)));
    for folder in ["proc", "sys", "dev", "tmp", "run", "root", "mnt"] {
        archive.folder(folder)?;
    }
    // The kernel opens /dev/console for init before there is a devtmpfs.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.char_device("dev/null", 0o666, 1, 3)?;
    archive.bytes("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.bytes("etc/group", 0o644, b"root:x:0:\n")?;
    archive.bytes("init", 0o755, init)?;
    archive.bytes("bin/busybox", 0o755, busybox)?;
    for path in applets.lines().filter(|path| !matches!(*path, "" | "init" | "sbin/init" | "bin/busybox")) {
        archive.symlink(path, "/bin/busybox")?;
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_file_system_holds_init_busybox_and_its_applets() {
        let archive = initramfs(b"INIT", b"BUSYBOX", "bin/sh\nsbin/init\nusr/bin/[\n").unwrap();
        let text = String::from_utf8_lossy(&archive);
        for wanted in
            ["init\0", "INIT", "bin/busybox\0", "BUSYBOX", "bin/sh\0", "usr/bin/[\0", "dev/console\0"]
        {
            assert!(text.contains(wanted), "{wanted}");
        }
        assert!(!text.contains("sbin/init"));
    }
}
