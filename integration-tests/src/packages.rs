//! Packages of the machine's distribution: tools that are missing get installed, and what guests are made of gets
//! downloaded and unpacked without being installed.
//!
//! Debian and Ubuntu only. apt checks signatures and hashes when it downloads; files in our cache are checked again
//! against the package lists each time they are used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result, chain};
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

/// Sets networks up.
pub const IP: Tool = Tool { program: "ip", package: "iproute2" };
/// Measures networks.
pub const IPERF3: Tool = Tool { program: "iperf3", package: "iperf3" };
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
/// What clients and checks of the API run in.
pub const PYTHON: Tool = Tool { program: "python3", package: "python3" };

/// Installs the tools that are missing, if this user may; otherwise the error holds the command to run.
pub fn require(tools: &[Tool], progress: &Progress) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|tool| !in_path(tool.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let join = |name: fn(&Tool) -> &'static str| missing.iter().map(|tool| name(tool)).collect::<Vec<_>>();
    install(&join(|tool| tool.program).join(", "), &join(|tool| tool.package).join(" "), progress)
}

/// Installs packages, whose `names` are separated by spaces, if this user may; otherwise the error says that `what` is
/// missing, and holds the command to run.
pub fn install(what: &str, names: &str, progress: &Progress) -> Result<()> {
    let Some(prefix) = root_prefix() else {
        let command = format!("sudo apt-get install {names}");
        return Err(Error::Missing { what: what.to_owned(), command });
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
    find_program(program).is_ok()
}

/// The executable `program` in `PATH`.
pub fn find_program(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    places.find(|place| is_executable(place)).ok_or_else(|| Error::Package(format!("no {program} in PATH")))
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

/// Runs `work`; if the package lists do not offer a package or it cannot be downloaded, fetches the lists and runs `work`
/// again. There may be none, they may be older than what is installed, and they may name what the mirrors no longer
/// have: other versions, and another kernel's name.
pub fn with_current_lists<T>(progress: &Progress, work: impl Fn() -> Result<T>) -> Result<T> {
    match work() {
        Err(failure @ (Error::Download { .. } | Error::Unlisted(_))) => {
            let text = format!("{}; fetching the package lists", chain(&failure));
            progress.note(&text);
            update().map_err(|error| {
                progress.note(&chain(&error));
                failure
            })?;
            work()
        }
        made => made,
    }
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
    /// Looks a package up; if the package lists do not offer it, [`Error::Unlisted`].
    pub fn find(name: &str) -> Result<Self> {
        has_apt()?;
        let text = run::output(Command::new("apt-cache").args(["show", "--no-all-versions", name]));
        text.ok().and_then(|text| Self::parse(&text)).ok_or_else(|| unlisted(name))
    }

    /// Packages and the packages of libraries that they depend on, directly or through other libraries, by name; if the
    /// package lists do not offer one, [`Error::Unlisted`].
    pub fn find_with_libraries(names: &[&str]) -> Result<Vec<Self>> {
        has_apt()?;
        let mut command = Command::new("apt-cache");
        let depends = run::output(command.args(["depends", "--recurse", "--important"]).args(names));
        let depends = depends.unwrap_or_default();
        let all = with_libraries(names, &parse_recursive_depends(&depends));
        // Among them may be names that only other packages provide, which fails nothing but is reported.
        let mut command = Command::new("apt-cache");
        let text = run::output(command.args(["show", "--no-all-versions"]).args(&all)).unwrap_or_default();
        let mut packages = Self::parse_all(&text)?;
        packages.sort_by(|one, other| one.name.cmp(&other.name));
        packages.dedup();
        match names.iter().find(|name| !packages.iter().any(|package| package.name == **name)) {
            Some(name) => Err(unlisted(name)),
            None => Ok(packages),
        }
    }

    /// Reads `apt-cache show` of several packages. One that is installed in a version that no list has is shown without
    /// a hash.
    fn parse_all(text: &str) -> Result<Vec<Self>> {
        let stanzas = text.split("\n\n").filter_map(|stanza| Some((stanza, field(stanza, "Package")?)));
        stanzas.map(|(stanza, name)| Self::parse(stanza).ok_or_else(|| unlisted(&name))).collect()
    }

    /// Reads the first stanza of `apt-cache show`.
    fn parse(stanza: &str) -> Option<Self> {
        let sha256 = field(stanza, "SHA256").filter(|hash| hash.len() == 64)?;
        Some(Self { name: field(stanza, "Package")?, version: field(stanza, "Version")?, sha256 })
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
        Self::fetch_all(std::slice::from_ref(self), cache, progress)?;
        Ok(self.path_in(cache))
    }

    /// [`Package::fetch`] for several, which takes less time than one after the other.
    pub fn fetch_all(packages: &[Self], cache: &Path, progress: &Progress) -> Result<Vec<PathBuf>> {
        let missing: Vec<_> = packages.iter().filter(|package| !package.is_in(cache)).collect();
        if let [first, more @ ..] = &missing[..] {
            let what = match more.len() {
                0 => format!("{} {}", first.name, first.version),
                more => format!("{} {} and {more} more packages", first.name, first.version),
            };
            fs::create_dir_all(cache).doing(|| format!("cannot create {}", cache.display()))?;
            let folder = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(cache);
            let folder = folder.doing(|| format!("cannot create a folder in {}", cache.display()))?;
            progress
                .during(&format!("downloading {what}"), || download(&missing, folder.path()))
                .map_err(|source| Error::Download { package: what, source: Box::new(source) })?;
            missing.iter().try_for_each(|package| package.accept(folder.path(), cache))?;
        }
        Ok(packages.iter().map(|package| package.path_in(cache)).collect())
    }

    fn path_in(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}_{}.deb", self.name, self.version_in_path()))
    }

    fn is_in(&self, cache: &Path) -> bool {
        let path = self.path_in(cache);
        path.exists() && run::sha256(&path).is_ok_and(|hash| hash == self.sha256)
    }

    /// Moves the downloaded file to the cache, if it is the right one.
    fn accept(&self, folder: &Path, cache: &Path) -> Result<()> {
        let file = deb_of(&self.name, folder)?;
        let hash = run::sha256(&file)?;
        if hash != self.sha256 {
            return Err(Error::Package(format!(
                "{} {} was downloaded with SHA-256 {hash} instead of {}",
                self.name, self.version, self.sha256
            )));
        }
        let cached = self.path_in(cache);
        fs::rename(&file, &cached).doing(|| format!("cannot move {} to {}", file.display(), cached.display()))
    }
}

fn download(packages: &[&Package], folder: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    // As root, apt would switch to a user who cannot write to our folder, and warn about it.
    command.args(APT_OPTIONS).args(["download", "-o", "APT::Sandbox::User="]);
    command.args(packages.iter().map(|package| format!("{}={}", package.name, package.version)));
    run::quiet(command.current_dir(folder))
}

/// Unpacks a package file into a folder.
pub fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    run::quiet(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(folder))
}

/// The package file of `name`: its version and architecture follow after `_`, which no name holds.
fn deb_of(name: &str, folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).doing(|| format!("cannot list {}", folder.display()))?;
    let is_wanted = |entry: &fs::DirEntry| {
        let file = entry.file_name();
        file.to_str().and_then(|file| file.split_once('_')).is_some_and(|(package, _)| package == name)
    };
    let found = entries.flatten().find(is_wanted).map(|entry| entry.path());
    found.ok_or_else(|| Error::Package(format!("apt-get download left no {name} in {}", folder.display())))
}

fn has_apt() -> Result<()> {
    if in_path("apt-get") {
        return Ok(());
    }
    let text = "guests are made from Debian or Ubuntu packages, and this machine has no apt-get";
    Err(Error::Package(text.to_owned()))
}

fn unlisted(name: &str) -> Error {
    Error::Unlisted(format!("no package {name} in the package lists"))
}

/// A field of the first stanza of `apt-cache show`.
fn field(stanza: &str, name: &str) -> Option<String> {
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim().to_owned());
    stanza.lines().take_while(|line| !line.is_empty()).find_map(value)
}

fn parse_depends(text: &str) -> Vec<String> {
    let depends = |line: &str| {
        let name = line.trim().trim_start_matches('|').strip_prefix("Depends: ")?;
        (!name.starts_with('<')).then(|| name.to_owned())
    };
    text.lines().filter_map(depends).collect()
}

/// Reads `apt-cache depends --recurse`: each package, and under it what it depends on.
fn parse_recursive_depends(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut package = "";
    for line in text.lines() {
        let line = line.trim_end();
        if !line.starts_with(' ') {
            package = line;
            continue;
        }
        let line = line.trim_start().trim_start_matches('|');
        let name = line.strip_prefix("Depends: ").or_else(|| line.strip_prefix("PreDepends: "));
        // `<a>` is provided by others, `a:i386` is for another machine.
        if let Some(name) = name.filter(|name| !name.contains(['<', ':'])) {
            all.entry(package).or_default().push(name);
        }
    }
    all
}

fn with_libraries<'a>(names: &[&'a str], depends: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let is_library = |name: &str| name.starts_with("lib") || name.starts_with("zlib");
    let (mut all, mut todo) = (BTreeSet::new(), names.to_vec());
    while let Some(name) = todo.pop() {
        if all.insert(name) {
            todo.extend(depends.get(name).into_iter().flatten().filter(|name| is_library(name)));
        }
    }
    all
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
    fn a_package_that_is_installed_in_a_version_of_no_list_is_not_passed_over() {
        let hash = "a".repeat(64);
        let (listed, installed) =
            (format!("Package: a\nVersion: 1\nSHA256: {hash}\n"), "Package: b\nVersion: 2\n");
        assert_eq!(Package::parse_all(&format!("{listed}\n\n")).unwrap(), [Package::parse(&listed).unwrap()]);
        let error = Package::parse_all(&format!("{listed}\n{installed}\n")).unwrap_err();
        assert!(matches!(error, Error::Unlisted(_)), "{error}");
        assert_eq!(error.to_string(), "no package b in the package lists");
    }

    #[test]
    fn dependencies_are_listed_without_virtual_packages() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n |Depends: a\n  Depends: <b>\n";
        assert_eq!(parse_depends(text), ["linux-image-6.1.0-56-cloud-amd64", "a"]);
    }

    #[test]
    fn libraries_are_followed_and_other_packages_are_not() {
        let text = "fio\n  Depends: libaio1\n |Depends: python3\n  Depends: <libvirtual>\n    libreal\n\
                    libaio1\n  PreDepends: libc6\n  Depends: libc6:i386\npython3\n  Depends: libpython3\n\
                    libc6\n  Depends: zlib1g\n  Depends: libaio1\n";
        let all = with_libraries(&["fio"], &parse_recursive_depends(text));
        assert_eq!(all.into_iter().collect::<Vec<_>>(), ["fio", "libaio1", "libc6", "zlib1g"]);
    }

    #[test]
    fn a_package_file_is_told_from_those_of_similar_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libc6-dev_2.36_amd64.deb", "libc6_1%3a2.36_amd64.deb"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = deb_of("libc6", folder.path()).unwrap();
        assert!(found.ends_with("libc6_1%3a2.36_amd64.deb"), "{}", found.display());
        assert!(deb_of("libc", folder.path()).is_err());
    }

    #[test]
    fn a_tool_that_is_there_is_not_installed() {
        assert!(in_path("sh"));
        assert!(!in_path("no-such-program-anywhere"));
        let tool = Tool { program: "sh", package: "no-such-package" };
        require(&[tool], &Progress::new()).unwrap();
    }
}
