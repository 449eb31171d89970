//! What can go wrong between the port and the outside.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Why a back end, a console or the terminal could not be set up or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stream could not be duplicated or looked at.
    #[error("failed to take file descriptor {fd} for the serial port")]
    Stream {
        /// Its descriptor.
        fd: RawFd,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file for the output could not be opened.
    #[error("failed to open {} for the output of the serial port", path.display())]
    OpenFile {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The pseudo-terminal could not be opened.
    #[error("failed to open a pseudo-terminal for the serial port")]
    OpenPty(#[source] io::Error),
    /// The Unix socket could not be created; an existing file is left alone.
    #[error("failed to listen on {} for the serial port", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The console's epoll or eventfd failed.
    #[error("failed to watch the file descriptors of the serial port")]
    Watch(#[source] io::Error),
    /// The output cannot be limited so.
    #[error("cannot limit the output of the serial port")]
    Limit(#[source] kindling_rate_limiter::Error),
    /// The terminal's mode could not be read or changed.
    #[error("failed to put the terminal into raw mode")]
    Terminal(#[source] io::Error),
    /// The terminal is in raw mode already, through another guard.
    #[error("the terminal is in raw mode already")]
    AlreadyRaw,
    /// A handler could not be installed.
    #[error("failed to handle signal {signal}")]
    Signal {
        /// The signal's number.
        signal: i32,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
