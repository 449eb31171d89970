//! What can go wrong before or while a guest runs, sorted by what the operator has to do about it.

use std::error::Error as StdError;

use thiserror::Error;

use crate::outcome::{EXIT_BAD_CONFIGURATION, EXIT_HOST_ERROR, EXIT_KVM_UNAVAILABLE};

type Cause = Box<dyn StdError + Send + Sync>;

/// An error of the monitor.
#[derive(Debug, Error)]
pub enum Error {
    /// A field of the configuration asks for something that cannot be.
    #[error("{field}")]
    Configuration {
        /// The field, as the config file spells it (`machine-config.mem_size_mib`), or the option that stands for it.
        field: String,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
    /// The config file as a whole could not be read.
    #[error(transparent)]
    ConfigFile(kindling_api::ConfigError),
    /// KVM is missing, not permitted, or lacks what the monitor needs.
    #[error("cannot {doing}")]
    Kvm {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        cause: Cause,
    },
    /// The host refused something that the configuration is not to blame for.
    #[error("cannot {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        cause: Cause,
    },
}

impl Error {
    /// A field of the configuration is at fault.
    pub fn configuration(field: &'static str, cause: impl Into<Cause>) -> Self {
        Error::Configuration { field: field.to_owned(), cause: cause.into() }
    }

    /// KVM cannot be used at all.
    pub fn kvm(doing: &'static str, cause: impl Into<Cause>) -> Self {
        Error::Kvm { doing, cause: cause.into() }
    }

    /// To be used with `map_err`: the host failed while `doing`.
    pub fn host<E: Into<Cause>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Error::Host { doing, cause: cause.into() }
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Configuration { .. } | Error::ConfigFile(_) => EXIT_BAD_CONFIGURATION,
            Error::Kvm { .. } => EXIT_KVM_UNAVAILABLE,
            Error::Host { .. } => EXIT_HOST_ERROR,
        }
    }
}

impl From<kindling_api::FieldError> for Error {
    fn from(error: kindling_api::FieldError) -> Self {
        Error::Configuration { field: error.field, cause: error.cause.into() }
    }
}

/// An error and its causes on one line.
pub fn one_line(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_on_the_same_line_and_are_not_repeated() {
        #[derive(Debug, Error)]
        #[error("cannot read it: {0}")]
        struct Repeating(#[source] std::io::Error);
        let error = Error::configuration("serial.mode", Repeating(std::io::Error::other("tape\ntorn")));
        assert_eq!(one_line(&error), "serial.mode: cannot read it: tape torn");
    }
}
