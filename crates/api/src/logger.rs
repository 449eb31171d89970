//! The monitor's log: `PUT /logger`, section `logger` of the config file.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::boot_source::check_path;
use crate::error::FieldError;

/// Where log lines go and which are written. An absent field leaves the setting as it is, so that a later request can
/// change one of them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerConfig {
    /// File or FIFO on the host that receives the lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// Least important level that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether a line names its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether a line names the source file and line it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only lines of this module and those below it are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

impl LoggerConfig {
    /// Checks every field; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        self.log_path.as_deref().map_or(Ok(()), |path| check_path("log_path", path))
    }

    /// These settings, and those of `before` where there are none here.
    #[must_use]
    pub fn over(self, before: LoggerConfig) -> LoggerConfig {
        LoggerConfig {
            log_path: self.log_path.or(before.log_path),
            level: self.level.or(before.level),
            show_level: self.show_level.or(before.show_level),
            show_log_origin: self.show_log_origin.or(before.show_log_origin),
            module: self.module.or(before.module),
        }
    }
}

/// Importance of a log line. Read without regard to case, and `Warn` stands for `Warning`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String")]
pub enum LogLevel {
    /// Nothing is written.
    Off,
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warning,
    /// What a person wants to know of a normal run.
    #[default]
    Info,
    /// What helps to find a mistake.
    Debug,
    /// Every step.
    Trace,
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "off" => LogLevel::Off,
            "error" => LogLevel::Error,
            "warn" | "warning" => LogLevel::Warning,
            "info" => LogLevel::Info,
            "debug" => LogLevel::Debug,
            "trace" => LogLevel::Trace,
            _ => {
                return Err(format!("must be one of Off, Error, Warning, Info, Debug, Trace, got {text:?}"));
            }
        })
    }
}

impl TryFrom<String> for LogLevel {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_read_in_any_case_and_written_in_one() {
        for (texts, level) in [
            (["off", "OFF"], LogLevel::Off),
            (["Error", "ERROR"], LogLevel::Error),
            (["warn", "Warning"], LogLevel::Warning),
            (["info", "Info"], LogLevel::Info),
            (["debug", "dEbug"], LogLevel::Debug),
            (["trace", "Trace"], LogLevel::Trace),
        ] {
            for text in texts {
                assert_eq!(text.parse(), Ok(level));
            }
            let written = serde_json::to_string(&level).unwrap();
            assert_eq!(written, format!("\"{level:?}\""));
            assert_eq!(serde_json::from_str::<LogLevel>(&written).unwrap(), level);
        }
        assert!("".parse::<LogLevel>().is_err());
    }
}
