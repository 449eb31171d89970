//! A nested host whose clock counts instructions, for benchmarks: one emulated processor, a fresh machine for each program.
//!
//! A nanosecond of its clock is an instruction of whatever runs in it: monitor, kernel of the host, guest. Only while
//! nothing runs does it follow this machine's clock. In some of these hosts a guest hangs for good, because QEMU delivers an
//! interrupt twice (docs/roadmap.md): the more interrupts, the more likely. So each has a time limit, and more than one host may
//! have to be started.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cpio;
use crate::error::{Context, Error, Result};
use crate::guest_image::GuestImage;
use crate::harness::Process;
use crate::job::{JOB_PATH, Job};
use crate::nested::{COMMAND_LINE, CPU, add_file};
use crate::packages::QEMU;
use crate::run::{self, die_with_parent};

/// `sleep=on`: with `off` more hosts hang.
const CLOCK: [&str; 4] = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on"];

/// How many hosts a program gets.
const ATTEMPTS: usize = 5;

/// This machine's programs before those of busybox, which know less.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What all hosts have in common.
pub struct CountingHost {
    folder: PathBuf,
    image: GuestImage,
    files: PathBuf,
    limit: Duration,
}

impl CountingHost {
    /// Prepares hosts that have `files`, and `programs` with their libraries, under the same paths; `folder` is for
    /// temporary files. A host that has not ended after `limit`, several times what it should take, is taken to hang.
    pub fn new(
        folder: &Path,
        image: &GuestImage,
        programs: &[PathBuf],
        files: &[PathBuf],
        limit: Duration,
    ) -> Result<Self> {
        let mut all: Vec<PathBuf> = programs.iter().chain(files).cloned().collect();
        for program in programs {
            all.extend(libraries(program)?);
        }
        all.sort();
        all.dedup();
        let path = folder.join("files.cpio");
        let mut archive = cpio::Writer::new(BufWriter::new(create(&path)?));
        let mut done = Vec::new();
        for path in &all {
            add_file(&mut archive, path, &mut done)?;
        }
        archive.finish().doing(|| format!("cannot write {}", path.display()))?;
        Ok(Self { folder: folder.to_owned(), image: image.clone(), files: path, limit })
    }

    /// Runs a program in a fresh host and returns what `read` makes of what it printed: all, or if the host hung or broke,
    /// what came before. While that is nothing, another host runs it, with the arguments that `read` has added.
    pub fn run<T>(
        &self,
        mut argv: Vec<String>,
        mut read: impl FnMut(&str, &mut Vec<String>) -> Option<T>,
    ) -> Result<T> {
        let mut output = String::new();
        for attempt in 1..=ATTEMPTS {
            output = self.attempt(&argv, attempt)?;
            if let Some(result) = read(&output, &mut argv) {
                return Ok(result);
            }
        }
        Err(Error::Protocol(format!("no result after {ATTEMPTS} hosts; the last one printed {output:?}")))
    }

    fn attempt(&self, argv: &[String], attempt: usize) -> Result<String> {
        let initrd = self.initrd(argv)?;
        let output = self.folder.join("output");
        let mut command = Command::new(QEMU.program);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35"]);
        command.args(CLOCK).args(["-cpu", CPU, "-smp", "1", "-m", "2048M"]);
        command.arg("-kernel").arg(self.image.vmlinuz()).arg("-initrd").arg(initrd);
        // The kernel's console, the job's standard streams, init's reports.
        let mut command_line = format!("{COMMAND_LINE} quiet");
        if attempt > 1 {
            // Nobody reads it. It moves everything that follows, or the host could hang at the same instruction again.
            command_line.push_str(&format!(" kindling.attempt={attempt}"));
        }
        command.args(["-append", &command_line, "-serial", "null", "-serial", "stdio", "-serial", "null"]);
        command.stdin(Stdio::null()).stdout(create(&output)?).stderr(Stdio::null());
        let child =
            die_with_parent(&mut command).spawn().doing(|| format!("cannot start {}", QEMU.program))?;
        match Process::new(child, "the nested host").wait(self.limit) {
            Ok(_) | Err(Error::Timeout { .. }) => {}
            Err(error) => return Err(error),
        }
        std::fs::read_to_string(&output).doing(|| format!("cannot read {}", output.display()))
    }

    /// The basic file system, the files and the job, one archive after the other.
    fn initrd(&self, argv: &[String]) -> Result<PathBuf> {
        let modules = self.image.host_modules()?.into_iter().map(PathBuf::into_os_string).collect();
        let env = vec![("PATH".into(), SEARCH_PATH.into())];
        let job = Job { modules, argv: argv.iter().map(Into::into).collect(), env };
        let path = self.folder.join("host.cpio");
        let mut out = BufWriter::new(create(&path)?);
        for part in [&self.image.initramfs(), &self.files] {
            let copied = File::open(part).and_then(|mut part| io::copy(&mut part, &mut out));
            copied.doing(|| format!("cannot copy {}", part.display()))?;
        }
        let mut archive = cpio::Writer::new(out);
        let mut done = Vec::new();
        for module in self.image.host_modules()? {
            add_file(&mut archive, &module, &mut done)?;
        }
        let written = archive.bytes(JOB_PATH, 0o600, &job.to_bytes()?).and_then(|()| archive.finish());
        written.doing(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).doing(|| format!("cannot create {}", path.display()))
}

/// In such a host: has KVM put a guest's processor that halts to sleep at once. It would look for something to do for up to
/// 200 µs, on the only processor there is.
pub fn stop_polling() -> Result<()> {
    const TIME: &str = "/sys/module/kvm/parameters/halt_poll_ns";
    std::fs::write(TIME, "0").doing(|| format!("cannot write {TIME}"))
}

/// What the dynamic linker loads for `program`, itself included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = run::output(Command::new("ldd").arg(program))?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(listed.lines().filter_map(path).collect())
}
