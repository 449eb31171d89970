//! What the guest boots: `PUT /boot-source`, section `boot-source` of the config file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::FieldError;

/// Longest [`BootSource::boot_args`] in bytes.
pub const BOOT_ARGS_MAX_LEN: usize = 2048;

/// Kernel, initrd and command line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel image on the host.
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line: up to [`BOOT_ARGS_MAX_LEN`] bytes without control characters. If absent, the monitor's
    /// default is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// Which entry of the kernel is used. Firecracker has no such field.
    #[serde(default, skip_serializing_if = "BootProtocol::is_default")]
    pub boot_protocol: BootProtocol,
}

/// Which entry of the kernel is used.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum BootProtocol {
    /// PVH where an ELF kernel offers it, else the 64-bit Linux boot protocol.
    #[default]
    Auto,
    /// The 64-bit Linux boot protocol.
    Linux64,
    /// The PVH entry of an ELF kernel; an error for a kernel that has none.
    Pvh,
}

impl BootProtocol {
    fn is_default(&self) -> bool {
        *self == BootProtocol::default()
    }
}

impl FromStr for BootProtocol {
    type Err = String;

    /// Reads the name of a protocol, in any case.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(BootProtocol::Auto),
            "linux64" => Ok(BootProtocol::Linux64),
            "pvh" => Ok(BootProtocol::Pvh),
            _ => Err(format!("must be one of Auto, Linux64, Pvh, got {text:?}")),
        }
    }
}

impl BootSource {
    /// Checks every field; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        check_path("kernel_image_path", &self.kernel_image_path)?;
        if let Some(path) = &self.initrd_path {
            check_path("initrd_path", path)?;
        }
        if let Some(args) = &self.boot_args {
            check_boot_args(args).map_err(|cause| FieldError::new("boot_args", cause))?;
        }
        Ok(())
    }
}

fn check_boot_args(args: &str) -> Result<(), String> {
    if args.len() > BOOT_ARGS_MAX_LEN {
        return Err(format!("must be at most {BOOT_ARGS_MAX_LEN} bytes, got {}", args.len()));
    }
    match args.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, c)) => Err(format!("must not contain control characters, got {c:?} at byte {at}")),
        None => Ok(()),
    }
}

/// Refuses a path that no file can have, or that JSON cannot carry.
pub(crate) fn check_path(field: &'static str, path: &Path) -> Result<(), FieldError> {
    let cause = match path.to_str() {
        None => "must be UTF-8",
        Some("") => "must not be empty",
        Some(text) if text.contains('\0') => "must not contain a NUL character",
        Some(_) => return Ok(()),
    };
    Err(FieldError::new(field, cause))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn with_args(args: &str) -> BootSource {
        BootSource {
            kernel_image_path: "/vmlinux".into(),
            initrd_path: None,
            boot_args: Some(args.to_owned()),
            boot_protocol: BootProtocol::Auto,
        }
    }

    #[test]
    fn boot_args_may_be_exactly_as_long_as_the_limit() {
        assert_eq!(with_args(&"x".repeat(BOOT_ARGS_MAX_LEN)).validate(), Ok(()));
        let error = with_args(&"é".repeat(BOOT_ARGS_MAX_LEN / 2 + 1)).validate().unwrap_err();
        assert_eq!(error.to_string(), "boot_args: must be at most 2048 bytes, got 2050");
    }

    #[test]
    fn every_control_character_in_boot_args_is_refused() {
        for c in ['\0', '\n', '\t', '\u{1b}', '\u{7f}', '\u{85}'] {
            let error = with_args(&format!("quiet{c}")).validate().unwrap_err();
            assert_eq!(error.cause, format!("must not contain control characters, got {c:?} at byte 5"));
        }
    }

    #[test]
    fn a_boot_protocol_is_read_in_any_case() {
        for protocol in [BootProtocol::Auto, BootProtocol::Linux64, BootProtocol::Pvh] {
            assert_eq!(format!("{protocol:?}").to_uppercase().parse(), Ok(protocol));
        }
        let error = "efi".parse::<BootProtocol>().unwrap_err();
        assert_eq!(error, "must be one of Auto, Linux64, Pvh, got \"efi\"");
    }

    #[test]
    fn a_path_that_json_cannot_carry_is_refused() {
        let path = PathBuf::from(OsStr::from_bytes(b"/boot/\xff"));
        let source = BootSource { initrd_path: Some(path), ..with_args("") };
        assert_eq!(source.validate().unwrap_err().to_string(), "initrd_path: must be UTF-8");
    }
}
