//! What can be wrong with a configuration.
//!
//! The text of a refused file ends up in a log line or an HTTP reply, and parts of it are quoted there. Quoted parts
//! are therefore escaped and cut: a message is always one line of bounded length, whatever the file holds.

use std::path::PathBuf;
use std::{fmt, io};

use thiserror::Error;

/// Characters kept of a text that quotes the input.
const MESSAGE_MAX_CHARS: usize = 400;

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The config file could not be looked at or opened.
    #[error("cannot open config file {}", path.display())]
    Open {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path names a directory, a FIFO, a socket or a device.
    #[error("config file {} is not a regular file", path.display())]
    NotAFile {
        /// The file asked for.
        path: PathBuf,
    },
    /// Reading failed after the file was opened.
    #[error("cannot read config file {}", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is longer than any configuration needs.
    #[error("configuration is larger than {limit} bytes")]
    TooLarge {
        /// The largest size accepted.
        limit: usize,
    },
    /// The text is not JSON, or an object in it has the same key twice. Holds the reason with line and column.
    #[error("invalid JSON: {0}")]
    Json(String),
    /// The text is JSON, but a field is missing, unknown, of the wrong type or out of its range.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// A field and what is wrong with it.
///
/// The two are apart so that a command line can name its option in place of the field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldError {
    /// Path of the field from the object that was checked, such as `vcpu_count` or `machine-config.vcpu_count`. Empty
    /// if that object itself is at fault.
    pub field: String,
    /// What is wrong, in words that follow a name: `must be between 1 and 254, got 255`.
    pub cause: String,
}

impl FieldError {
    /// Cuts both texts to one line of bounded length.
    pub(crate) fn new(field: impl AsRef<str>, cause: impl AsRef<str>) -> Self {
        FieldError { field: one_line(field.as_ref()), cause: one_line(cause.as_ref()) }
    }

    /// The same error, seen from the object that holds the checked one as `section`.
    #[must_use]
    pub fn within(self, section: &str) -> Self {
        FieldError { field: format!("{section}.{}", self.field), cause: self.cause }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.cause)
        } else {
            write!(f, "{}: {}", self.field, self.cause)
        }
    }
}

impl std::error::Error for FieldError {}

/// Escapes control characters, and cuts what is then longer than [`MESSAGE_MAX_CHARS`] characters.
pub(crate) fn one_line(text: &str) -> String {
    let (mut line, mut left) = (String::new(), MESSAGE_MAX_CHARS);
    for c in text.chars() {
        let is_plain = !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}');
        let escaped = c.escape_default();
        let Some(rest) = left.checked_sub(if is_plain { 1 } else { escaped.len() }) else {
            line.push('…');
            break;
        };
        left = rest;
        if is_plain { line.push(c) } else { line.extend(escaped) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_input_cannot_break_the_line_or_flood_the_log() {
        assert_eq!(one_line("a\nb\u{1b}[31m\u{2028}"), "a\\nb\\u{1b}[31m\\u{2028}");
        let flood = one_line(&"x".repeat(100_000));
        assert_eq!(flood.chars().count(), MESSAGE_MAX_CHARS + 1);
        assert!(flood.ends_with("x…"));
        let flood = one_line(&"\u{7f}".repeat(100_000));
        assert!(flood.chars().count() <= MESSAGE_MAX_CHARS + 1 && flood.ends_with("\\u{7f}…"), "{flood}");
    }

    #[test]
    fn an_error_of_the_object_itself_has_no_stray_colon() {
        assert_eq!(FieldError::new("", "must be an object").to_string(), "must be an object");
        assert_eq!(
            FieldError::new("smt", "no").within("machine-config").to_string(),
            "machine-config.smt: no"
        );
    }
}
