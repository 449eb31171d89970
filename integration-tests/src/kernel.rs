//! The kernel of guests and of the nested host: a stock distribution kernel, taken out of its package.

use std::fs;
use std::path::Path;

use crate::bzimage;
use crate::error::{Context, Error, Result};
use crate::modules::{self, Module};
use crate::packages::{self, Package};
use crate::progress::Progress;

/// Names another kernel package, a real one or one that depends on the current one.
pub const PACKAGE_VARIABLE: &str = "KINDLING_KERNEL_PACKAGE";

/// How the name of the folder begins in which packages are unpacked.
pub(crate) const TEMPORARY: &str = ".unpacked-";

/// What is tried without that variable: Debian's cloud kernel, Ubuntu's for virtual machines.
const META_PACKAGES: [&str; 3] = ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic"];

/// Modules the nested host loads: for its guests, for its disks, for its guests' networks.
const HOST_MODULES: [&str; 7] = ["kvm-amd", "virtio_pci", "virtio_blk", "ext4", "tun", "fuse", "loop"];

/// Modules guests can load.
const GUEST_MODULES: [&str; 9] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "virtio_rng",
    "button",
    "evdev",
    "ext4",
];

/// The packages a kernel comes in.
#[derive(Clone, Debug)]
pub struct Kernel {
    image: Package,
    /// Ubuntu keeps the modules in a package of their own.
    modules: Option<Package>,
}

impl Kernel {
    /// Finds the kernel to use.
    pub fn find() -> Result<Self> {
        let named = std::env::var(PACKAGE_VARIABLE).ok().filter(|name| !name.is_empty());
        let candidates = match &named {
            Some(name) => vec![name.as_str()],
            None => META_PACKAGES.to_vec(),
        };
        for name in &candidates {
            match Package::find(name) {
                Err(Error::Unlisted(_)) => {}
                package => return Self::resolve(package?),
            }
        }
        Err(Error::Unlisted(format!(
            "no kernel package among {}; name one in {PACKAGE_VARIABLE}",
            candidates.join(", ")
        )))
    }

    /// Follows a package without contents to the one with the kernel.
    fn resolve(package: Package) -> Result<Self> {
        let depends = package.depends()?;
        let real = depends.iter().find(|name| is_versioned(name, "linux-image-"));
        let image = match real {
            Some(name) => Package::find(name)?,
            None => package,
        };
        let modules = image.depends()?.into_iter().find(|name| is_versioned(name, "linux-modules-"));
        let modules = modules.map(|name| Package::find(&name)).transpose()?;
        Ok(Self { image, modules })
    }

    /// A name that differs between any two kernels, fit for a file name.
    pub fn id(&self) -> String {
        format!("{}_{}", self.image.name, self.image.version_in_path())
    }

    /// Downloads the packages and puts `vmlinuz`, `vmlinux`, `release`, `host-modules/` and `guest-modules/`
    /// into `folder`.
    pub fn install(&self, cache: &Path, folder: &Path, progress: &Progress) -> Result<()> {
        fs::create_dir_all(cache).doing(|| format!("cannot create {}", cache.display()))?;
        let tree = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(cache);
        let tree = tree.doing(|| format!("cannot create a folder in {}", cache.display()))?;
        let debs = [Some(&self.image), self.modules.as_ref()].into_iter().flatten();
        let debs = debs.map(|package| package.fetch(cache, progress)).collect::<Result<Vec<_>>>()?;
        progress.during(&format!("unpacking {}", self.id()), || {
            debs.iter().try_for_each(|deb| packages::unpack(deb, tree.path()))?;
            write_kernel(tree.path(), folder, progress)
        })
    }
}

/// Whether `name` is `prefix` and a version: `linux-image-6.1.0-56-cloud-amd64`, not `linux-image-virtual`.
fn is_versioned(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn write_kernel(tree: &Path, folder: &Path, progress: &Progress) -> Result<()> {
    let boot = tree.join("boot");
    let (release, path) = fs::read_dir(&boot)
        .doing(|| format!("cannot list {}", boot.display()))?
        .flatten()
        .find_map(|entry| {
            Some((entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned(), entry.path()))
        })
        .ok_or_else(|| Error::Package(format!("no vmlinuz in {}", boot.display())))?;
    let vmlinuz = fs::read(&path).doing(|| format!("cannot read {}", path.display()))?;
    let vmlinux = bzimage::extract_vmlinux(&path.display().to_string(), &vmlinuz, progress)?;

    // Where /usr is merged, the package may hold either path.
    let trees = ["lib/modules", "usr/lib/modules"].map(|modules| tree.join(modules).join(&release));
    let installed = trees.iter().find(|path| path.is_dir());
    let installed = installed.ok_or_else(|| Error::Package(format!("no modules for kernel {release}")))?;
    let all = modules::Tree::new(installed)?;

    let write = |name: &str, contents: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, contents).doing(|| format!("cannot write {}", path.display()))
    };
    for name in ["host-modules", "guest-modules"] {
        let path = folder.join(name);
        fs::create_dir(&path).doing(|| format!("cannot create {}", path.display()))?;
    }
    for (position, Module { name, contents, .. }) in all.resolve(&HOST_MODULES, progress)?.iter().enumerate()
    {
        write(&format!("host-modules/{position:02}-{name}.ko"), contents)?;
    }
    let (there, missing): (Vec<&str>, Vec<&str>) = GUEST_MODULES.into_iter().partition(|name| all.has(name));
    if !missing.is_empty() {
        progress.note(&format!(
            "{release} has no modules {}: tests that load them will fail",
            missing.join(", ")
        ));
    }
    let guest = all.resolve(&there, progress)?;
    for Module { name, contents, .. } in &guest {
        write(&format!("guest-modules/{name}.ko"), contents)?;
    }
    write(&format!("guest-modules/{}", modules::DEPENDENCIES), modules::dependencies(&guest).as_bytes())?;
    let builtin = fs::read(installed.join(modules::BUILTIN)).unwrap_or_default();
    write(&format!("guest-modules/{}", modules::BUILTIN), &builtin)?;
    write("vmlinuz", &vmlinuz)?;
    write("vmlinux", &vmlinux)?;
    write("release", release.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_version_are_real_kernels() {
        assert!(is_versioned("linux-image-6.1.0-56-cloud-amd64", "linux-image-"));
        assert!(!is_versioned("linux-image-virtual", "linux-image-"));
        assert!(!is_versioned("linux-base", "linux-image-"));
    }
}
