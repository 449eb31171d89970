//! A root file system in an image file: busybox and some programs with their libraries, taken from packages.
//!
//! Guests find it on a disk and go on in it (`kindling.root`, see [`crate::init`]); the nested host mounts it to have
//! the programs itself. It is made once and kept ([`crate::store`]).

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::elf;
use crate::error::{Context, Error, Result};
use crate::packages::{self, Package};
use crate::progress::Progress;
use crate::run;
use crate::store::Store;

/// Names an image that is there, for programs that shall not make one themselves.
pub const VARIABLE: &str = "KINDLING_ROOT_IMAGE";

/// Raised when the contents change for the same packages and programs.
const FORMAT: u32 = 1;

/// Packages, and the programs that are taken from them.
const PROGRAMS: [(&str, &[&str]); 11] = [
    ("busybox-static", &["busybox"]),
    // busybox's shell would run what is built into it in place of these programs.
    ("dash", &["dash"]),
    ("curl", &["curl"]),
    ("e2fsprogs", &["e2fsck", "mke2fs", "mkfs.ext4", "resize2fs"]),
    ("ethtool", &["ethtool"]),
    ("fio", &["fio"]),
    ("iperf3", &["iperf3"]),
    ("iproute2", &["bridge", "ip", "ss", "tc"]),
    ("kexec-tools", &["kexec"]),
    ("socat", &["socat"]),
    ("util-linux", &["blkdiscard", "blockdev", "fallocate", "fstrim", "lsblk"]),
];

const LOADER: &str = "ld-linux-x86-64.so.2";

/// The package that has a program, for who has to install it.
pub fn package_of(program: &str) -> Option<&'static str> {
    PROGRAMS.iter().find(|(_, programs)| programs.contains(&program)).map(|(package, _)| *package)
}

/// Makes the image unless it is there, and returns its path.
pub fn prepare(progress: &Progress) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let store = Store::open(progress)?;
    let folder = packages::with_current_lists(progress, || current(&store, progress))?;
    Ok(folder.join("root.ext4"))
}

fn current(store: &Store, progress: &Progress) -> Result<PathBuf> {
    let packages = Package::find_with_libraries(&PROGRAMS.map(|(package, _)| package))?;
    let mut hasher = DefaultHasher::new();
    (FORMAT, PROGRAMS).hash(&mut hasher);
    for package in &packages {
        package.sha256.hash(&mut hasher);
    }
    let name = format!("root_{:016x}", hasher.finish());
    store.folder(&name, progress, |temporary, new| {
        let debs = Package::fetch_all(&packages, &store.cache(), progress)?;
        progress.during("making the root file system", || make(&debs, temporary, &new.join("root.ext4")))
    })
}

fn make(debs: &[PathBuf], temporary: &Path, image: &Path) -> Result<()> {
    let (packages, root) = (temporary.join("packages"), temporary.join("root"));
    debs.iter().try_for_each(|deb| packages::unpack(deb, &packages))?;
    let tree = Tree { packages: &packages, root: &root };
    tree.folders().doing(|| format!("cannot create folders in {}", root.display()))?;
    let programs = PROGRAMS.iter().flat_map(|(_, programs)| *programs);
    let programs = programs.map(|program| tree.add_program(program)).collect::<Result<Vec<_>>>()?;
    tree.add_libraries(programs)?;
    tree.add_links()?;
    write_image(&root, image)
}

/// Unpacked packages, and the root file system that is made out of them. In that, `/bin`, `/sbin`, `/lib` and `/lib64`
/// are links into `/usr`, whatever they are in the packages.
struct Tree<'a> {
    packages: &'a Path,
    root: &'a Path,
}

impl Tree<'_> {
    fn folders(&self) -> std::io::Result<()> {
        let folders = "dev etc mnt proc root run sys tmp usr/bin usr/lib/modules usr/lib64 usr/sbin";
        for folder in folders.split(' ') {
            fs::create_dir_all(self.root.join(folder))?;
        }
        for folder in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{folder}"), self.root.join(folder))?;
        }
        fs::write(self.root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(self.root.join("etc/group"), "root:x:0:\n")?;
        fs::write(self.root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")
    }

    /// Copies a file to the same place below `usr`; returns its contents.
    fn copy(&self, path: &Path) -> Result<Vec<u8>> {
        let place = path.strip_prefix(self.packages).unwrap_or(path);
        let to = self.root.join("usr").join(place.strip_prefix("usr").unwrap_or(place));
        let copied = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(path, &to));
        copied.doing(|| format!("cannot copy {} to {}", path.display(), to.display()))?;
        fs::read(&to).doing(|| format!("cannot read {}", to.display()))
    }

    fn add_program(&self, name: &str) -> Result<(String, Vec<u8>)> {
        let places =
            ["usr/sbin", "usr/bin", "sbin", "bin"].map(|folder| self.packages.join(folder).join(name));
        let found = places.iter().find(|path| is_own_file(path, self.packages));
        let found = found.ok_or_else(|| Error::Package(format!("no {name} in the packages")))?;
        Ok((name.to_owned(), self.copy(found)?))
    }

    /// Adds what the dynamic linker loads for programs.
    fn add_libraries(&self, programs: Vec<(String, Vec<u8>)>) -> Result<()> {
        let mut libraries = BTreeMap::new();
        for folder in ["usr/lib", "lib"] {
            index(&self.packages.join(folder), self.packages, &mut libraries)?;
        }
        let mut todo = programs;
        while let Some((name, contents)) = todo.pop() {
            for library in elf::needed(&contents) {
                if let Some(path) = libraries.get_mut(&library) {
                    if let Some(path) = path.take() {
                        todo.push((library, self.copy(&path)?));
                    }
                } else {
                    return Err(Error::Package(format!("no {library} in the packages, which {name} needs")));
                }
            }
        }
        Ok(())
    }

    /// Adds what packages do at their installation: the dynamic linker's well-known place, the shell, busybox's names
    /// where there is no program of that name.
    fn add_links(&self) -> Result<()> {
        let link = |target: &str, path: &str| {
            symlink(target, self.root.join(path)).doing(|| format!("cannot create the link {path}"))
        };
        link(&format!("../lib/x86_64-linux-gnu/{LOADER}"), &format!("usr/lib64/{LOADER}"))?;
        link("dash", "usr/bin/sh")?;
        let applets = run::output(Command::new(self.root.join("usr/bin/busybox")).arg("--list-full"))?;
        let applets = applets.lines().map(|path| path.strip_prefix("usr/").unwrap_or(path));
        for (folder, name) in applets.filter_map(|path| path.split_once('/')) {
            let places = ["bin", "sbin"].map(|folder| self.root.join("usr").join(folder).join(name));
            if places.iter().all(|path| fs::symlink_metadata(path).is_err()) {
                link("/bin/busybox", &format!("usr/{folder}/{name}"))?;
            }
        }
        Ok(())
    }
}

/// Whether this is a file of the packages, and no link to one of this machine.
fn is_own_file(path: &Path, packages: &Path) -> bool {
    let real = packages.canonicalize().and_then(|packages| Ok((packages, path.canonicalize()?)));
    real.is_ok_and(|(packages, path)| path.starts_with(packages) && path.is_file())
}

/// Maps the names of libraries under `folder` to their paths. Variants for newer processors are passed over.
fn index(folder: &Path, packages: &Path, libraries: &mut BTreeMap<String, Option<PathBuf>>) -> Result<()> {
    let context = || format!("cannot list {}", folder.display());
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).doing(context)? {
        let entry = entry.doing(context)?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().doing(context)?.is_dir() {
            if name != "glibc-hwcaps" {
                index(&path, packages, libraries)?;
            }
        } else if name.contains(".so") && is_own_file(&path, packages) {
            libraries.insert(name, Some(path));
        }
    }
    Ok(())
}

/// Writes a folder as a file system with its own `mke2fs`, which needs nothing of this machine, and no privileges.
fn write_image(root: &Path, image: &Path) -> Result<()> {
    let size = run::output(Command::new("du").args(["-sk", "--apparent-size"]).arg(root))?;
    let size: u64 = size.split_whitespace().next().and_then(|size| size.parse().ok()).unwrap_or(0);
    // Room for the file system's own tables and for what a guest writes.
    let size = size + size / 4 + (16 << 10);
    let mut command = Command::new(root.join("usr/lib64").join(LOADER));
    command.arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu"));
    command
        .arg(root.join("usr/sbin/mke2fs"))
        .args(["-q", "-t", "ext4", "-b", "4096", "-N", "8192", "-m", "0", "-J", "size=4"]);
    // With all tables written, a guest's kernel writes nothing that the guest did not ask for.
    command.args(["-L", "root", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    run::quiet(command.arg("-d").arg(root).arg(image).arg(format!("{size}k")))
}
