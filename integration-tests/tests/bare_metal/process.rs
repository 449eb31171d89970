//! A `vmm` process under test with the bare-metal guest.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kindling_integration_tests::bare_metal::Images;
use kindling_integration_tests::harness::{Console, LIFE, Process, scaled, vmm_path};
use kindling_integration_tests::landlock::is_complete;
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::run::die_with_parent;
use kindling_integration_tests::workspace::VMM;

/// Far beyond what anything here takes on a busy machine whose KVM is slow.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How much of what was printed a failed test shows.
const LINES_SHOWN: usize = 100;

/// The guest's images.
pub fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| Images::build(&Progress::new()).unwrap())
}

/// The `vmm` under test.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| vmm_path().or_else(|_| VMM.build(&Progress::new())).unwrap())
}

/// A `vmm` that is not started yet, with its three standard streams as pipes.
pub fn command(arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `vmm run` with the guest doing `scenario`, given as the words of the command line after `scenario=`.
pub fn run(scenario: &str, options: &[&str]) -> Command {
    let mut command = command(&["run", "--kernel"]);
    command.arg(&images().guest).args(["--cmdline", &format!("scenario={scenario}")]).args(options);
    command
}

/// A started `vmm`.
pub struct Vmm {
    process: Process,
    console: Console,
    errors: Console,
}

/// What is left of a `vmm` that ended.
#[derive(Debug)]
pub struct Ended {
    /// All of standard output, without carriage returns.
    pub output: String,
    /// All of standard error.
    pub errors: String,
}

impl Vmm {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        Self::start_with(command, |stdout| stdout)
    }

    /// Starts `command` with what `reader` makes of its standard output as its console.
    pub fn start_with<R: Read + Send + 'static>(
        command: &mut Command,
        reader: impl FnOnce(Option<ChildStdout>) -> Option<R>,
    ) -> Self {
        let mut child = die_with_parent(command).spawn().unwrap();
        let errors = Console::new(child.stderr.take().unwrap(), None);
        let stdin = child.stdin.take().map(|stdin| Box::new(stdin) as _);
        let console = match reader(child.stdout.take()) {
            Some(stdout) => Console::new(stdout, stdin),
            None => Console::new(std::io::empty(), stdin),
        };
        Self { process: Process::limited(child, "vmm", LIFE).unwrap(), console, errors }
    }

    /// Waits until the guest has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        if let Err(error) = self.console.wait_for(text, LIMIT) {
            panic!("{error}; the output: {}", self.console.text());
        }
    }

    /// Waits for a line of standard error that begins with `start`, and returns the rest of it.
    pub fn wait_for_error(&mut self, start: &str) -> String {
        let found = self.errors.wait_for(start, LIMIT).and_then(|_| self.errors.wait_for("\n", LIMIT));
        match found {
            Ok(rest) => String::from_utf8(rest).unwrap(),
            Err(error) => panic!("{error}; standard error: {}", self.errors.text()),
        }
    }

    /// Types `text` at the guest's console.
    pub fn write(&mut self, text: &str) {
        self.console.send(text.as_bytes()).unwrap();
    }

    /// All that the guest has printed so far.
    pub fn output(&self) -> String {
        self.console.text()
    }

    /// Closes the guest's console for input.
    pub fn close_input(&mut self) {
        self.console.close_input();
    }

    /// Sends a signal to the process.
    pub fn signal(&mut self, signal: libc::c_int) {
        self.process.signal(signal).unwrap();
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The names of the process's threads.
    pub fn threads(&self) -> Vec<String> {
        self.tasks().into_iter().map(|(name, _)| name).collect()
    }

    /// The names of the process's threads, and what `/proc` has of each.
    pub fn tasks(&self) -> Vec<(String, PathBuf)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let name = |task: &Path| std::fs::read_to_string(task.join("comm")).unwrap().trim_end().to_owned();
        tasks.map(|task| task.unwrap().path()).map(|task| (name(&task), task)).collect()
    }

    /// The processor time that the whole process has used.
    pub fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        tasks.map(|task| thread_time(&task.unwrap().path())).sum()
    }

    /// The processor time that the process's first thread has used, which serves console and signals.
    pub fn first_thread_time(&self) -> Duration {
        thread_time(format!("/proc/{0}/task/{0}", self.process.id()).as_ref())
    }

    /// Waits for the end and asserts the exit code.
    #[track_caller]
    pub fn end(self, code: i32) -> Ended {
        let (status, ended) = self.wait();
        assert_eq!(status.code(), Some(code), "{status}, {ended:#?}");
        ended
    }

    /// Waits for the end and asserts that a signal brought it about.
    #[track_caller]
    pub fn end_by(self, signal: i32) -> Ended {
        let (status, ended) = self.wait();
        assert_eq!(status.signal(), Some(signal), "{status}, {ended:#?}");
        ended
    }

    #[track_caller]
    fn wait(mut self) -> (ExitStatus, Ended) {
        match self.process.wait(LIMIT) {
            Ok(status) => {
                self.console.wait_end(LIMIT).unwrap();
                self.errors.wait_end(LIMIT).unwrap();
                (status, Ended { output: self.console.text(), errors: self.errors.text() })
            }
            Err(error) => panic!("{error}; the output: {}", self.console.text()),
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the guest's console ----\n{}", self.console.last_lines(LINES_SHOWN));
            eprintln!("---- standard error ----\n{}", self.errors.last_lines(LINES_SHOWN));
        }
    }
}

/// Starts `command`, waits for its end and asserts the exit code.
#[track_caller]
pub fn finish(command: &mut Command, code: i32) -> Ended {
    Vmm::start(command).end(code)
}

/// Starts `vmm run` and waits for the end as [`finish`] does. Where the kernel's Landlock would have it print a warning, it
/// does without.
#[track_caller]
pub fn finish_run(scenario: &str, options: &[&str], code: i32) -> Ended {
    let mut command = run(scenario, options);
    if !is_complete() {
        command.arg("--landlock=off");
    }
    finish(&mut command, code)
}

/// A filter that has the kernel do `action` for the system call with this number, and let all others pass.
pub fn filter(call: libc::c_long, action: u32) -> [libc::sock_filter; 4] {
    let instruction = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    [
        // The number of the call is the first field.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, action),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Waits until `condition` holds.
#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < scaled(LIMIT), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The processor time of a thread that has not ended, by its folder in `/proc`.
fn thread_time(task: &Path) -> Duration {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}
