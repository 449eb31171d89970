//! From the command line to an ended guest: what `vmm run` and `vmm` alone do.

use std::io::Read;
use std::path::Path;

use kindling_api::server::Limits;
use kindling_api::{
    BootSource, ConfigError, EntropyConfig, FieldError, LogLevel, LoggerConfig, MachineConfig, MetricsConfig,
    VmConfig, parse_memory_size,
};
use kindling_seccomp_profiles::{Arguments, FILE_MAX, Filters, Level, compile};
use serde_json::Value;

use crate::Launch;
use crate::cli::{Cli, InstanceOptions, RunOptions, SeccompCommand, SeccompOptions};
use crate::clock::StartTimes;
use crate::error::Error;
use crate::outcome::Outcome;
use crate::prepared::open_image;

/// How much is read of the file that `--metadata` names: more than anybody serves.
const METADATA_FILE_MAX: u64 = 16 << 20;

/// How much is read of each file that `vmm seccomp compile` is given: more than the longest program needs.
const SECCOMP_TEXT_MAX: u64 = 16 << 20;

/// The options of `vmm run`, and the fields of the configuration that they fill in.
const OPTION_OF_FIELD: [(&str, &str); 14] = [
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
    ("metrics.metrics_path", "--metrics-path"),
];

/// The options that stand for a whole section: each describes one device.
const OPTION_OF_SECTION: [(&str, &str); 5] = [
    ("drives[", "--disk"),
    ("network-interfaces[", "--net"),
    ("vsock.", "--vsock"),
    ("entropy.", "--rng"),
    ("balloon.", "--balloon"),
];

/// `vmm run`: runs the guest that the options describe.
pub fn run(options: &RunOptions) -> Result<Outcome, Error> {
    let launch = || {
        Ok(Launch {
            start: true,
            has_escapes: true,
            filters: filters(&options.seccomp)?,
            landlock: options.landlock,
            api: options.api_sock.clone().map(|path| (path, Limits::default())),
            started: started(&options.instance),
            ..Launch::new(options.instance.id.clone(), configuration(options)?)
        })
    };
    launch().and_then(crate::run).map_err(|error| match error {
        Error::Configuration { field, cause } => Error::Configuration { field: option_of(&field), cause },
        error => error,
    })
}

/// `vmm` alone: serves the API, and runs the guest of the config file if there is one.
pub fn serve(options: &Cli) -> Result<Outcome, Error> {
    let mut config = match &options.config_file {
        Some(path) => VmConfig::from_file(path).map_err(|error| match error {
            ConfigError::Field(error) => Error::from(error),
            error => Error::ConfigFile(error),
        })?,
        None => VmConfig::default(),
    };
    instance(&mut config, &options.instance)?;
    config.validate()?;
    let limits = Limits { body: options.http_api_max_payload_size, ..Limits::default() };
    crate::run(Launch {
        start: options.config_file.is_some(),
        api: (!options.no_api).then(|| (options.api_sock.clone(), limits)),
        metadata: options.metadata.as_deref().map(metadata).transpose()?,
        metadata_limit: options.mmds_size_limit.unwrap_or(options.http_api_max_payload_size),
        boot_timer: options.boot_timer,
        started: started(&options.instance),
        leave_sockets: true,
        filters: filters(&options.seccomp)?,
        landlock: options.landlock,
        ..Launch::new(options.instance.id.clone(), config)
    })
}

/// When whoever started the monitor says that it began to.
fn started(options: &InstanceOptions) -> StartTimes {
    StartTimes::new(options.start_time_us, options.start_time_cpu_us, options.parent_cpu_time_us)
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
    let mut config = VmConfig {
        machine_config: MachineConfig { smt: options.smt, huge_pages: options.huge_pages, ..machine_config },
        serial: Some(options.serial.clone()),
        drives: named(&options.disk, "disk", |drive| &mut drive.drive_id),
        network_interfaces: named(&options.net, "net", |interface| &mut interface.iface_id),
        vsock: options.vsock.clone(),
        entropy: options.rng.then(EntropyConfig::default),
        balloon: options.balloon.clone(),
        ..VmConfig::new(boot_source)
    };
    instance(&mut config, &options.instance)?;
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

/// Puts options about the monitor itself, where they are given, in the place of what `config` says.
fn instance(config: &mut VmConfig, options: &InstanceOptions) -> Result<(), Error> {
    let level = options.level.as_deref().map(str::parse::<LogLevel>).transpose();
    let logger = LoggerConfig {
        log_path: options.log_path.clone(),
        level: level.map_err(|cause| Error::configuration("--level", cause))?,
        show_level: options.show_level.then_some(true),
        show_log_origin: options.show_log_origin.then_some(true),
        module: options.module.clone(),
    };
    if logger != LoggerConfig::default() {
        config.logger = Some(logger.over(config.logger.take().unwrap_or_default()));
    }
    if let Some(path) = &options.metrics_path {
        config.metrics = Some(MetricsConfig::new(path.clone()));
    }
    Ok(())
}

/// The filters that the options ask for.
fn filters(options: &SeccompOptions) -> Result<Filters, Error> {
    const OPTION: &str = "--seccomp-filter";
    let Some(path) = &options.seccomp_filter else {
        return Ok(Filters::embedded(if options.no_seccomp { Level::Off } else { options.seccomp_level }));
    };
    let mut content = Vec::new();
    // One byte more than there can be tells a file that is too long.
    let most = FILE_MAX as u64 + 1;
    let read = open_image(OPTION, path)?.take(most).read_to_end(&mut content);
    read.map_err(|cause| Error::configuration(OPTION, cause))?;
    Filters::read(&content).map_err(|cause| Error::configuration(OPTION, cause))
}

/// `vmm seccomp`: makes a file for `--seccomp-filter`.
pub fn seccomp(command: &SeccompCommand) -> Result<(), Error> {
    let SeccompCommand::Compile { input, output } = command;
    let mut texts = Vec::new();
    for path in input {
        let mut text = String::new();
        let read = open_image("--input", path)?.take(SECCOMP_TEXT_MAX).read_to_string(&mut text);
        read.map_err(|cause| Error::configuration("--input", cause))?;
        texts.push(text);
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let file = compile(&texts, Arguments::Checked).map_err(|cause| Error::configuration("--input", cause))?;
    std::fs::write(output, file).map_err(|cause| Error::configuration("--output", cause))
}

/// Reads the file that `--metadata` names.
fn metadata(path: &Path) -> Result<Value, Error> {
    const OPTION: &str = "--metadata";
    let file = open_image(OPTION, path)?;
    let mut text = Vec::new();
    file.take(METADATA_FILE_MAX)
        .read_to_end(&mut text)
        .map_err(|cause| Error::configuration(OPTION, cause))?;
    serde_json::from_slice(&text).map_err(|cause| Error::configuration(OPTION, cause))
}
