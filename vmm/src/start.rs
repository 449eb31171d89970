//! From a configuration to an ended guest: what `vmm run` and `vmm --config-file` do.

use std::path::Path;

use kindling_api::{
    BootSource, ConfigError, EntropyConfig, FieldError, LogLevel, LoggerConfig, MachineConfig, VmConfig,
    parse_memory_size,
};

use crate::cli::{LogOptions, RunOptions};
use crate::error::Error;
use crate::outcome::Outcome;
use crate::{log_sink, run};

/// The options of `vmm run`, and the fields of the configuration that they fill in.
const OPTION_OF_FIELD: [(&str, &str); 13] = [
    ("boot-source.kernel_image_path", "--kernel"),
    ("boot-source.initrd_path", "--initrd"),
    ("boot-source.boot_args", "--cmdline"),
    ("boot-source.boot_protocol", "--boot-protocol"),
    ("machine-config.vcpu_count", "--cpus"),
    ("machine-config.smt", "--smt"),
    ("machine-config.mem_size_mib", "--memory"),
    ("machine-config.huge_pages", "--huge-pages"),
    ("serial.serial_out_path", "--serial"),
    ("serial.mode", "--serial"),
    ("logger.log_path", "--log-path"),
    ("logger.level", "--level"),
    ("logger.module", "--module"),
];

/// The options that stand for a whole section: each describes one device.
const OPTION_OF_SECTION: [(&str, &str); 5] = [
    ("drives[", "--disk"),
    ("network-interfaces[", "--net"),
    ("vsock.", "--vsock"),
    ("entropy.", "--rng"),
    ("balloon.", "--balloon"),
];

/// Runs the guest that the options of `vmm run` describe.
pub fn from_options(options: &RunOptions) -> Result<Outcome, Error> {
    configuration(options).and_then(start).map_err(|error| match error {
        Error::Configuration { field, cause } => Error::Configuration { field: option_of(&field), cause },
        error => error,
    })
}

/// The option that stands for a field; when it stands for others too, with the field behind it.
fn option_of(field: &str) -> String {
    if let Some((_, option)) = OPTION_OF_FIELD.iter().find(|(name, _)| *name == field) {
        return (*option).to_owned();
    }
    match OPTION_OF_SECTION.iter().find(|(name, _)| field.starts_with(name)) {
        Some((name, option)) if name.ends_with('.') => {
            format!("{option}: {}", field.strip_prefix(name).unwrap_or(field))
        }
        Some((_, option)) => format!("{option}: {field}"),
        None => field.to_owned(),
    }
}

/// Runs the guest that a config file describes; options of the log that are given take the place of the file's.
pub fn from_config_file(path: &Path, log: &LogOptions) -> Result<Outcome, Error> {
    let mut config = VmConfig::from_file(path).map_err(|error| match error {
        ConfigError::Field(error) => Error::from(error),
        error => Error::ConfigFile(error),
    })?;
    config.logger = Some(logger(config.logger.take().unwrap_or_default(), log)?);
    start(config)
}

fn start(config: VmConfig) -> Result<Outcome, Error> {
    if let Some(logger) = &config.logger {
        log_sink::install(logger).map_err(|cause| Error::configuration("logger.log_path", cause))?;
    }
    run(config)
}

/// The configuration that the options of `vmm run` ask for.
fn configuration(options: &RunOptions) -> Result<VmConfig, Error> {
    let memory = parse_memory_size(&options.memory).map_err(|cause| {
        Error::configuration("machine-config.mem_size_mib", format!("{cause}, got {:?}", options.memory))
    })?;
    let machine_config = MachineConfig::new(options.cpus.into(), memory).map_err(|error: FieldError| {
        FieldError { field: format!("machine-config.{}", error.field), cause: error.cause }
    })?;
    let boot_source = BootSource {
        kernel_image_path: options.kernel.clone(),
        initrd_path: options.initrd.clone(),
        boot_args: options.cmdline.clone(),
        boot_protocol: options.boot_protocol,
    };
    let config = VmConfig {
        machine_config: MachineConfig { smt: options.smt, huge_pages: options.huge_pages, ..machine_config },
        serial: Some(options.serial.clone()),
        drives: named(&options.disk, "disk", |drive| &mut drive.drive_id),
        network_interfaces: named(&options.net, "net", |interface| &mut interface.iface_id),
        vsock: options.vsock.clone(),
        entropy: options.rng.then(EntropyConfig::default),
        balloon: options.balloon.clone(),
        logger: Some(logger(LoggerConfig::default(), &options.log)?),
        ..VmConfig::new(boot_source)
    };
    config.validate()?;
    Ok(config)
}

/// Devices, each with an id: its own, or `prefix` and its position.
fn named<T: Clone>(devices: &[T], prefix: &str, id: impl Fn(&mut T) -> &mut String) -> Vec<T> {
    let mut devices = devices.to_vec();
    for (index, device) in devices.iter_mut().enumerate() {
        let id = id(device);
        if id.is_empty() {
            *id = format!("{prefix}{index}");
        }
    }
    devices
}

/// `config` with the options of the command line that were given in place of its own.
fn logger(config: LoggerConfig, options: &LogOptions) -> Result<LoggerConfig, Error> {
    let level = match &options.level {
        None => config.level,
        Some(level) => {
            Some(level.parse::<LogLevel>().map_err(|cause| Error::configuration("--level", cause))?)
        }
    };
    Ok(LoggerConfig {
        log_path: options.log_path.clone().or(config.log_path),
        level,
        show_level: options.show_level.then_some(true).or(config.show_level),
        show_log_origin: options.show_log_origin.then_some(true).or(config.show_log_origin),
        module: options.module.clone().or(config.module),
    })
}
