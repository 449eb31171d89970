//! The one error type of the test tooling.

use std::io;
use std::time::Duration;

/// What can go wrong while preparing, starting or talking to a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{doing}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program could be started and did not succeed.
    #[error("{command}: {detail}")]
    Command {
        /// The program and the part of its arguments that matters.
        command: String,
        /// Its exit status and the last thing it said.
        detail: String,
    },
    /// Something has to be installed, and this user cannot.
    #[error("{what} missing; run: {command}")]
    Missing {
        /// What is not there.
        what: String,
        /// The command that provides it.
        command: String,
    },
    /// The package system of this machine does not offer what is needed.
    #[error("{0}")]
    Package(String),
    /// The package lists do not offer what is needed; they may be missing, or older than what is installed.
    #[error("{0}")]
    Unlisted(String),
    /// A package that the lists name could not be downloaded; they may be out of date.
    #[error("cannot download {package}")]
    Download {
        /// Its name and version.
        package: String,
        /// Why.
        source: Box<Error>,
    },
    /// A kernel image or module that is not what it should be.
    #[error("{file}: {problem}")]
    Image {
        /// Which file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long, after scaling.
        after: Duration,
    },
    /// The guest, or the process that runs it, ended while something was expected of it.
    #[error("the guest ended while waiting for {0}")]
    GuestEnded(String),
    /// A request that cannot be carried over the console, or an answer that makes no sense.
    #[error("{0}")]
    Protocol(String),
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was being done when an I/O operation failed.
pub trait Context<T> {
    /// Turns an [`io::Error`] into [`Error::Io`].
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { doing: what(), source })
    }
}

/// The whole chain of an error in one line, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
