//! The folder guests are booted from: kernel in both forms, initial RAM file system, and the parts of the nested host.
//!
//! It is made once and kept ([`crate::store`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio;
use crate::error::{Context, Error, Result};
use crate::kernel::Kernel;
use crate::packages::{self, Package};
use crate::progress::Progress;
use crate::run;
use crate::store::Store;
use crate::workspace::GUEST_INIT;

/// Names a prepared folder, for programs that shall not prepare one themselves.
pub const FOLDER_VARIABLE: &str = "KINDLING_GUEST_DIR";

/// Raised when the contents of the folder change for the same packages.
const FORMAT: u32 = 6;

/// A complete folder.
#[derive(Clone, Debug)]
pub struct GuestImage {
    folder: PathBuf,
}

impl GuestImage {
    /// Makes the folder or checks the one that is there. Only one process does so at a time.
    pub fn prepare(progress: &Progress) -> Result<Self> {
        let init = GUEST_INIT.build(progress)?;
        let store = Store::open(progress)?;
        let folder = packages::with_current_lists(progress, || current(&store, progress))?;
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
        self.list("host-modules")
    }

    /// The files of a folder of ours, by name.
    fn list(&self, folder: &str) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join(folder);
        let entries = fs::read_dir(&folder).doing(|| format!("cannot list {}", folder.display()))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        Ok(files)
    }

    /// The modules that guests can load, and what `modprobe` reads of them, by their paths in the guest.
    fn guest_modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let folder = format!("lib/modules/{}", self.release()?);
        let file = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().display();
            let contents = fs::read(&path).doing(|| format!("cannot read {}", path.display()))?;
            Ok((format!("{folder}/{name}"), contents))
        };
        self.list("guest-modules")?.into_iter().map(file).collect()
    }

    /// Writes the initial RAM file system, unless the one that is there has the same contents.
    fn write_initramfs(&self, init: &Path) -> Result<()> {
        let init = fs::read(init).doing(|| format!("cannot read {}", init.display()))?;
        let busybox = self.folder.join("busybox");
        let applets = run::output(Command::new(&busybox).arg("--list-full"))?;
        let busybox = fs::read(&busybox).doing(|| format!("cannot read {}", busybox.display()))?;
        let archive = initramfs(&init, &busybox, &applets, &self.guest_modules()?)
            .doing(|| "cannot build the initramfs".to_owned())?;
        let path = self.initramfs();
        if fs::read(&path).is_ok_and(|present| present == archive) {
            return Ok(());
        }
        let partial = self.folder.join(".initramfs.cpio");
        fs::write(&partial, archive).doing(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &path).doing(|| format!("cannot create {}", path.display()))
    }
}

/// The folder for what the package lists name now, made unless it is there.
fn current(store: &Store, progress: &Progress) -> Result<PathBuf> {
    let kernel = Kernel::find()?;
    let busybox = Package::find("busybox-static")?;
    let name = format!("{}_busybox-{}_{FORMAT}", kernel.id(), busybox.version_in_path());
    let cache = store.cache();
    store.folder(&name, progress, |temporary, new| {
        kernel.install(&cache, new, progress)?;
        install_busybox(&busybox.fetch(&cache, progress)?, temporary, new)
    })
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

/// A root file system of busybox, our init and more files; `applets` are the paths busybox wants to be found under.
pub fn initramfs(
    init: &[u8],
    busybox: &[u8],
    applets: &str,
    more: &[(String, Vec<u8>)],
) -> std::io::Result<Vec<u8>> {
    let mut archive = cpio::Writer::new(Vec::with_capacity(init.len() + busybox.len() + (4 << 20)));
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
    for (path, contents) in more {
        archive.bytes(path, 0o644, contents)?;
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_holds_init_busybox_its_applets_and_modules() {
        let module = ("lib/modules/6.1/a.ko".to_owned(), b"MODULE".to_vec());
        let archive = initramfs(b"INIT", b"BUSYBOX", "bin/sh\nsbin/init\nusr/bin/[\n", &[module]).unwrap();
        let text = String::from_utf8_lossy(&archive);
        let files = ["init\0", "bin/busybox\0", "bin/sh\0", "usr/bin/[\0", "dev/console\0", "/6.1/a.ko\0"];
        for wanted in files.into_iter().chain(["INIT", "BUSYBOX", "MODULE"]) {
            assert!(text.contains(wanted), "{wanted}");
        }
        assert!(!text.contains("sbin/init"));
    }
}
