#![doc = include_str!("../README.md")]

mod cgroup;
mod child;
pub mod cli;
pub mod error;
mod executable;
mod folders;
mod inside;
mod jail;
mod mounts;
mod privileges;
mod sys;
mod time;
mod undo;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cgroup::Cgroups;
use cli::Options;
use error::Error;
use executable::Executable;
use folders::Owner;
use inside::Inside;
use jail::{Jail, executable_name};
use mounts::Mounts;
pub use time::StartTimes;
use undo::Undo;

/// A step failed.
pub const EXIT_FAILED: u8 = 1;
/// The command line is wrong.
pub const EXIT_BAD_ARGUMENTS: u8 = 153;

/// Closes every descriptor but standard input, output and error: whoever started the process may have left some open.
pub fn close_descriptors() -> Result<(), Error> {
    sys::close_all_but_stdio().map_err(Error::process("close descriptors"))
}

/// Builds the jail and executes the monitor in it. Does not return then, unless the options ask for a process of its own:
/// returns when that process has executed the monitor. After an error nothing of the jail is left.
///
/// Changes the calling process for good, which must have no other thread.
pub fn run(options: &Options, start: StartTimes) -> Result<(), Error> {
    let mut undo = Undo::default();
    let result = build(options, start, &mut undo);
    if result.is_err() {
        undo.run();
    }
    result
}

fn build(options: &Options, start: StartTimes, undo: &mut Undo) -> Result<(), Error> {
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(Error::process("build a jail as any user but root")(cause));
    }
    check_stdio()?;
    let umask = sys::umask(0);
    let owner = Owner { uid: options.uid, gid: options.gid };
    let executable = Executable::open(&options.exec_file)?;
    let null = options.daemonize.then(open_null).transpose()?;
    if let Some(path) = &options.netns {
        join_network(path)?;
    }
    let jail = Jail::build(options, executable_name(&options.exec_file)?, owner, undo)?;
    executable.copy_to(&jail.root, &jail.name, owner, undo)?;
    let cgroups = Cgroups::make(options, &jail.name, undo)?;
    let mounts = Mounts::prepare(&jail.root, owner)?;
    let inside = Inside { options, owner, name: &jail.name, mounts, cgroups, null, umask, start };

    if options.daemonize || options.new_pid_ns {
        child::start(inside, &jail, undo)
    } else {
        jail.record(std::process::id(), undo)?;
        Err(inside.execute(undo, || Ok(())))
    }
}

/// A folder among the standard streams would be a way out of the jail.
fn check_stdio() -> Result<(), Error> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams: [(BorrowedFd<'_>, &str); 3] = [
        (stdin.as_fd(), "standard input"),
        (stdout.as_fd(), "standard output"),
        (stderr.as_fd(), "standard error"),
    ];
    for (stream, name) in streams {
        let file = stream.try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
        if file.map_err(Error::process("look at the standard streams"))?.is_dir() {
            return Err(Error::refused(Path::new(name), "is a folder, and a way out of the jail"));
        }
    }
    Ok(())
}

fn open_null() -> Result<File, Error> {
    let path = Path::new("/dev/null");
    File::options().read(true).write(true).open(path).map_err(Error::file("open", path))
}

/// Joins the network namespace that `path` names, possibly over symbolic links such as `/var/run`.
fn join_network(path: &Path) -> Result<(), Error> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(Error::file("open network namespace", path))?;
    // SAFETY: the call takes numbers; the process has one thread.
    sys::check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })
        .map_err(Error::file("join network namespace", path))
        .map(drop)
}
