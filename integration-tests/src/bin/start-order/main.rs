//! Which functions a start of `vmm` runs, and in what order: a tool for whoever changes what `vmm` does until its guest runs.
//!
//! ```text
//! cargo run --package kindling-integration-tests --bin start-order
//! ```
//!
//! writes `vmm/start-order.ld`, a part of a linker script that puts these functions next to each other at the beginning of
//! the program's code. The kernel maps code in pieces of 64 KiB as it is needed, so that a start whose functions are
//! scattered takes more page faults and more memory; see docs/benchmarks.md. It runs the real program one instruction
//! at a time, and takes from the linker's map what each belongs to. A function whose name changes is no longer found by the
//! linker and goes where all the others are: the benchmark `startup` tells when it is time to write the file anew.

mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use kindling_api::client::{Client, Response};
use kindling_integration_tests::bare_metal::Images;
use kindling_integration_tests::error::{Context, Error, Result, chain};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::run;
use kindling_integration_tests::terminal::check;
use kindling_integration_tests::workspace::{TARGET, VMM, cargo, link_statically, root, static_target_dir};
use serde_json::json;
use trace::trace;

/// How long a guest has to do all it will, one instruction at a time.
const GUEST: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match write() {
        Ok(count) => {
            println!("vmm/start-order.ld: {count} functions");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("start-order: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<usize> {
    let progress = Progress::new();
    let images = Images::build(&progress)?;
    let folder = tempfile::tempdir().doing(|| "cannot create a folder".to_owned())?;
    let map = folder.path().join("map");
    let vmm = build(&map, &progress)?;
    let sections = Sections::read(&map)?;

    // What every start runs comes first.
    let mut addresses = Vec::new();
    let mut run = |image: &Path, company: fn(&mut Child) -> Result<()>| {
        let mut command = Command::new(&vmm);
        command.args(["run", "--memory", "128M", "--kernel"]).arg(image).stdin(Stdio::null());
        addresses.extend(progress.during("running vmm step by step", || trace(&mut command, company))?);
        Ok(())
    };
    run(&images.exit, |_| Ok(()))?;
    run(&images.mark, end)?;
    let serve = || serve(&vmm, &images.mark, folder.path());
    addresses.extend(progress.during("running vmm step by step, by its API", serve)?);

    let mut seen = BTreeSet::new();
    let mut lines = String::new();
    for address in addresses {
        if let Some(pattern) =
            sections.at(address).and_then(pattern).filter(|pattern| seen.insert(pattern.clone()))
        {
            lines.push_str(&format!("    {pattern}\n"));
        }
    }
    let script = format!(
        "/* What a start of vmm runs, in that order. Written by the tool start-order of integration-tests, for build.rs. */\n\
         SECTIONS {{\n  .text.start : {{\n{lines}  }}\n}}\nINSERT BEFORE .text;\n"
    );
    let file = root().join("vmm/start-order.ld");
    fs::write(&file, script).doing(|| format!("cannot write {}", file.display()))?;
    Ok(seen.len())
}

/// Builds `vmm` as it is released, with the linker's map.
fn build(map: &Path, progress: &Progress) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["rustc", "--quiet", "--profile", VMM.profile, "--package", VMM.package, "--bin", VMM.name]);
    link_statically(&mut command);
    command.args(["--", "-C"]).arg(format!("link-arg=-Wl,-Map={}", map.display()));
    progress.during("building vmm (static)", || run::quiet(&mut command))?;
    Ok(static_target_dir().join(TARGET).join(VMM.profile).join(VMM.name))
}

/// A start by the API, with a disk, and what the guest may have besides.
fn serve(vmm: &Path, kernel: &Path, folder: &Path) -> Result<Vec<u64>> {
    let disk = folder.join("disk");
    fs::write(&disk, [0; 4096]).doing(|| "cannot write a disk".to_owned())?;
    let socket = folder.join("api.sock");
    let client = Client::new(&socket);
    let ask = |vmm: &mut Child| {
        while client.get("/").is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
        let put = |path: &str, body| {
            let answer = client.put(path, &body).and_then(Response::success);
            answer.map(drop).map_err(|error| Error::Protocol(chain(&error)))
        };
        put("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 128}))?;
        put("/boot-source", json!({"kernel_image_path": kernel, "boot_args": "console=ttyS0"}))?;
        put("/drives/root", json!({"drive_id": "root", "is_root_device": true, "path_on_host": disk}))?;
        put("/vsock", json!({"guest_cid": 3, "uds_path": folder.join("vsock")}))?;
        put("/entropy", json!({}))?;
        put("/actions", json!({"action_type": "InstanceStart"}))?;
        end(vmm)
    };
    let mut command = Command::new(vmm);
    command.arg("--api-sock").arg(&socket).stdin(Stdio::null());
    trace(&mut command, ask)
}

/// Ends `vmm` when its guest has had its time.
fn end(vmm: &mut Child) -> Result<()> {
    std::thread::sleep(GUEST);
    // SAFETY: kill takes plain numbers. The process goes on until then, and is nobody else's.
    check(unsafe { libc::kill(vmm.id().cast_signed(), libc::SIGTERM) }).doing(|| "cannot end vmm".to_owned())
}

/// What the linker has put where: the name of each part, and its file's.
struct Sections(BTreeMap<u64, (u64, String, String)>);

impl Sections {
    /// Those of a map as LLD writes it: address, load address, size and alignment in front of `file:(section)`.
    fn read(map: &Path) -> Result<Self> {
        let text = fs::read(map).doing(|| format!("cannot read {}", map.display()))?;
        let text = String::from_utf8_lossy(&text);
        let section = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let size = u64::from_str_radix(words.nth(1)?, 16).ok()?;
            let (file, name) = words.nth(1)?.strip_suffix(')')?.rsplit_once(":(")?;
            name.starts_with(".text").then(|| (address, (size, file.to_owned(), name.to_owned())))
        };
        let sections: BTreeMap<_, _> = text.lines().filter_map(section).collect();
        if sections.is_empty() {
            return Err(Error::Protocol("the linker's map is not one of LLD's".to_owned()));
        }
        Ok(Self(sections))
    }

    /// The file and the section of the code at an address.
    fn at(&self, address: u64) -> Option<(&str, &str)> {
        let (start, (size, file, name)) = self.0.range(..=address).next_back()?;
        (address - start < *size).then_some((file, name))
    }
}

/// A linker's pattern for a section, in which there is nothing that changes with the checkout or the version of a crate.
/// None for the few that neither their name nor an archive tells apart.
fn pattern((file, section): (&str, &str)) -> Option<String> {
    if section.contains("_R") || section.contains("_ZN") || section == ".text.main" {
        return Some(format!("*({})", without_hashes(section)));
    }
    // The C library has a file for each function or two.
    let (_, name) = file.rsplit_once('/')?;
    let (archive, member) = name.strip_suffix(')')?.split_once('(')?;
    Some(format!("*{archive}:{member}({section})"))
}

/// A mangled name with `*` for what distinguishes versions: in the legacy mangling the hash at the end, `17h`, 16
/// digits and `E`; in the one of RFC 2603 what `Cs` begins and `_` ends in front of a crate's name.
fn without_hashes(section: &str) -> String {
    let (name, suffix) = match section.split_once(".llvm.") {
        Some((name, _)) => (name, ".llvm.*"),
        None => (section, ""),
    };
    if let Some((name, _)) = name.rsplit_once("17h").filter(|(_, hash)| hash.len() == 17) {
        return format!("{name}17h*{suffix}");
    }
    let mut parts = name.split("Cs");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('_') {
            Some((_, rest)) => result.push_str(&format!("Cs*_{rest}")),
            None => result.push_str(&format!("Cs{part}")),
        }
    }
    result + suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_functions_of_any_checkout() {
        for (file, section, wanted) in [
            ("vmm.o", ".text._ZN3vmm4main17h0123456789abcdefE", "*(.text._ZN3vmm4main17h*)"),
            ("vmm.o", ".text._ZN3vmm4main17h0123456789abcdefE.llvm.42", "*(.text._ZN3vmm4main17h*.llvm.*)"),
            (
                "vmm.o",
                ".text._RNvCsfLfy6EI15iL_7___rustc12___rust_alloc",
                "*(.text._RNvCs*_7___rustc12___rust_alloc)",
            ),
            ("vmm.o", ".text.main", "*(.text.main)"),
            ("/usr/lib/libc.a(malloc.o)", ".text", "*libc.a:malloc.o(.text)"),
        ] {
            assert_eq!(pattern((file, section)).as_deref(), Some(wanted));
        }
        assert_eq!(pattern(("/usr/lib/rcrt1.o", ".text")), None);
    }

    #[test]
    fn an_address_belongs_to_the_section_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let map = folder.path().join("map");
        let text = "  VMA  LMA  Size Align Out In Symbol\n\
                    1000 1000 30 16 .text\n\
                    1000 1000 10 16         /lib/a.o:(.text.one)\n\
                    1000 1000 10 1                 one\n\
                    1020 1020 10 16         /lib/a.o:(.text.two)\n\
                    2000 2000 10 16         /lib/a.o:(.rodata)\n";
        fs::write(&map, text).unwrap();
        let sections = Sections::read(&map).unwrap();
        assert_eq!(sections.at(0x100f), Some(("/lib/a.o", ".text.one")));
        assert_eq!(sections.at(0x1010), None);
        assert_eq!(sections.at(0x1020), Some(("/lib/a.o", ".text.two")));
        assert_eq!(sections.at(0x2000), None);
        fs::write(&map, "GNU ld's is another one\n").unwrap();
        assert!(Sections::read(&map).is_err());
    }
}
