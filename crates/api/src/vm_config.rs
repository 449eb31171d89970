//! The whole machine as asked for, and the config file that holds it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{ConfigError, FieldError};
use crate::{BootSource, LoggerConfig, MachineConfig, SerialConfig, json};

/// Largest config file in bytes.
pub const CONFIG_MAX_LEN: usize = 256 << 10;

/// Sections that Firecracker's config file knows and this monitor does not serve yet. Tools write all of them, so one
/// that is null or an empty list asks for nothing and is accepted.
const SECTIONS_TO_COME: &[&str] = &[
    "balloon",
    "cpu-config",
    "drives",
    "entropy",
    "memory-hotplug",
    "metrics",
    "mmds-config",
    "network-interfaces",
    "pmem",
    "vsock",
];

/// The whole machine as asked for: the config file, and the reply to `GET /vm/config`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// What the guest boots.
    pub boot_source: BootSource,
    /// Processors and memory.
    #[serde(default, deserialize_with = "null_is_default")]
    pub machine_config: MachineConfig,
    /// The serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// The monitor's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerConfig>,
}

impl VmConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    ///
    /// If the text is larger than [`CONFIG_MAX_LEN`], is not JSON, has a key twice, or holds a field that is unknown,
    /// missing, of the wrong type or out of its range.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        if text.len() > CONFIG_MAX_LEN {
            return Err(ConfigError::TooLarge { limit: CONFIG_MAX_LEN });
        }
        let mut value = json::parse(text)?;
        drop_empty_sections_to_come(&mut value)?;
        let config: VmConfig = json::from_value(value)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads and checks a config file. At most [`CONFIG_MAX_LEN`] bytes of it are read.
    ///
    /// # Errors
    ///
    /// As [`VmConfig::from_json`]; also if the path does not lead to a regular file that can be read.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let open_error = |source| ConfigError::Open { path: path.to_owned(), source };
        // Asked before opening too, because opening a FIFO waits for a writer.
        if !fs::metadata(path).map_err(open_error)?.is_file() {
            return Err(ConfigError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(open_error)?;
        if !file.metadata().map_err(open_error)?.is_file() {
            return Err(ConfigError::NotAFile { path: path.to_owned() });
        }
        // One byte more than allowed, to tell a file of the largest size from a larger one.
        let limit = u64::try_from(CONFIG_MAX_LEN).unwrap_or(u64::MAX).saturating_add(1);
        let mut text = Vec::new();
        file.take(limit)
            .read_to_end(&mut text)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        VmConfig::from_json(&text)
    }

    /// Checks every field of every section; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range, as a path that begins with the section's name in the config file.
    pub fn validate(&self) -> Result<(), FieldError> {
        self.boot_source.validate().map_err(|error| error.within("boot-source"))?;
        self.machine_config.validate().map_err(|error| error.within("machine-config"))?;
        if let Some(serial) = &self.serial {
            serial.validate().map_err(|error| error.within("serial"))?;
        }
        if let Some(logger) = &self.logger {
            logger.validate().map_err(|error| error.within("logger"))?;
        }
        Ok(())
    }
}

fn drop_empty_sections_to_come(config: &mut Value) -> Result<(), FieldError> {
    let Value::Object(sections) = config else { return Ok(()) };
    for name in SECTIONS_TO_COME {
        match sections.remove(*name) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(_) => return Err(FieldError::new(name, "not supported yet")),
        }
    }
    Ok(())
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
