//! Kernel modules: finding them in a package's tree and putting them in the order in which they load.
//!
//! Packages carry no `modules.dep` (it is made at installation), so the dependencies are read from the modules
//! themselves: the `depends=` entry of the ELF section `.modinfo`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::bzimage::pipe_through;
use crate::elf;
use crate::error::{Context, Error, Result};
use crate::packages::{GZIP, XZ, ZSTD};
use crate::progress::Progress;

/// A module, uncompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name with `_` for `-`, as the kernel shows it.
    pub name: String,
    /// The names of all modules it needs, in the order in which they can be loaded.
    pub needs: Vec<String>,
    /// The ELF file.
    pub contents: Vec<u8>,
}

/// What `modprobe` reads of modules and what they need.
pub const DEPENDENCIES: &str = "modules.dep";

/// What `modprobe` reads of modules that are part of the kernel.
pub const BUILTIN: &str = "modules.builtin";

/// The modules of a kernel, by name.
pub struct Tree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Looks at a kernel's folder in `/lib/modules`.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        index(folder, &mut files)?;
        // A kernel without the list says that nothing is built in.
        let builtin = fs::read_to_string(folder.join(BUILTIN)).unwrap_or_default();
        let name = |line: &str| Some(canonical(Path::new(line).file_name()?.to_str()?.split_once(".ko")?.0));
        Ok(Self { files, builtin: builtin.lines().filter_map(name).collect() })
    }

    /// Whether there is such a module, or it is built in.
    pub fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// The `wanted` modules and all they need, in the order in which they can be loaded, without those that are built
    /// into the kernel.
    pub fn resolve(&self, wanted: &[&str], progress: &Progress) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in wanted {
            self.add(&canonical(name), &mut Vec::new(), &mut ordered, progress)?;
        }
        Ok(ordered)
    }

    fn add(
        &self,
        name: &str,
        above: &mut Vec<String>,
        ordered: &mut Vec<Module>,
        progress: &Progress,
    ) -> Result<()> {
        let problem =
            |problem: &str| Error::Image { file: format!("module {name}"), problem: problem.to_owned() };
        if ordered.iter().any(|module| module.name == name) || self.builtin.contains(name) {
            return Ok(());
        }
        if above.iter().any(|module| module == name) {
            return Err(problem("depends on itself"));
        }
        let file = self.files.get(name).ok_or_else(|| problem("is not in the kernel package"))?;
        let contents = read(file, progress)?;
        let depends =
            depends(&contents).ok_or_else(|| problem("has no .modinfo section with its dependencies"))?;
        above.push(name.to_owned());
        for dependency in &depends {
            self.add(dependency, above, ordered, progress)?;
        }
        above.pop();
        let mut needs: Vec<String> = Vec::new();
        for direct in ordered.iter().filter(|module| depends.contains(&module.name)) {
            for name in direct.needs.iter().chain([&direct.name]) {
                if !needs.contains(name) {
                    needs.push(name.clone());
                }
            }
        }
        ordered.push(Module { name: name.to_owned(), needs, contents });
        Ok(())
    }
}

/// The [`DEPENDENCIES`] of modules that are in one folder: what is needed last to first, as `modprobe` wants it.
pub fn dependencies(modules: &[Module]) -> String {
    let mut text = String::new();
    for Module { name, needs, .. } in modules {
        text.push_str(&format!("{name}.ko:"));
        for name in needs.iter().rev() {
            text.push_str(&format!(" {name}.ko"));
        }
        text.push('\n');
    }
    text
}

/// Maps module names to files, for every `*.ko` and `*.ko.*` under `folder`.
fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let context = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).doing(context)? {
        let entry = entry.doing(context)?;
        if entry.file_type().doing(context)?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some((name, "" | ".xz" | ".zst" | ".gz")) =
            entry.file_name().to_str().and_then(|name| name.split_once(".ko"))
        {
            files.insert(canonical(name), entry.path());
        }
    }
    Ok(())
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read(path: &Path, progress: &Progress) -> Result<Vec<u8>> {
    let contents = fs::read(path).doing(|| format!("cannot read {}", path.display()))?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => pipe_through(XZ, &["-dc"], &contents, progress),
        Some("zst") => pipe_through(ZSTD, &["-dcq"], &contents, progress),
        Some("gz") => pipe_through(GZIP, &["-dc"], &contents, progress),
        _ => Ok(contents),
    }
}

/// The modules a module says it needs, or `None` if it does not say.
fn depends(elf: &[u8]) -> Option<Vec<String>> {
    let modinfo = elf::section(elf, b".modinfo")?;
    let list = modinfo.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="))?;
    let list = std::str::from_utf8(list).ok()?;
    Some(list.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module that needs `depends`.
    fn module(depends: &str) -> Vec<u8> {
        let modinfo = format!("license=GPL\0depends={depends}\0name=x\0");
        elf::tests::file(&[(".modinfo", modinfo.as_bytes())])
    }

    fn resolve(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
        Tree::new(tree)?.resolve(wanted, &Progress::new())
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("kvm")).unwrap();
        fs::write(tree.path().join("kvm/kvm-amd.ko"), module("kvm")).unwrap();
        fs::write(tree.path().join("kvm/kvm.ko"), module("irqbypass")).unwrap();
        fs::write(tree.path().join("irqbypass.ko"), module("")).unwrap();
        fs::write(tree.path().join("unrelated.ko"), module("missing")).unwrap();
        let names = |wanted: &[&str]| -> Vec<_> {
            resolve(tree.path(), wanted).unwrap().into_iter().map(|module| module.name).collect()
        };
        assert_eq!(names(&["kvm-amd", "kvm"]), ["irqbypass", "kvm", "kvm_amd"]);
    }

    #[test]
    fn modules_that_are_built_in_are_left_out() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("ext4.ko"), module("crc-16,jbd2")).unwrap();
        fs::write(tree.path().join("jbd2.ko"), module("")).unwrap();
        fs::write(tree.path().join(BUILTIN), "kernel/lib/crc-16.ko\nkernel/net/tun.ko\n").unwrap();
        let modules = resolve(tree.path(), &["tun", "ext4"]).unwrap();
        assert_eq!(dependencies(&modules), "jbd2.ko:\next4.ko: jbd2.ko\n");
    }

    #[test]
    fn everything_a_module_needs_is_listed_with_the_first_to_load_at_the_end() {
        let tree = tempfile::tempdir().unwrap();
        for (name, depends) in [("a", "c,b"), ("b", "d"), ("c", "d"), ("d", "")] {
            fs::write(tree.path().join(format!("{name}.ko")), module(depends)).unwrap();
        }
        let text = dependencies(&resolve(tree.path(), &["a"]).unwrap());
        assert_eq!(text, "d.ko:\nc.ko: d.ko\nb.ko: d.ko\na.ko: b.ko c.ko d.ko\n");
    }

    #[test]
    fn missing_and_circular_dependencies_are_errors() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a.ko"), module("b")).unwrap();
        fs::write(tree.path().join("b.ko"), module("a")).unwrap();
        fs::write(tree.path().join("c.ko"), module("nowhere")).unwrap();
        let error = |name: &str| resolve(tree.path(), &[name]).unwrap_err().to_string();
        assert_eq!(error("a"), "module a: depends on itself");
        assert_eq!(error("c"), "module nowhere: is not in the kernel package");
        assert_eq!(error("d"), "module d: is not in the kernel package");
    }

    #[test]
    fn a_module_that_does_not_say_what_it_needs_is_told_from_one_that_needs_nothing() {
        assert_eq!(depends(&module("a,b-c")).unwrap(), ["a", "b_c"]);
        assert_eq!(depends(&module("")).unwrap(), [""; 0]);
        assert_eq!(depends(&elf::tests::file(&[(".text", b"")])), None);
    }
}
