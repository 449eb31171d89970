//! The whole machine as asked for, and the config file that holds it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::action::Section;
use crate::error::{ConfigError, FieldError};
use crate::id::check_unique;
use crate::{
    BalloonConfig, BootSource, DriveConfig, EntropyConfig, LoggerConfig, MachineConfig, MetricsConfig,
    MmdsConfig, NetworkInterfaceConfig, SerialConfig, VsockConfig, json,
};

/// Largest config file in bytes.
pub const CONFIG_MAX_LEN: usize = 256 << 10;

/// Sections that Firecracker's config file knows and this monitor does not serve yet. Tools write all of them, so one
/// that is an empty list asks for nothing and is accepted, like one that is null.
const SECTIONS_TO_COME: &[&str] = &["cpu-config", "memory-hotplug", "pmem"];

/// The whole machine as asked for: the config file, and the reply to `GET /vm/config`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// What the guest boots. Needed to start it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// Processors and memory.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// Block devices, in the order in which the guest sees them, but for the root device, which comes first.
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// Network devices, in the order in which the guest sees them.
    #[serde(default)]
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
    /// The monitor's metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
    /// The metadata service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
}

impl VmConfig {
    /// A machine that boots `boot_source`, the rest as by default: no devices but the console.
    #[must_use]
    pub fn new(boot_source: BootSource) -> Self {
        Self { boot_source: Some(boot_source), ..Self::default() }
    }

    /// What the guest boots.
    ///
    /// # Errors
    ///
    /// When it was not said.
    pub fn boot_source(&self) -> Result<&BootSource, FieldError> {
        self.boot_source.as_ref().ok_or_else(|| FieldError::new("boot-source", "is required"))
    }

    /// This configuration with `section` in its place. A device takes that of the one with its id, or comes last.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range, of the section or of those that have to fit to it.
    pub fn with(&self, section: Section) -> Result<Self, FieldError> {
        let mut config = self.clone();
        match section {
            Section::BootSource(section) => {
                section.validate()?;
                config.boot_source = Some(section);
            }
            Section::MachineConfig(section) => {
                section.validate()?;
                config.machine_config = section;
            }
            Section::MachineConfigPatch(patch) => {
                config.machine_config = patch.apply(&self.machine_config)?
            }
            Section::Drive(drive) => {
                drive.validate()?;
                put(&mut config.drives, drive, |drive| &drive.drive_id);
            }
            Section::NetworkInterface(interface) => {
                interface.validate()?;
                put(&mut config.network_interfaces, interface, |interface| &interface.iface_id);
            }
            Section::Vsock(section) => {
                section.validate()?;
                config.vsock = Some(section);
            }
            Section::Entropy(section) => {
                section.validate()?;
                config.entropy = Some(section);
            }
            Section::Balloon(section) => {
                section.validate(self.machine_config.mem_size_mib)?;
                config.balloon = Some(section);
            }
            Section::Serial(section) => {
                section.validate()?;
                config.serial = Some(section);
            }
            Section::Logger(section) => {
                section.validate()?;
                config.logger = Some(section.over(self.logger.clone().unwrap_or_default()));
            }
            Section::Metrics(section) => {
                section.validate()?;
                if self.metrics.is_some() {
                    return Err(FieldError::new("metrics_path", "is set already, and can be set once"));
                }
                config.metrics = Some(section);
            }
            Section::MmdsConfig(section) => {
                section.validate(&self.interface_ids())?;
                config.mmds_config = Some(section);
            }
        }
        config.validate()?;
        Ok(config)
    }

    fn interface_ids(&self) -> impl Iterator<Item = &str> + Clone {
        self.network_interfaces.iter().map(|interface| interface.iface_id.as_str())
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
        config.boot_source()?;
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
        if let Some(boot_source) = &self.boot_source {
            boot_source.validate().map_err(|error| error.within("boot-source"))?;
        }
        self.machine_config.validate().map_err(|error| error.within("machine-config"))?;
        self.validate_drives()?;
        for (index, interface) in self.network_interfaces.iter().enumerate() {
            let place = |error: FieldError| error.within(&format!("network-interfaces[{index}]"));
            interface.validate().map_err(place)?;
        }
        check_unique("network-interfaces", "iface_id", self.interface_ids().map(Some))?;
        let addresses = self.network_interfaces.iter().map(|interface| interface.guest_mac);
        check_unique("network-interfaces", "guest_mac", addresses)?;
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
        if let Some(metrics) = &self.metrics {
            metrics.validate().map_err(|error| error.within("metrics"))?;
        }
        if let Some(mmds) = &self.mmds_config {
            mmds.validate(&self.interface_ids()).map_err(|error| error.within("mmds-config"))?;
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
        check_unique("drives", "drive_id", self.drives.iter().map(|drive| Some(&drive.drive_id)))
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

/// Puts `device` in the place of the one with its id, or at the end.
fn put<T>(devices: &mut Vec<T>, device: T, id: impl Fn(&T) -> &String) {
    match devices.iter_mut().find(|present| id(present) == id(&device)) {
        Some(present) => *present = device,
        None => devices.push(device),
    }
}
