//! The whole machine as asked for, and the config file that holds it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{ConfigError, FieldError};
use crate::id::check_unique;
use crate::{
    BalloonConfig, BootSource, DriveConfig, EntropyConfig, LoggerConfig, MachineConfig,
    NetworkInterfaceConfig, SerialConfig, VsockConfig, json,
};

/// Largest config file in bytes.
pub const CONFIG_MAX_LEN: usize = 256 << 10;

/// Sections that Firecracker's config file knows and this monitor does not serve yet. Tools write all of them, so one
/// that is null or an empty list asks for nothing and is accepted.
const SECTIONS_TO_COME: &[&str] = &["cpu-config", "memory-hotplug", "metrics", "mmds-config", "pmem"];

/// The whole machine as asked for: the config file, and the reply to `GET /vm/config`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// What the guest boots.
    pub boot_source: BootSource,
    /// Processors and memory.
    #[serde(default, deserialize_with = "null_is_default")]
    pub machine_config: MachineConfig,
    /// Block devices, in the order in which the guest sees them, but for the root device, which comes first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<DriveConfig>,
    /// Network devices, in the order in which the guest sees them.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterfaceConfig>,
    /// Sockets between guest and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// A source of random bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyConfig>,
    /// A memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// The serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// The monitor's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerConfig>,
}

impl VmConfig {
    /// A machine that boots `boot_source`, the rest as by default: no devices but the console.
    #[must_use]
    pub fn new(boot_source: BootSource) -> Self {
        Self {
            boot_source,
            machine_config: MachineConfig::default(),
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            vsock: None,
            entropy: None,
            balloon: None,
            serial: None,
            logger: None,
        }
    }

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
        self.validate_drives()?;
        for (index, interface) in self.network_interfaces.iter().enumerate() {
            let place = |error: FieldError| error.within(&format!("network-interfaces[{index}]"));
            interface.validate().map_err(place)?;
        }
        check_unique(
            "network-interfaces",
            "iface_id",
            self.network_interfaces.iter().map(|interface| interface.iface_id.as_str()),
        )?;
        if let Some(vsock) = &self.vsock {
            vsock.validate().map_err(|error| error.within("vsock"))?;
        }
        if let Some(entropy) = &self.entropy {
            entropy.validate().map_err(|error| error.within("entropy"))?;
        }
        if let Some(balloon) = &self.balloon {
            let memory = self.machine_config.mem_size_mib;
            balloon.validate(memory).map_err(|error| error.within("balloon"))?;
        }
        if let Some(serial) = &self.serial {
            serial.validate().map_err(|error| error.within("serial"))?;
        }
        if let Some(logger) = &self.logger {
            logger.validate().map_err(|error| error.within("logger"))?;
        }
        Ok(())
    }

    fn validate_drives(&self) -> Result<(), FieldError> {
        let mut root = None;
        for (index, drive) in self.drives.iter().enumerate() {
            let place = |error: FieldError| error.within(&format!("drives[{index}]"));
            drive.validate().map_err(place)?;
            if drive.is_root_device
                && let Some(first) = root.replace(index)
            {
                let cause = format!("must be false, since drives[{first}] is the root device");
                return Err(place(FieldError::new("is_root_device", cause)));
            }
        }
        check_unique("drives", "drive_id", self.drives.iter().map(|drive| drive.drive_id.as_str()))
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
