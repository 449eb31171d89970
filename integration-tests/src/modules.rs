//! Kernel modules: finding them in a package's tree and putting them in the order in which they load.
//!
//! Packages carry no `modules.dep` (it is made at installation), so the dependencies are read from the modules
//! themselves: the `depends=` entry of the ELF section `.modinfo`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bzimage::pipe_through;
use crate::error::{Context, Error, Result};
use crate::packages::{GZIP, XZ, ZSTD};
use crate::progress::Progress;

/// A module, uncompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name with `_` for `-`, as the kernel shows it.
    pub name: String,
    /// The ELF file.
    pub contents: Vec<u8>,
}

/// Finds `wanted` modules and all they depend on under `tree`, in the order in which they can be loaded.
pub fn resolve(tree: &Path, wanted: &[&str], progress: &Progress) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(tree, &mut files)?;
    let mut ordered = Vec::new();
    for name in wanted {
        add(&files, &canonical(name), &mut Vec::new(), &mut ordered, progress)?;
    }
    Ok(ordered)
}

fn add(
    files: &BTreeMap<String, PathBuf>,
    name: &str,
    above: &mut Vec<String>,
    ordered: &mut Vec<Module>,
    progress: &Progress,
) -> Result<()> {
    let problem =
        |problem: &str| Error::Image { file: format!("module {name}"), problem: problem.to_owned() };
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    if above.iter().any(|module| module == name) {
        return Err(problem("depends on itself"));
    }
    let contents = read(files.get(name).ok_or_else(|| problem("is not in the kernel package"))?, progress)?;
    let depends =
        depends(&contents).ok_or_else(|| problem("has no .modinfo section with its dependencies"))?;
    above.push(name.to_owned());
    for dependency in depends {
        add(files, &dependency, above, ordered, progress)?;
    }
    above.pop();
    ordered.push(Module { name: name.to_owned(), contents });
    Ok(())
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
    let modinfo = section(elf, b".modinfo")?;
    let list = modinfo.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="))?;
    let list = std::str::from_utf8(list).ok()?;
    Some(list.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

/// The contents of a section of a 64-bit little-endian ELF file (ELF specification, "Section Header Table").
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    const E_SHOFF: usize = 0x28;
    const E_SHNUM: usize = 0x3c;
    const E_SHSTRNDX: usize = 0x3e;
    const HEADER: usize = 64;
    const SH_OFFSET: usize = 0x18;
    const SH_SIZE: usize = 0x20;

    let quad = |at: usize| usize::try_from(u64::from_le_bytes(*elf.get(at..)?.first_chunk()?)).ok();
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?)));
    let header = |index: usize| quad(E_SHOFF)?.checked_add(index * HEADER);
    let contents = |header: usize| {
        let start = quad(header.checked_add(SH_OFFSET)?)?;
        elf.get(start..start.checked_add(quad(header.checked_add(SH_SIZE)?)?)?)
    };
    let names = contents(header(half(E_SHSTRNDX)?)?)?;
    (0..half(E_SHNUM)?).filter_map(header).find_map(|header| {
        let name_at = u32::from_le_bytes(*elf.get(header..)?.first_chunk()?) as usize;
        let name = names.get(name_at..)?.split(|byte| *byte == 0).next()?;
        (name == wanted).then(|| contents(header))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with a `.modinfo` section that names `depends`.
    fn module(depends: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let modinfo = format!("license=GPL\0depends={depends}\0name=x\0");
        let mut elf = vec![0; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf.extend_from_slice(names);
        elf.extend_from_slice(modinfo.as_bytes());
        let table = elf.len();
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&0_u16.to_le_bytes());
        for (name, start, len) in [(0_u32, 64, names.len()), (1, 64 + names.len(), modinfo.len())] {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(start as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
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
            resolve(tree.path(), wanted, &Progress::new())
                .unwrap()
                .into_iter()
                .map(|module| module.name)
                .collect()
        };
        assert_eq!(names(&["kvm-amd", "kvm"]), ["irqbypass", "kvm", "kvm_amd"]);
    }

    #[test]
    fn missing_and_circular_dependencies_are_errors() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a.ko"), module("b")).unwrap();
        fs::write(tree.path().join("b.ko"), module("a")).unwrap();
        fs::write(tree.path().join("c.ko"), module("nowhere")).unwrap();
        let error = |name: &str| resolve(tree.path(), &[name], &Progress::new()).unwrap_err().to_string();
        assert_eq!(error("a"), "module a: depends on itself");
        assert_eq!(error("c"), "module nowhere: is not in the kernel package");
        assert_eq!(error("d"), "module d: is not in the kernel package");
    }

    #[test]
    fn no_file_however_damaged_makes_the_reader_panic() {
        let good = module("a,b-c");
        assert_eq!(depends(&good).unwrap(), ["a", "b_c"]);
        for len in 0..good.len() {
            let _ = depends(&good[..len]);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = depends(&bad);
        }
    }
}
