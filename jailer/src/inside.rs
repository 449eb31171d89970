//! The last steps, in the process that becomes the monitor.

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use crate::cgroup::Cgroups;
use crate::cli::Options;
use crate::error::Error;
use crate::folders::{Owner, c_string};
use crate::mounts::Mounts;
use crate::privileges::{drop_all, set_limits};
use crate::sys::{self, check};
use crate::time::StartTimes;
use crate::undo::Undo;

/// The command of the monitor that starts a guest from options.
const RUN: &str = "run";

/// What these steps need.
pub(crate) struct Inside<'a> {
    pub options: &'a Options,
    pub owner: Owner,
    /// The executable's name in the jail's root.
    pub name: &'a CStr,
    pub mounts: Mounts,
    pub cgroups: Cgroups,
    /// `/dev/null` for standard input, output and error, and a new session.
    pub null: Option<File>,
    /// The mask of permissions that the process was started with.
    pub umask: libc::mode_t,
    pub start: StartTimes,
}

impl Inside<'_> {
    /// Enters the jail, gives up all rights and executes the monitor. Returns only with an error. `ready` is called
    /// when there is nothing left to do but `execve`.
    pub fn execute(mut self, undo: &mut Undo, ready: impl FnOnce() -> io::Result<()>) -> Error {
        let arguments = match self.enter(undo) {
            Ok(arguments) => arguments,
            Err(error) => return error,
        };
        if let Err(error) = ready() {
            return Error::process("report that the monitor is about to run")(error);
        }
        let mut pointers: Vec<*const c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        pointers.push(ptr::null());
        let environment = [ptr::null::<c_char>()];
        let path = arguments.first().map_or(c"", CString::as_c_str);
        // SAFETY: the path is a string that ends in NUL, and both lists consist of such strings and end in a null pointer.
        unsafe { libc::execve(path.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
        let error = io::Error::last_os_error();
        let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
        Error::file("execute (it has to be a static program for this machine) in the jail", path)(error)
    }

    fn enter(&mut self, undo: &mut Undo) -> Result<Vec<CString>, Error> {
        self.mounts.enter(undo)?;
        // A kernel that has no such namespaces is refused, too: it may have what they keep apart.
        sys::unshare(libc::CLONE_NEWIPC).map_err(Error::process("make an IPC namespace"))?;
        self.cgroups.join(undo)?;
        if let Some(null) = &self.null {
            detach(null).map_err(Error::process("detach from the terminal"))?;
        }
        leave_keyring().map_err(Error::process("leave the session keyring"))?;
        // The standard library ignores it, which would be handed on.
        // SAFETY: the default action involves no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        sys::umask(self.umask);
        set_limits(&self.options.limits())?;
        drop_all(self.owner)?;
        self.arguments()
    }

    /// The monitor's arguments, of which the first is the path of the executable in the jail.
    fn arguments(&self) -> Result<Vec<CString>, Error> {
        let own = |text: String| c_string(text.as_bytes(), Path::new(&text));
        let path = [b"/", self.name.to_bytes()].concat();
        let mut arguments = vec![c_string(&path, Path::new("/"))?];
        let mut rest = self.options.arguments.as_slice();
        // A command stands before all options.
        if let Some((command, more)) = rest.split_first()
            && command == RUN
        {
            arguments.push(own(RUN.to_owned())?);
            rest = more;
        }
        arguments.extend([c"--id".to_owned(), own(self.options.id.clone())?]);
        for (option, microseconds) in self.start.options() {
            arguments.extend([own(option.to_owned())?, own(microseconds.to_string())?]);
        }
        if let Some(level) = self.options.seccomp_level {
            arguments.extend([c"--seccomp-level".to_owned(), own(level.to_string())?]);
        }
        for argument in rest {
            arguments.push(c_string(argument.as_bytes(), Path::new(argument))?);
        }
        Ok(arguments)
    }
}

/// Leaves the terminal and everything that the standard streams led to.
fn detach(null: &File) -> io::Result<()> {
    // SAFETY: the call takes nothing. The process was forked and leads no group of processes.
    check(unsafe { libc::setsid() })?;
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: standard streams are not owned by anything that closes them.
        check(unsafe { libc::dup2(null.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// Exchanges the session keyring for an empty one: whoever has it has the keys of who started the process.
fn leave_keyring() -> io::Result<()> {
    let name = ptr::null::<c_char>();
    // SAFETY: without a name, the call touches no memory.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name) }) {
        // A kernel that has no keys.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result.map(drop),
    }
}
