//! The serial console: `PUT /serial`, section `serial` of the config file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::boot_source::check_path;
use crate::error::FieldError;
use crate::rate_limiter::TokenBucketConfig;

/// Where the guest's first serial port leads. By default to the monitor's own terminal.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// File, FIFO or socket on the host; which of them, [`SerialConfig::mode`] says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// What the port is connected to. If absent, a file where a path is given, otherwise the terminal. Firecracker has no
    /// such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<SerialMode>,
    /// Limits the bytes of output; what is beyond is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucketConfig>,
}

/// What a serial port is connected to.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum SerialMode {
    /// The monitor's standard input and output.
    Stdio,
    /// A new pseudo-terminal.
    Pty,
    /// The file or FIFO at `serial_out_path`, for output only.
    File,
    /// A Unix socket at `serial_out_path`, which a client connects to.
    Socket,
}

impl SerialConfig {
    /// What the port is connected to, said or implied.
    #[must_use]
    pub fn mode(&self) -> SerialMode {
        match (self.mode, &self.serial_out_path) {
            (Some(mode), _) => mode,
            (None, Some(_)) => SerialMode::File,
            (None, None) => SerialMode::Stdio,
        }
    }

    /// The socket that the port listens at, if it does.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.serial_out_path.as_deref().filter(|_| self.mode() == SerialMode::Socket)
    }

    /// Checks every field, and that there is a path exactly where the mode needs one; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        const PATH: &str = "serial_out_path";
        if let Some(bucket) = &self.rate_limiter {
            bucket.validate().map_err(|error| error.within("rate_limiter"))?;
        }
        let mode = self.mode();
        match (mode, &self.serial_out_path) {
            (SerialMode::File | SerialMode::Socket, Some(path)) => check_path(PATH, path),
            (SerialMode::Stdio | SerialMode::Pty, None) => Ok(()),
            (SerialMode::File | SerialMode::Socket, None) => {
                Err(FieldError::new(PATH, format!("is required with mode {mode:?}")))
            }
            (SerialMode::Stdio | SerialMode::Pty, Some(_)) => {
                Err(FieldError::new(PATH, format!("must be absent with mode {mode:?}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mode: Option<SerialMode>, path: Option<&str>) -> SerialConfig {
        SerialConfig { serial_out_path: path.map(PathBuf::from), mode, rate_limiter: None }
    }

    #[test]
    fn a_path_alone_means_a_file_and_nothing_at_all_the_terminal() {
        assert_eq!(config(None, Some("/tty")).mode(), SerialMode::File);
        assert_eq!(config(None, None).mode(), SerialMode::Stdio);
        assert_eq!(config(Some(SerialMode::Socket), Some("/tty")).mode(), SerialMode::Socket);
    }

    #[test]
    fn a_path_is_needed_by_files_and_sockets_and_only_by_them() {
        for (mode, with_path) in [
            (SerialMode::File, true),
            (SerialMode::Socket, true),
            (SerialMode::Stdio, false),
            (SerialMode::Pty, false),
        ] {
            assert_eq!(config(Some(mode), Some("/tty")).validate().is_ok(), with_path);
            assert_eq!(config(Some(mode), None).validate().is_ok(), !with_path);
        }
        let message = config(Some(SerialMode::Socket), None).validate().unwrap_err().to_string();
        assert_eq!(message, "serial_out_path: is required with mode Socket");
        let message = config(Some(SerialMode::Pty), Some("/tty")).validate().unwrap_err().to_string();
        assert_eq!(message, "serial_out_path: must be absent with mode Pty");
    }
}
