#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

#[cfg(feature = "compile")]
mod compile;
mod file;
mod format;
mod names;
#[cfg(feature = "compile")]
mod optimise;
mod program;
mod trap;

use std::sync::Arc;

#[cfg(feature = "compile")]
pub use compile::{Arguments, CompileError, compile};
pub use file::{FILE_MAX, FileError};
pub use names::name;
pub use program::{InstallError, ProgramError};
pub use trap::{EXIT_FORBIDDEN, install_handler, report_to};

/// The kinds of thread that a monitor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The event loop.
    Vmm,
    /// The HTTP server.
    Api,
    /// Runs a guest's processor.
    Vcpu,
    /// Runs the data path of devices.
    Io,
    /// Runs the data path of the sockets device, the only one that makes connections.
    Vsock,
}

/// How much is forbidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    Off,
    /// System calls that are not on the list.
    Calls,
    /// These, and those on the list whose arguments are not.
    #[default]
    Arguments,
}

/// The filters of a monitor, one for each kind of thread. A copy is cheap.
#[derive(Clone, Debug)]
pub struct Filters(Source);

#[derive(Clone, Debug)]
enum Source {
    Off,
    Embedded(&'static [u8]),
    Own(Arc<[u8]>),
}

impl Filters {
    /// The filters that this crate was built with.
    pub fn embedded(level: Level) -> Self {
        Filters(match level {
            Level::Off => Source::Off,
            Level::Calls => Source::Embedded(include_bytes!(concat!(env!("OUT_DIR"), "/calls"))),
            Level::Arguments => Source::Embedded(include_bytes!(concat!(env!("OUT_DIR"), "/arguments"))),
        })
    }

    /// The filters of a file, whose whole content this is.
    ///
    /// # Errors
    ///
    /// When this is not a filter file of this version and architecture, or the kernel would refuse one of its programs.
    pub fn read(file: &[u8]) -> Result<Self, FileError> {
        file::check(file)?;
        Ok(Filters(Source::Own(file.into())))
    }

    /// Binds the calling thread, and all that it starts from now on, to the filter for this kind of thread, for good. A
    /// thread that is bound already is then bound to both: it may do what both allow.
    ///
    /// # Errors
    ///
    /// When the kernel has no filters of system calls, no memory for one more, or the present filter forbids it.
    pub fn install(&self, thread: Thread) -> Result<(), InstallError> {
        self.program(thread).map_or(Ok(()), program::install)
    }

    /// The program for this kind of thread as the kernel takes it; `None` where everything is allowed.
    pub fn program(&self, thread: Thread) -> Option<&[u8]> {
        let file: &[u8] = match &self.0 {
            Source::Off => return None,
            Source::Embedded(file) => file,
            Source::Own(file) => file,
        };
        Some(file::program(file, thread as usize))
    }
}
