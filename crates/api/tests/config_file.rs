//! The config file as a user meets it: what is accepted, and the exact words in which the rest is refused.

use std::error::Error as _;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use kindling_api::{
    BootProtocol, BootSource, CONFIG_MAX_LEN, ConfigError, CpuTemplate, HugePages, LogLevel, LoggerConfig,
    MachineConfig, MetricsConfig, SerialConfig, SerialMode, TokenBucketConfig, VmConfig,
};
use proptest::prelude::*;

const BOOT: &str = r#""boot-source": {"kernel_image_path": "/k"}"#;

/// A config file that is in order but for the given members of one section.
fn section(name: &str, members: &str) -> String {
    match name {
        "boot-source" => format!(r#"{{"boot-source": {{{members}}}}}"#),
        _ => format!(r#"{{{BOOT}, "{name}": {{{members}}}}}"#),
    }
}

#[test]
fn every_field_is_read() {
    let text = r#"{
        "boot-source": {"kernel_image_path": "/k", "initrd_path": "/i", "boot_args": "console=ttyS0", "boot_protocol": "Pvh"},
        "machine-config": {
            "vcpu_count": 254, "mem_size_mib": 4096, "smt": true, "track_dirty_pages": false,
            "huge_pages": "2M", "cpu_template": "None"
        },
        "serial": {
            "serial_out_path": "/tty", "mode": "Socket", "rate_limiter": {"size": 1000, "refill_time": 100}
        },
        "metrics": {"metrics_path": "/m", "emit_id": true, "properties": {"zone": "a"}},
        "logger": {
            "log_path": "/log", "level": "WARN", "show_level": true, "show_log_origin": false, "module": "api"
        }
    }"#;
    let boot_source = BootSource {
        kernel_image_path: "/k".into(),
        initrd_path: Some("/i".into()),
        boot_args: Some("console=ttyS0".into()),
        boot_protocol: BootProtocol::Pvh,
    };
    let expected = VmConfig {
        machine_config: MachineConfig {
            vcpu_count: 254,
            mem_size_mib: 4096,
            smt: true,
            track_dirty_pages: false,
            huge_pages: HugePages::Hugetlbfs2M,
            cpu_template: Some(CpuTemplate::None),
        },
        serial: Some(SerialConfig {
            serial_out_path: Some("/tty".into()),
            mode: Some(SerialMode::Socket),
            rate_limiter: Some(TokenBucketConfig { size: 1000, refill_time: 100, one_time_burst: None }),
        }),
        metrics: Some(MetricsConfig {
            metrics_path: "/m".into(),
            emit_id: true,
            properties: [("zone".to_owned(), "a".to_owned())].into(),
        }),
        logger: Some(LoggerConfig {
            log_path: Some("/log".into()),
            level: Some(LogLevel::Warning),
            show_level: Some(true),
            show_log_origin: Some(false),
            module: Some("api".into()),
        }),
        ..VmConfig::new(boot_source)
    };
    assert_eq!(VmConfig::from_json(text.as_bytes()).unwrap(), expected);
}

#[test]
fn without_machine_config_the_guest_has_one_vcpu_and_128_mib() {
    for text in [format!("{{{BOOT}}}"), format!(r#"{{{BOOT}, "machine-config": null}}"#)] {
        let machine = VmConfig::from_json(text.as_bytes()).unwrap().machine_config;
        assert_eq!((machine.vcpu_count, machine.mem_size_mib), (1, 128));
        assert_eq!(machine, MachineConfig::default());
    }
}

#[test]
fn a_file_that_names_every_section_of_firecracker_but_wants_none_of_them_is_accepted() {
    let text = format!(
        r#"{{{BOOT}, "drives": [], "network-interfaces": [], "pmem": [], "cpu-config": null, "balloon": null,
            "vsock": null, "logger": null, "metrics": null, "mmds-config": null, "entropy": null, "serial": null,
            "memory-hotplug": null}}"#
    );
    let config = VmConfig::from_json(text.as_bytes()).unwrap();
    assert_eq!((config.serial, config.logger), (None, None));
}

#[test]
fn a_bad_file_is_refused_with_the_field_and_the_cause() {
    let machine = |members: &str| section("machine-config", members);
    let logger = |members: &str| section("logger", members);
    let boot = |members: &str| section("boot-source", members);
    let cases = [
        // The file as a whole.
        (String::new(), "invalid JSON: EOF while parsing a value at line 1 column 0"),
        ("{\n  \"boot-source\": {,".into(), "invalid JSON: key must be a string at line 2 column 19"),
        (format!("{{{BOOT}}} x"), "invalid JSON: trailing characters at line 1 column 46"),
        (format!("{{{BOOT}, {BOOT}}}"), "invalid JSON: duplicate key `boot-source` at line 1 column 58"),
        ("[".repeat(100_000), "invalid JSON: recursion limit exceeded at line 1 column 128"),
        ("[]".into(), "must be an object, got an array"),
        ("null".into(), "must be an object, got null"),
        (
            format!(r#"{{{BOOT}, "machine_config": {{}}}}"#),
            "unknown field `machine_config`, expected one of `boot-source`, `machine-config`, `drives`, `network-interfaces`, `vsock`, `entropy`, `balloon`, `serial`, `logger`, `metrics`, `mmds-config`",
        ),
        (
            format!("{{{BOOT}, \"a\\nb\": 1}}"),
            "unknown field `a\\nb`, expected one of `boot-source`, `machine-config`, `drives`, `network-interfaces`, `vsock`, `entropy`, `balloon`, `serial`, `logger`, `metrics`, `mmds-config`",
        ),
        // Sections to come.
        (format!(r#"{{{BOOT}, "pmem": [{{}}]}}"#), "pmem: not supported yet"),
        (format!(r#"{{{BOOT}, "cpu-config": {{}}}}"#), "cpu-config: not supported yet"),
        // Sections of the monitor.
        (section("mmds-config", r#""version": "V2""#), "mmds-config.network_interfaces: is required"),
        (
            section("mmds-config", r#""network_interfaces": []"#),
            "mmds-config.network_interfaces: must name at least one",
        ),
        (
            section("mmds-config", r#""network_interfaces": ["eth0"]"#),
            "mmds-config.network_interfaces[0]: there is no network interface \"eth0\"",
        ),
        (
            section("mmds-config", r#""network_interfaces": ["eth0"], "ipv4_address": "169.254.1""#),
            "mmds-config.ipv4_address: invalid IPv4 address syntax",
        ),
        (section("metrics", r#""metrics_path": """#), "metrics.metrics_path: must not be empty"),
        (format!(r#"{{{BOOT}, "metrics": false}}"#), "metrics: must be an object, got a boolean"),
        // boot-source
        ("{}".into(), "boot-source: is required"),
        (r#"{"boot-source": null}"#.into(), "boot-source: is required"),
        (r#"{"boot-source": ["/k"]}"#.into(), "boot-source: must be an object, got an array"),
        (boot(""), "boot-source.kernel_image_path: is required"),
        (
            boot(r#""kernel_image_path": 1"#),
            "boot-source.kernel_image_path: invalid type: integer `1`, expected path string",
        ),
        (boot(r#""kernel_image_path": """#), "boot-source.kernel_image_path: must not be empty"),
        (
            boot(r#""kernel_image_path": "/k", "initrd_path": "a\u0000b""#),
            "boot-source.initrd_path: must not contain a NUL character",
        ),
        (
            boot(r#""kernel_image_path": "/k", "boot_args": "a\nb""#),
            "boot-source.boot_args: must not contain control characters, got '\\n' at byte 1",
        ),
        (
            boot(&format!(r#""kernel_image_path": "/k", "boot_args": "{}""#, "x".repeat(2049))),
            "boot-source.boot_args: must be at most 2048 bytes, got 2049",
        ),
        // machine-config
        (
            machine(r#""vcpus": 1"#),
            "machine-config: unknown field `vcpus`, expected one of `vcpu_count`, `mem_size_mib`, `smt`, \
             `track_dirty_pages`, `huge_pages`, `cpu_template`",
        ),
        (machine(r#""mem_size_mib": 128"#), "machine-config.vcpu_count: is required"),
        (machine(r#""vcpu_count": 1"#), "machine-config.mem_size_mib: is required"),
        (
            machine(r#""vcpu_count": 0, "mem_size_mib": 1"#),
            "machine-config.vcpu_count: must be between 1 and 254, got 0",
        ),
        (
            machine(r#""vcpu_count": 255, "mem_size_mib": 1"#),
            "machine-config.vcpu_count: must be between 1 and 254, got 255",
        ),
        (
            machine(r#""vcpu_count": 18446744073709551615, "mem_size_mib": 1"#),
            "machine-config.vcpu_count: must be between 1 and 254, got 18446744073709551615",
        ),
        (
            machine(r#""vcpu_count": -1, "mem_size_mib": 1"#),
            "machine-config.vcpu_count: invalid type: integer `-1`, expected a whole number between 1 and 254",
        ),
        (
            machine(r#""vcpu_count": 2.0, "mem_size_mib": 1"#),
            "machine-config.vcpu_count: invalid type: floating point `2.0`, expected a whole number between 1 and 254",
        ),
        (
            machine(r#""vcpu_count": "2", "mem_size_mib": 1"#),
            "machine-config.vcpu_count: invalid type: string \"2\", expected a whole number between 1 and 254",
        ),
        (machine(r#""vcpu_count": null, "mem_size_mib": 1"#), "machine-config.vcpu_count: is required"),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 0"#),
            "machine-config.mem_size_mib: must be between 1 and 4294967296, got 0",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 4294967297"#),
            "machine-config.mem_size_mib: must be between 1 and 4294967296, got 4294967297",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 99999999999999999999"#),
            "machine-config.mem_size_mib: invalid type: floating point `1e+20`, \
             expected a whole number between 1 and 4294967296",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 1e999"#),
            "invalid JSON: number out of range at line 1 column 102",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 1, "smt": 1"#),
            "machine-config.smt: invalid type: integer `1`, expected a boolean",
        ),
        (
            machine(r#""vcpu_count": 3, "mem_size_mib": 1, "smt": true"#),
            "machine-config.smt: needs one vCPU or an even number of them, got 3",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 1, "track_dirty_pages": true"#),
            "machine-config.track_dirty_pages: dirty page tracking is not supported yet, must be false",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 1, "cpu_template": "T2""#),
            "machine-config.cpu_template: CPU templates are not supported yet, must be \"None\", got \"T2\"",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 1, "huge_pages": "1G""#),
            "machine-config.huge_pages: unknown variant `1G`, expected one of `None`, `Transparent`, `2M`",
        ),
        (
            machine(r#""vcpu_count": 1, "mem_size_mib": 1, "huge_pages": "2M""#),
            "machine-config.mem_size_mib: must be even with huge_pages 2M, got 1",
        ),
        (
            machine(r#""vcpu_count": 1, "vcpu_count": 2, "mem_size_mib": 1"#),
            "invalid JSON: duplicate key `vcpu_count` at line 1 column 93",
        ),
        // serial, logger
        (section("serial", r#""serial_out_path": """#), "serial.serial_out_path: must not be empty"),
        (section("serial", r#""mode": "File""#), "serial.serial_out_path: is required with mode File"),
        (
            section("serial", r#""mode": "stdio""#),
            "serial.mode: unknown variant `stdio`, expected one of `Stdio`, `Pty`, `File`, `Socket`",
        ),
        (section("serial", r#""rate_limiter": {}"#), "serial.rate_limiter.size: is required"),
        (
            logger(r#""level": "loud""#),
            "logger.level: must be one of Off, Error, Warning, Info, Debug, Trace, got \"loud\"",
        ),
        (logger(r#""log_path": "\u0000""#), "logger.log_path: must not contain a NUL character"),
        (
            logger(r#""show_level": "yes""#),
            "logger.show_level: invalid type: string \"yes\", expected a boolean",
        ),
    ];
    for (text, expected) in cases {
        let error = VmConfig::from_json(text.as_bytes()).expect_err(&text);
        assert_eq!(error.to_string(), expected, "{text:.200}");
    }
}

#[test]
fn a_text_of_the_largest_size_is_read_and_one_byte_more_is_not() {
    let mut text = format!("{{{BOOT}}}").into_bytes();
    text.resize(CONFIG_MAX_LEN, b' ');
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &text).unwrap();
    assert!(VmConfig::from_file(file.path()).is_ok());

    text.push(b' ');
    fs::write(file.path(), &text).unwrap();
    for error in [VmConfig::from_json(&text), VmConfig::from_file(file.path())] {
        assert_eq!(error.unwrap_err().to_string(), "configuration is larger than 262144 bytes");
    }
}

#[test]
fn only_a_regular_file_is_read_and_nothing_makes_the_reader_wait() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [folder.path().to_owned(), fifo, socket, PathBuf::from("/dev/zero")] {
        let error = VmConfig::from_file(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("config file {} is not a regular file", path.display()));
    }
}

#[test]
fn a_missing_file_is_named_with_the_systems_reason_as_the_source() {
    let path = PathBuf::from("/nonexistent/vm.json");
    let error = VmConfig::from_file(&path).unwrap_err();
    assert_eq!(error.to_string(), "cannot open config file /nonexistent/vm.json");
    assert_eq!(error.source().unwrap().to_string(), "No such file or directory (os error 2)");
    assert!(matches!(error, ConfigError::Open { path: named, .. } if named == path));
}

fn path() -> impl Strategy<Value = PathBuf> {
    "[^\0]{1,40}".prop_map(PathBuf::from)
}

fn machine() -> impl Strategy<Value = MachineConfig> {
    let huge_pages =
        prop_oneof![Just(HugePages::None), Just(HugePages::Transparent), Just(HugePages::Hugetlbfs2M),];
    let template = prop_oneof![Just(None), Just(Some(CpuTemplate::None))];
    (1..=254u8, 1..=1u64 << 32, any::<bool>(), huge_pages, template)
        .prop_map(|(vcpu_count, mem_size_mib, smt, huge_pages, cpu_template)| MachineConfig {
            vcpu_count,
            mem_size_mib,
            smt,
            huge_pages,
            cpu_template,
            track_dirty_pages: false,
        })
        .prop_filter("fields must agree", |machine| machine.validate().is_ok())
}

fn logger() -> impl Strategy<Value = LoggerConfig> {
    let level = prop_oneof![
        Just(LogLevel::Off),
        Just(LogLevel::Error),
        Just(LogLevel::Warning),
        Just(LogLevel::Info),
        Just(LogLevel::Debug),
        Just(LogLevel::Trace),
    ];
    let flag = || proptest::option::of(any::<bool>());
    (proptest::option::of(path()), proptest::option::of(level), flag(), flag(), any::<Option<String>>())
        .prop_map(|(log_path, level, show_level, show_log_origin, module)| LoggerConfig {
            log_path,
            level,
            show_level,
            show_log_origin,
            module,
        })
}

fn config() -> impl Strategy<Value = VmConfig> {
    let protocol =
        prop_oneof![Just(BootProtocol::Auto), Just(BootProtocol::Linux64), Just(BootProtocol::Pvh)];
    let boot_source = (path(), proptest::option::of(path()), proptest::option::of("\\PC{0,200}"), protocol)
        .prop_map(|(kernel_image_path, initrd_path, boot_args, boot_protocol)| BootSource {
            kernel_image_path,
            initrd_path,
            boot_args,
            boot_protocol,
        });
    let serial = prop_oneof![
        (path(), proptest::option::of(prop_oneof![Just(SerialMode::File), Just(SerialMode::Socket)]))
            .prop_map(|(path, mode)| SerialConfig { serial_out_path: Some(path), mode, rate_limiter: None }),
        proptest::option::of(prop_oneof![Just(SerialMode::Stdio), Just(SerialMode::Pty)])
            .prop_map(|mode| SerialConfig { serial_out_path: None, mode, rate_limiter: None }),
    ];
    (boot_source, machine(), proptest::option::of(serial), proptest::option::of(logger())).prop_map(
        |(boot_source, machine_config, serial, logger)| VmConfig {
            machine_config,
            serial,
            logger,
            ..VmConfig::new(boot_source)
        },
    )
}

proptest! {
    #[test]
    fn a_configuration_survives_being_written_and_read(config in config()) {
        let text = serde_json::to_vec(&config).unwrap();
        prop_assert_eq!(VmConfig::from_json(&text).unwrap(), config);
    }

    #[test]
    fn a_memory_size_written_as_mib_or_gib_reads_back(mib in 1..=1u64 << 32, gib in 1..=1u64 << 22) {
        prop_assert_eq!(kindling_api::parse_memory_size(&format!("{mib}MiB")), Ok(mib));
        prop_assert_eq!(kindling_api::parse_memory_size(&format!("{gib}G")), Ok(gib * 1024));
    }

    #[test]
    fn no_text_makes_the_memory_size_parser_panic(text in any::<String>()) {
        let _ = kindling_api::parse_memory_size(&text);
    }
}
