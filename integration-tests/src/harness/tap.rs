//! A network interface for a guest, in a network namespace of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::host::{on_host, started, succeed};
use super::{Process, Vmm};
use crate::error::{Context, Error, Result};
use crate::run::die_with_parent;
use crate::terminal::check;

const LIMIT: Duration = Duration::from_secs(30);

/// A tap interface named [`Tap::NAME`] in a new network namespace, which is removed on drop. Needs root.
///
/// The namespace holds nothing else but its loopback interface, so that any address can be used in it. `vmm`
/// ([`Builder::tap`](super::Builder::tap)) and the programs at the host's end of the network have to run in it. Their
/// `/sys` shows the interfaces outside.
pub struct Tap {
    namespace: String,
}

impl Tap {
    /// The interface's name.
    pub const NAME: &'static str = "tap0";

    /// Makes the interface with the host's `address`, as in `10.0.0.1/24`, and brings it up. `options` are more words for
    /// `ip tuntap add`, such as `multi_queue`.
    pub fn new(address: &str, options: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // SAFETY: geteuid takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Err(Error::Protocol(
                "a network for a guest needs root: run this test as root".to_owned(),
            ));
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("kindling-{}-{count}", std::process::id());
        ip(&["netns", "add", &namespace])?;
        let tap = Self { namespace };
        tap.ip(&["link", "set", "lo", "up"])?;
        tap.ip(&[&["tuntap", "add", "dev", Self::NAME, "mode", "tap"], options].concat())?;
        tap.ip(&["address", "add", address, "dev", Self::NAME])?;
        tap.ip(&["link", "set", Self::NAME, "up"])?;
        Ok(tap)
    }

    /// Runs a program in the namespace to its end; it must succeed. Returns its standard output.
    pub fn run(&self, program: &str, arguments: &[&str], limit: Duration) -> Result<String> {
        let mut program = Vmm::with_program(program, arguments);
        enter(&self.path(), program.command())?;
        succeed(program, limit)
    }

    /// Starts a program in the namespace, with no input and its output thrown away.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        enter(&self.path(), &mut command)?;
        let child = die_with_parent(&mut command).spawn();
        Ok(Process::new(started(child, &command)?, program))
    }

    /// Runs `act` on a thread in the namespace, where the sockets that it makes belong.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let file = File::open(&path).doing(|| format!("cannot open {}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: the file is open.
                check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })?;
                Ok(act())
            });
            match thread.join() {
                Ok(result) => result.doing(|| format!("cannot enter {}", path.display())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Has a command run in the namespace, once it is started.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        enter(&self.path(), command)
    }

    /// The namespace, as a file.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }

    fn ip(&self, arguments: &[&str]) -> Result<String> {
        ip(&[&["-netns", &self.namespace], arguments].concat())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.namespace]) {
            eprintln!("{error}");
        }
    }
}

/// Has a command run in the network namespace that `path` names.
pub(super) fn enter(path: &Path, command: &mut Command) -> Result<()> {
    let file = File::open(path).doing(|| format!("cannot open {}", path.display()))?;
    // SAFETY: the closure only makes a system call; it owns the file that it names.
    unsafe { command.pre_exec(move || check(libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET))) };
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<String> {
    on_host("ip", arguments, LIMIT)
}
