//! A jailer under test: in a folder of its own, with the probe in the monitor's place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers fail as the tests do")]
#![allow(dead_code, reason = "no test binary uses all of them")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::workspace::JAIL_PROBE;
use serde_json::Value;
use tempfile::TempDir;

/// Whom jails run as.
pub const UID: u32 = 54_321;
pub const GID: u32 = 54_322;
/// Somebody else.
pub const STRANGER: u32 = 54_999;

/// Far beyond what anything here takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The static program that reports what it finds in a jail.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| JAIL_PROBE.build(&Progress::new()).unwrap())
}

/// A folder of a test's own, with an executable and a place for jails.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self::with(probe())
    }

    /// With a copy of another program as the executable.
    pub fn with(program: &Path) -> Self {
        // SAFETY: the call takes nothing and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        assert!(root, "tests of the jailer need root, as the jailer does: run them as root");
        let folder = tempfile::Builder::new().prefix("jailer-test-").tempdir().unwrap();
        let place = Place { folder };
        copy(program, &place.executable());
        fs::set_permissions(place.executable(), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The file that --exec-file names.
    pub fn executable(&self) -> PathBuf {
        self.path().join("vmm")
    }

    /// The folder that --chroot-base-dir names.
    pub fn base(&self) -> PathBuf {
        self.path().join("jails")
    }

    /// The root of the jail with the id `a`.
    pub fn root(&self) -> PathBuf {
        self.base().join("vmm/a/root")
    }

    /// Makes the jail's root as a client does, before the jailer runs.
    pub fn make_root(&self) -> PathBuf {
        fs::create_dir_all(self.root()).unwrap();
        self.root()
    }

    /// A jailer with the id `a` and these options before `--`; the probe is to report to standard output.
    pub fn jailer(&self, options: &[impl AsRef<OsStr>]) -> Command {
        self.jailer_for(options, &["report"])
    }

    /// The same with what comes behind `--`.
    pub fn jailer_for(&self, options: &[impl AsRef<OsStr>], arguments: &[impl AsRef<OsStr>]) -> Command {
        self.jailer_as(UID, options, arguments)
    }

    /// The same for another user.
    pub fn jailer_as(
        &self,
        uid: u32,
        options: &[impl AsRef<OsStr>],
        arguments: &[impl AsRef<OsStr>],
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jailer"));
        command.args(["--id", "a", "--uid", &uid.to_string(), "--gid", &GID.to_string()]);
        command.arg("--exec-file").arg(self.executable()).arg("--chroot-base-dir").arg(self.base());
        command.args(options).arg("--").args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a jailer that has to fail and leave everything as it was, and returns its line on standard error.
    #[track_caller]
    pub fn refused(&self, options: &[impl AsRef<OsStr>]) -> String {
        let before = self.listing();
        let line = failed(&self.jailer(options).output().unwrap());
        assert_eq!(self.listing(), before, "{line}");
        line
    }

    /// Every file of the place: kind, owner, links, and a hash of what is in it.
    pub fn listing(&self) -> BTreeMap<PathBuf, String> {
        listing(self.path())
    }
}

impl Drop for Place {
    /// Ends whoever lives in one of its jails still: has a folder of the place as the root.
    fn drop(&mut self) {
        let name = self.path().file_name().and_then(OsStr::to_str).unwrap();
        let lives_here = |process: &Path| {
            let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            mounts.lines().any(|mount| {
                let fields: Vec<&str> = mount.split(' ').collect();
                fields[3].contains(name) && fields[4] == "/"
            })
        };
        for process in fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()) {
            let pid = process.file_name().and_then(OsStr::to_str).and_then(|name| name.parse().ok());
            if let Some(pid) = pid
                && lives_here(&process)
            {
                // SAFETY: the call takes numbers. The process is the test's.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                wait(|| !lives_here(&process));
            }
        }
    }
}

/// A jailer with nothing but what it needs.
pub fn command(id: &str, executable: &Path, base: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jailer"));
    command.args(["--id", id, "--uid", &UID.to_string(), "--gid", &GID.to_string(), "--exec-file"]);
    command.arg(executable).arg("--chroot-base-dir").arg(base).stdin(Stdio::null());
    command
}

/// The one line of a jailer that failed with exit code 1.
#[track_caller]
pub fn failed(output: &Output) -> String {
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(line.starts_with("jailer: ") && line.ends_with('\n') && line.lines().count() == 1, "{line:?}");
    line
}

/// Every file below a folder, and the folder itself: kind, mode, owner, links, and a hash of what is in it.
pub fn listing(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut add = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        let mut hasher = DefaultHasher::new();
        if meta.is_file() {
            fs::read(path).unwrap().hash(&mut hasher);
        } else if meta.is_symlink() {
            fs::read_link(path).unwrap().hash(&mut hasher);
        }
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let line = format!(
            "{:o} {}:{} {links} {} {:x}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.rdev(),
            hasher.finish()
        );
        files.insert(path.to_owned(), line);
    };
    add(folder);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            add(&entry.path());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    files
}

/// A jailed probe that has reported and waits.
pub struct Jailed {
    pub pid: u32,
    pub report: Value,
    /// Unless it was left behind by its jailer.
    child: Option<Child>,
    input: Option<ChildStdin>,
    left_behind: bool,
}

impl Jailed {
    /// Starts a jailer that becomes the probe itself.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let report = serde_json::from_str(&line);
        let report = report.unwrap_or_else(|_| panic!("{line:?}, {:?}", child.wait()));
        Jailed { pid: child.id(), report, child: Some(child), input, left_behind: false }
    }

    /// Starts a jailer that leaves the probe behind, whose report becomes the file `report` of the jail.
    #[track_caller]
    pub fn detached(place: &Place, options: &[&str]) -> Self {
        // The output must not be a pipe that the probe keeps open.
        let status = place.jailer_for(options, &["/report"]).status().unwrap();
        assert_eq!(status.code(), Some(0));
        let pid = fs::read_to_string(place.root().join("vmm.pid")).unwrap().parse().unwrap();
        let report = place.root().join("report");
        wait(|| report.exists());
        let report = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
        Jailed { pid, report, child: None, input: None, left_behind: true }
    }

    /// A file of the process's folder in the host's /proc.
    pub fn proc(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(format!("/proc/{}/{name}", self.pid)).unwrap()).into_owned()
    }

    /// A namespace of the process.
    pub fn namespace(&self, name: &str) -> PathBuf {
        fs::read_link(format!("/proc/{}/ns/{name}", self.pid)).unwrap()
    }

    /// A line of /proc/PID/status, in words.
    pub fn status(&self, field: &str) -> Vec<String> {
        let text = self.proc("status");
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Ends the probe; one that was started directly has to succeed.
    #[track_caller]
    pub fn end(mut self) {
        drop(self.input.take());
        if let Some(mut child) = self.child.take() {
            assert!(child.wait().unwrap().success());
        }
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        } else if self.left_behind {
            // SAFETY: the call takes numbers. The process is ours: nobody but this ends it.
            unsafe { libc::kill(self.pid.cast_signed(), libc::SIGKILL) };
            wait(|| has_ended(self.pid));
        }
    }
}

/// Whether a process has ended with all its threads; nobody may have waited for it yet.
pub fn has_ended(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let has = |start| status.lines().any(|line| line.starts_with(start));
    (has("State:\tZ") || has("State:\tX")) && status.lines().any(|line| line == "Threads:\t1")
}

/// Waits until something is so.
#[track_caller]
pub fn wait(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < LIMIT, "it did not come about in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives the calling thread, and what it starts, a mount namespace of its own. Its mounts are shared, as they mostly are on
/// hosts, but with nobody outside.
pub fn own_mounts() {
    // SAFETY: the calls take numbers and strings that end in NUL.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "{}", std::io::Error::last_os_error());
        let none = std::ptr::null();
        for kind in [libc::MS_PRIVATE, libc::MS_SHARED] {
            assert_eq!(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | kind, none.cast()), 0);
        }
    }
}

/// The mounts of the calling thread's namespace, which nobody else changes after [`own_mounts`].
pub fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Runs a program that has to succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Copies a program for it to be run there. By a program: a file that this process writes could not be executed while a child
/// that another test starts has it open, too.
pub fn copy(from: &Path, to: &Path) {
    run("cp", &[from.to_str().unwrap(), to.to_str().unwrap()]);
}

/// Changes the owner of a path.
pub fn give(path: &Path, uid: u32, gid: u32) {
    chown(path, Some(uid), Some(gid)).unwrap();
}
