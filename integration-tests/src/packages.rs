//! Packages of the machine's distribution: tools that are missing get installed, and what guests are made of gets
//! downloaded and unpacked without being installed.
//!
//! Debian and Ubuntu only. apt checks signatures and hashes when it downloads; files in our cache are checked again
//! against the package lists each time they are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::progress::Progress;
use crate::run;

/// Waits for another apt that is at work, and for a mirror that has a weak moment.
const APT_OPTIONS: [&str; 4] = ["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"];

/// How the name of the folder begins into which a package is downloaded.
pub(crate) const TEMPORARY: &str = ".download-";

/// A program and the package it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// What is looked for in `PATH`.
    pub program: &'static str,
    /// What is installed if it is not there.
    pub package: &'static str,
}

/// The emulator under the nested host.
pub const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };
/// The decompressors of kernels and modules.
pub const XZ: Tool = Tool { program: "xz", package: "xz-utils" };
/// See [`XZ`].
pub const ZSTD: Tool = Tool { program: "zstd", package: "zstd" };
/// See [`XZ`].
pub const GZIP: Tool = Tool { program: "gzip", package: "gzip" };
/// The C++ compiler, for the fuzzing engine.
pub const CXX: Tool = Tool { program: "c++", package: "g++" };

/// Installs the tools that are missing, if this user may; otherwise the error holds the command to run.
pub fn require(tools: &[Tool], progress: &Progress) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|tool| !in_path(tool.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    let names = names.join(" ");
    let Some(prefix) = root_prefix() else {
        let what = missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
        return Err(Error::Missing { what, command: format!("sudo apt-get install {names}") });
    };
    progress.during(&format!("installing {names}"), || {
        let install = || {
            let mut command = as_root(prefix, "apt-get");
            command.args(APT_OPTIONS).args(["install", "--yes", "--no-install-recommends"]);
            command.args(names.split(' ')).env("DEBIAN_FRONTEND", "noninteractive");
            run::quiet(&mut command)
        };
        // Without new lists, the first failure says more than that there are none.
        install().or_else(|first| update().map_err(|_| first).and_then(|()| install()))
    })
}

/// Whether `program` is an executable in `PATH`.
fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| is_executable(&folder.join(program)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// What to put before a command to have it run as root: nothing, `sudo -n`, or there is no way.
fn root_prefix() -> Option<&'static [&'static str]> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return Some(&[]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output();
    sudo.is_ok_and(|output| output.status.success()).then_some(&["sudo", "-n"])
}

fn as_root(prefix: &[&str], program: &str) -> Command {
    match prefix.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// Fetches the package lists.
pub fn update() -> Result<()> {
    let command = || "sudo apt-get update".to_owned();
    let prefix = root_prefix().ok_or_else(|| Error::Missing {
        what: "a current list of packages is".to_owned(),
        command: command(),
    })?;
    run::quiet(as_root(prefix, "apt-get").args(APT_OPTIONS).arg("update"))
}

/// A package as the package lists describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The version apt would install.
    pub version: String,
    /// SHA-256 of the package file, in hexadecimal.
    pub sha256: String,
}

impl Package {
    /// Looks a package up, fetching the package lists if there are none.
    pub fn find(name: &str) -> Result<Option<Self>> {
        if !in_path("apt-get") {
            let text = "guests are made from Debian or Ubuntu packages, and this machine has no apt-get";
            return Err(Error::Package(text.to_owned()));
        }
        match Self::show(name) {
            None if !lists_are_there() => {
                update()?;
                Ok(Self::show(name))
            }
            found => Ok(found),
        }
    }

    fn show(name: &str) -> Option<Self> {
        let text = run::output(Command::new("apt-cache").args(["show", "--no-all-versions", name])).ok()?;
        Self::parse(&text)
    }

    /// Reads the first stanza of `apt-cache show`.
    fn parse(stanza: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim().to_owned());
            stanza.lines().take_while(|line| !line.is_empty()).find_map(value)
        };
        let sha256 = field("SHA256").filter(|hash| hash.len() == 64)?;
        Some(Self { name: field("Package")?, version: field("Version")?, sha256 })
    }

    /// The packages this one depends on, by name.
    pub fn depends(&self) -> Result<Vec<String>> {
        let text = run::output(Command::new("apt-cache").args(["depends", "--important", &self.name]))?;
        Ok(parse_depends(&text))
    }

    /// The version with only characters that are harmless in a file name.
    pub fn version_in_path(&self) -> String {
        let harmless = |c: char| if c.is_ascii_alphanumeric() || ".+~-".contains(c) { c } else { '_' };
        self.version.chars().map(harmless).collect()
    }

    /// The package file, from `cache` if it is there and its hash is right, else downloaded; if that fails,
    /// [`Error::Download`].
    pub fn fetch(&self, cache: &Path, progress: &Progress) -> Result<PathBuf> {
        let cached = cache.join(format!("{}_{}.deb", self.name, self.version_in_path()));
        if cached.exists() && run::sha256(&cached)? == self.sha256 {
            return Ok(cached);
        }
        fs::create_dir_all(cache).doing(|| format!("cannot create {}", cache.display()))?;
        let folder = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(cache);
        let folder = folder.doing(|| format!("cannot create a folder in {}", cache.display()))?;
        progress
            .during(&format!("downloading {} {}", self.name, self.version), || self.download(folder.path()))
            .map_err(|source| Error::Download {
                package: format!("{} {}", self.name, self.version),
                source: Box::new(source),
            })?;
        let file = only_deb(folder.path())?;
        let hash = run::sha256(&file)?;
        if hash != self.sha256 {
            return Err(Error::Package(format!(
                "{} {} was downloaded with SHA-256 {hash} instead of {}",
                self.name, self.version, self.sha256
            )));
        }
        fs::rename(&file, &cached)
            .doing(|| format!("cannot move {} to {}", file.display(), cached.display()))?;
        Ok(cached)
    }

    fn download(&self, folder: &Path) -> Result<()> {
        let mut command = Command::new("apt-get");
        // As root, apt would switch to a user who cannot write to our folder, and warn about it.
        command.args(APT_OPTIONS).args(["download", "-o", "APT::Sandbox::User="]);
        run::quiet(command.arg(format!("{}={}", self.name, self.version)).current_dir(folder))
    }
}

/// Unpacks a package file into a folder.
pub fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    run::quiet(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(folder))
}

fn only_deb(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).doing(|| format!("cannot list {}", folder.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| Error::Package(format!("apt-get download left no package in {}", folder.display())))
}

fn lists_are_there() -> bool {
    // Essential everywhere, so it is in any list.
    Package::show("base-files").is_some()
}

fn parse_depends(text: &str) -> Vec<String> {
    let depends = |line: &str| {
        let name = line.trim().trim_start_matches('|').strip_prefix("Depends: ")?;
        (!name.starts_with('<')).then(|| name.to_owned())
    };
    text.lines().filter_map(depends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stanza_describes_the_candidate() {
        let hash = "a".repeat(64);
        let text =
            format!("Package: busybox-static\nVersion: 1:1.35.0-4+b1\nSHA256: {hash}\n\nPackage: other\n");
        let package = Package::parse(&text).unwrap();
        assert_eq!(package.name, "busybox-static");
        assert_eq!(package.version_in_path(), "1_1.35.0-4+b1");
        assert_eq!(package.sha256, hash);
    }

    #[test]
    fn a_package_without_a_usable_hash_is_not_taken() {
        assert_eq!(Package::parse("Package: a\nVersion: 1\n"), None);
        assert_eq!(Package::parse("Package: a\nVersion: 1\nSHA256: 12\n"), None);
        assert_eq!(Package::parse(""), None);
    }

    #[test]
    fn dependencies_are_listed_without_virtual_packages() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n |Depends: a\n  Depends: <b>\n";
        assert_eq!(parse_depends(text), ["linux-image-6.1.0-56-cloud-amd64", "a"]);
    }

    #[test]
    fn a_tool_that_is_there_is_not_installed() {
        assert!(in_path("sh"));
        assert!(!in_path("no-such-program-anywhere"));
        let tool = Tool { program: "sh", package: "no-such-package" };
        require(&[tool], &Progress::new()).unwrap();
    }
}
