//! Whole boots under the counting clock: `vmm` beside QEMU's machine `microvm`, and beside the floor program.
//!
//!     cargo bench --package kindling-integration-tests --bench boot [-- ROUNDS]
//!
//! Each figure is taken in a fresh nested host with one processor whose clock counts instructions, a nanosecond for
//! each: what the monitor, the host's kernel and the guest execute between the start of the process and its end. It
//! repeats to a fraction of a percent, and leaves out what only hardware has: the cost of an exit, caches, memory.
//!
//! - *Linux, boot to power-off*: the same kernel and command line, with an initial RAM file system whose only program
//!   powers the machine off. QEMU runs its smallest machine with qboot as firmware and has its PC devices turned off.
//! - *A guest that exits at once*: the `exit` image of the bare-metal guest.
//!
//! The program that measures in the host is this one. QEMU (with its libraries) is the one that emulates the host.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kindling_integration_tests::bare_metal::{FLOOR, Images};
use kindling_integration_tests::counting_host::CountingHost;
use kindling_integration_tests::cpio;
use kindling_integration_tests::error::{Context, Error, Result, chain};
use kindling_integration_tests::guest_image::GuestImage;
use kindling_integration_tests::harness::{BASE_CMDLINE, vmm_path};
use kindling_integration_tests::microvm;
use kindling_integration_tests::packages::{self, QEMU};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::{VMM, target_dir};

const ROUNDS: usize = 3;

/// The first argument of this program in the nested host; what has to be printed, the program to measure and its
/// arguments follow.
const IN_HOST: &str = "--in-host";

/// What the guest's only program prints before it powers off.
const UP: &str = "user space";

/// Several times what a host takes.
const LIMIT: Duration = Duration::from_secs(240);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some(IN_HOST) => measure(&arguments.collect::<Vec<_>>()),
        // `cargo test --all-targets` runs benchmarks, too, but without this argument.
        _ if !std::env::args().any(|argument| argument == "--bench") => Ok(()),
        _ => bench(std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS)),
    };
    if let Err(error) = result {
        eprintln!("boot: {}", chain(&error));
        std::process::exit(1);
    }
}

/// In the nested host: runs a program and prints the nanoseconds that it took.
fn measure(arguments: &[String]) -> Result<()> {
    let [expected, program, arguments @ ..] = arguments else {
        return Err(Error::Protocol("no program".to_owned()));
    };
    let start = Instant::now();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let took = start.elapsed();
    let output = output.doing(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || !text.contains(expected) {
        return Err(Error::Command {
            command: program.clone(),
            detail: format!("{}: {text}", output.status),
        });
    }
    println!("took {}", took.as_nanos());
    Ok(())
}

fn bench(rounds: usize) -> Result<()> {
    let progress = Progress::new();
    packages::require(&[QEMU], &progress)?;
    let image = match GuestImage::from_environment() {
        Some(image) => image,
        None => GuestImage::prepare(&progress)?,
    };
    let vmm = vmm_path().or_else(|_| VMM.build(&progress))?;
    let floor = FLOOR.build(&progress)?;
    let images = Images::build(&progress)?;
    let folder = tempfile::tempdir_in(target_dir()).doing(|| "cannot create a folder".to_owned())?;
    let initrd = folder.path().join("power-off.cpio");
    write_initrd(&initrd).doing(|| format!("cannot write {}", initrd.display()))?;

    let me = std::env::current_exe().doing(|| "cannot find this program".to_owned())?;
    let mut files = microvm::firmware().to_vec();
    files.extend([image.vmlinux(), initrd.clone(), images.exit.clone(), vmm.clone(), floor.clone()]);
    let qemu = packages::find_program(QEMU.program)?;
    let programs = [me.clone(), qemu.clone()];
    let host = CountingHost::new(folder.path(), &image, &programs, &files, LIMIT)?;

    let linux = [vmm_boots(&vmm, &image.vmlinux(), &initrd), qemu_boots(&qemu, &image.vmlinux(), &initrd)];
    let exit = [
        words([&vmm, "run".as_ref(), "--kernel".as_ref(), &images.exit]),
        words([&floor, &images.exit, "128".as_ref()]),
    ];
    let rows = [
        ("Linux, boot to power-off; QEMU microvm", UP, linux),
        ("a guest that exits at once; floor", "", exit),
    ];
    let mut table = String::from("| | vmm, s | reference, s | vmm / reference |\n|---|---|---|---|\n");
    for (name, expected, pair) in rows {
        let mut samples = [Vec::new(), Vec::new()];
        for round in 1..=rounds {
            for (samples, argv) in samples.iter_mut().zip(&pair) {
                let mut job = words([&me, IN_HOST.as_ref(), expected.as_ref()]);
                job.extend_from_slice(argv);
                let what =
                    format!("{name}, round {round} of {rounds}, {}", argv.first().map_or("", String::as_str));
                samples.push(progress.during(&what, || host.run(job, |output, _| took(output)))?);
            }
        }
        let [vmm, reference] = samples.map(median);
        // Writing to a string does not fail.
        let _ = writeln!(table, "| {name} | {vmm:.4} | {reference:.4} | {:.3} |", vmm / reference);
    }
    println!("{table}");
    Ok(())
}

fn took(output: &str) -> Option<Duration> {
    let line = output.lines().find_map(|line| line.strip_prefix("took ")?.trim().parse().ok());
    line.map(Duration::from_nanos)
}

fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort();
    samples.get(samples.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

fn words<const N: usize>(paths: [&Path; N]) -> Vec<String> {
    paths.map(|path| path.to_string_lossy().into_owned()).to_vec()
}

fn vmm_boots(vmm: &Path, kernel: &Path, initrd: &Path) -> Vec<String> {
    let mut argv =
        words([vmm, "run".as_ref(), "--memory".as_ref(), "128M".as_ref(), "--kernel".as_ref(), kernel]);
    argv.extend(words(["--initrd".as_ref(), initrd, "--cmdline".as_ref(), BASE_CMDLINE.as_ref()]));
    argv
}

fn qemu_boots(qemu: &Path, kernel: &Path, initrd: &Path) -> Vec<String> {
    let mut argv = words([qemu]);
    argv.extend(microvm::arguments("128M", kernel, BASE_CMDLINE));
    argv.extend(words(["-initrd".as_ref(), initrd]));
    argv
}

/// An initial RAM file system with one program: a static ELF file that prints [`UP`] and makes the system call `reboot`
/// to power off.
fn write_initrd(path: &Path) -> std::io::Result<()> {
    const ADDRESS: u32 = 0x40_0000;
    const HEADERS: u32 = 64 + 56;
    const MOVES_AND_CALLS: u32 = 20 + 2 + 20 + 2;
    let (mov_eax, mov_edx, mov_esi, mov_edi) = (0xb8, 0xba, 0xbe, 0xbf);
    let mut code = Vec::new();
    for [call, first, second, third] in [
        // write(1, text, length)
        [1, 1, ADDRESS + HEADERS + MOVES_AND_CALLS, UP.len() as u32],
        // reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF)
        [169, 0xfee1_dead, 0x2812_1969, 0x4321_fedc],
    ] {
        for (mov, value) in [(mov_eax, call), (mov_edi, first), (mov_esi, second), (mov_edx, third)] {
            code.push(mov);
            code.extend(value.to_le_bytes());
        }
        code.extend([0x0f, 0x05]); // syscall
    }
    code.extend(UP.as_bytes());

    let size = u64::from(HEADERS) + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for field in [u64::from(ADDRESS + HEADERS), 64, 0] {
        elf.extend(field.to_le_bytes()); // entry, program headers, section headers
    }
    for half in [0u16, 0, 64, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes()); // flags, then sizes and numbers of headers
    }
    elf.extend(b"\x01\0\0\0\x05\0\0\0"); // a loadable segment to read and execute: the whole file
    for field in [0, ADDRESS.into(), ADDRESS.into(), size, size, 0x1000] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend(code);

    let mut archive = cpio::Writer::new(std::fs::File::create(path)?);
    archive.folder("dev")?;
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.bytes("init", 0o755, &elf)?;
    archive.finish().map(drop)
}
