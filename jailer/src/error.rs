//! What can go wrong before the monitor runs.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// An error of the jailer. Its text names the step, and the path where there is one.
#[derive(Debug, Error)]
pub enum Error {
    /// The system refused something that was done to a file.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// The system refused something that was done to the process itself.
    #[error("cannot {doing}")]
    Process {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// A file or folder is not as it has to be to be trusted.
    #[error("{} {fault}", path.display())]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, to be read behind its name.
        fault: String,
    },
    /// An option asks for something that cannot be.
    #[error("{option}: {fault}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The error of the child process that was to become the monitor, in its own words.
    #[error("{0}")]
    Child(String),
}

impl Error {
    /// To be used with `map_err`: the system refused `doing` to `path`.
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Error::File { doing, path: path.to_owned(), cause }
    }

    /// To be used with `map_err`: the system refused `doing`.
    pub(crate) fn process(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Error::Process { doing, cause }
    }

    pub(crate) fn refused(path: &Path, fault: impl Into<String>) -> Self {
        Error::Refused { path: path.to_owned(), fault: fault.into() }
    }

    pub(crate) fn option(option: &'static str, fault: impl Into<String>) -> Self {
        Error::Option { option, fault: fault.into() }
    }
}

/// An error and its causes on one line.
pub fn one_line(error: &Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line.replace('\n', " ")
}
