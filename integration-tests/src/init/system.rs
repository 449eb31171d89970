//! The system calls of an init process: mounts, terminals, children, signals, and the end of the machine.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::terminal::{Settings, become_session_leader, check};

/// How long processes have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(500);

/// How the machine shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Power off.
    Off,
    /// Stop the processors and stay on.
    Halt,
    /// Start again.
    Reboot,
}

/// What an init process waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A process ended: its id and its wait status.
    Child(libc::pid_t, libc::c_int),
    /// Someone asked for the end of the machine.
    Power(Power),
    /// The watched descriptor can be read.
    Readable,
    /// Nothing happened in the given time.
    Timeout,
}

/// Signals, children and the console.
pub struct System {
    signals: File,
    pending: Vec<Event>,
}

impl System {
    /// Takes over the signals that mean something to process 1, Ctrl+Alt+Del among them.
    pub fn new() -> io::Result<Self> {
        let set = signal_set(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGINT]);
        // SAFETY: the set is initialised; the old mask is not asked for.
        check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) })?;
        // SAFETY: -1 asks for a new descriptor; the set is initialised.
        let signals = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        check(signals)?;
        // SAFETY: the descriptor has just been opened and nothing else owns it.
        let signals = unsafe { File::from_raw_fd(signals) };
        // SAFETY: this command takes no argument. From here on the kernel sends SIGINT for Ctrl+Alt+Del; where it
        // refuses (outside its own process 1) nothing changes.
        unsafe { libc::reboot(libc::RB_DISABLE_CAD) };
        Ok(Self { signals, pending: Vec::new() })
    }

    /// Waits for the next event; `watched` is a descriptor to read from.
    pub fn wait(&mut self, watched: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<Event> {
        loop {
            if !self.pending.is_empty() {
                return Ok(self.pending.remove(0));
            }
            let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // A negative descriptor is passed over.
            let mut fds = [poll(self.signals.as_raw_fd()), poll(watched.map_or(-1, |fd| fd.as_raw_fd()))];
            let millis = timeout.map_or(-1, |timeout| timeout.as_millis().try_into().unwrap_or(i32::MAX));
            // SAFETY: the array is valid for reads and writes of its two elements.
            match unsafe { libc::poll(fds.as_mut_ptr(), 2, millis) } {
                0 => return Ok(Event::Timeout),
                -1 => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
                _ if fds[0].revents != 0 => self.take_signals(),
                _ => return Ok(Event::Readable),
            }
        }
    }

    fn take_signals(&mut self) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while self.signals.read_exact(&mut info).is_ok() {
            // The number comes first (signalfd(2)).
            let [a, b, c, d, ..] = info;
            let event = match i32::from_ne_bytes([a, b, c, d]) {
                libc::SIGUSR2 => Event::Power(Power::Off),
                libc::SIGUSR1 => Event::Power(Power::Halt),
                libc::SIGTERM | libc::SIGINT => Event::Power(Power::Reboot),
                _ => continue,
            };
            self.pending.push(event);
        }
        while let Some((pid, status)) = reap() {
            self.pending.push(Event::Child(pid, status));
        }
    }
}

/// Collects a process that has ended, if there is one.
fn reap() -> Option<(libc::pid_t, libc::c_int)> {
    let mut status = 0;
    // SAFETY: the status is valid for writes.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// The exit code a shell would show for a wait status.
pub fn exit_code(status: libc::c_int) -> i32 {
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

/// Whether a program gets the terminal for a session of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// It can control jobs and be interrupted from the keyboard. When it ends, the kernel hangs the terminal up: what
    /// was written and not yet sent is lost, and every open descriptor of the terminal is dead.
    Own,
    /// The terminal is a pair of streams.
    None,
}

/// Starts a program with `terminal` as its standard streams and returns its id.
pub fn spawn(mut command: Command, terminal: &File, session: Session) -> io::Result<libc::pid_t> {
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal.try_clone()?);
    // SAFETY: the closure only makes system calls that are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let set = signal_set(&[]);
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))?;
            if session == Session::Own { become_session_leader() } else { Ok(()) }
        });
    }
    // Not waited for through `Child`: `System` collects every process.
    let id = command.spawn()?.id();
    libc::pid_t::try_from(id).map_err(io::Error::other)
}

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; the signal numbers are valid.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Opens a terminal device for reading and writing without making it the controlling terminal.
pub fn open_terminal(path: &str) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)
}

/// The device behind `/dev/console`: that one itself cannot be a controlling terminal.
pub fn console() -> io::Result<File> {
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    match active.split_ascii_whitespace().last() {
        Some(name) => open_terminal(&format!("/dev/{name}")),
        None => open_terminal("/dev/console"),
    }
}

/// Makes a terminal pass bytes as they are.
pub fn make_raw(terminal: &File) -> io::Result<()> {
    Settings::of(terminal)?.raw().apply(terminal)
}

/// Waits until everything written to a terminal has left the machine.
pub fn drain(terminal: &File) {
    // SAFETY: the descriptor is open while the file is borrowed. Nothing can be done if it fails.
    unsafe { libc::tcdrain(terminal.as_raw_fd()) };
}

/// Mounts what programs expect; what cannot be mounted is reported on the console.
pub fn mount_all() {
    let mounts = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ];
    for (kind, target) in mounts {
        let made = std::fs::create_dir_all(target);
        if let Err(error) = made.and_then(|()| mount(kind, target, kind, libc::MS_NOSUID)) {
            eprintln!("init: cannot mount {target}: {error}");
        }
    }
}

/// Mounts a file system, or does what the flags say (mount(2)).
pub fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) -> io::Result<()> {
    let [source, target, kind] = [source, target, kind].map(CString::new);
    let (source, target, kind) = (source?, target?, kind?);
    // SAFETY: the strings are NUL-terminated and live until the call returns; there is no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

/// Loads a kernel module.
pub fn load_module(path: &std::path::Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open, the parameters are an empty NUL-terminated string, the flags are none.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the name the machine gives itself.
pub fn set_hostname(name: &str) {
    // SAFETY: the pointer is valid for reads of the length. The name is a convenience; a failure changes nothing.
    unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
}

/// Keeps all kernel messages but emergencies off the console.
pub fn silence_kernel() {
    const CONSOLE_LEVEL: libc::c_int = 8;
    // SAFETY: this command uses no buffer; a failure only leaves the console noisier.
    unsafe { libc::klogctl(CONSOLE_LEVEL, std::ptr::null_mut(), 1) };
}

/// Ends all processes, writes everything to disk and ends the machine.
pub fn end(power: Power) -> ! {
    // SAFETY: kill takes plain numbers; -1 from process 1 is every other process.
    let signal_all = |signal| unsafe { libc::kill(-1, signal) };
    signal_all(libc::SIGTERM);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && has_children() {
        std::thread::sleep(Duration::from_millis(10));
    }
    signal_all(libc::SIGKILL);
    // A root file system on a disk is clean after this, unless a killed process still has a file of it.
    let _ = mount("", "/", "", libc::MS_REMOUNT | libc::MS_RDONLY);
    if let Ok(console) = console() {
        drain(&console);
    }
    let command = match power {
        Power::Off => libc::RB_POWER_OFF,
        Power::Halt => libc::RB_HALT_SYSTEM,
        Power::Reboot => libc::RB_AUTOBOOT,
    };
    // SAFETY: sync takes nothing; these commands take no argument.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    eprintln!("init: the kernel refused to end: {}", io::Error::last_os_error());
    loop {
        std::thread::park();
    }
}

/// Whether any process is left, after collecting those that have ended.
fn has_children() -> bool {
    while reap().is_some() {}
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) == 0 }
}
