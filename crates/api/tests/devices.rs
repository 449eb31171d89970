//! The sections of the devices: what is accepted, and the exact words in which the rest is refused.

use kindling_api::{CacheType, DriveConfig, IoEngine, NetworkInterfaceConfig, TokenBucketConfig, VmConfig};

const BOOT: &str = r#""boot-source": {"kernel_image_path": "/k"}"#;

fn read(section: &str, value: &str) -> Result<VmConfig, String> {
    let text = format!(r#"{{{BOOT}, "{section}": {value}}}"#);
    VmConfig::from_json(text.as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn every_field_is_read_and_written_again() {
    let text = format!(
        r#"{{{BOOT},
        "drives": [{{
            "drive_id": "root", "is_root_device": true, "path_on_host": "/r", "partuuid": "00aa-01",
            "cache_type": "Writeback", "is_read_only": true, "io_engine": "Async",
            "rate_limiter": {{
                "bandwidth": {{"size": 1, "refill_time": 2, "one_time_burst": 3}},
                "ops": {{"size": 4, "refill_time": 5}}
            }},
            "num_queues": 4, "queue_size": 128, "discard": false, "direct": true, "logical_block_size": 4096
        }}],
        "network-interfaces": [{{
            "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:00:00:00:01", "mtu": 9000,
            "rx_rate_limiter": {{}}, "tx_rate_limiter": {{"ops": {{"size": 0, "refill_time": 0}}}}, "num_queues": 2
        }}],
        "vsock": {{"guest_cid": 3, "uds_path": "/v"}},
        "entropy": {{"rate_limiter": {{}}}},
        "balloon": {{
            "amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 1,
            "free_page_hinting": true, "free_page_reporting": true
        }}
    }}"#
    );
    let config = VmConfig::from_json(text.as_bytes()).unwrap();
    let drive = &config.drives[0];
    assert_eq!((drive.drive_id.as_str(), drive.num_queues, drive.queue_size), ("root", 4, 128));
    assert_eq!((drive.cache_type, drive.io_engine), (CacheType::Writeback, IoEngine::Async));
    assert!(drive.is_root_device && drive.is_read_only && drive.direct && !drive.discard);
    let limiter = drive.rate_limiter.unwrap();
    let bandwidth = TokenBucketConfig { size: 1, refill_time: 2, one_time_burst: Some(3) };
    assert_eq!(limiter.bandwidth, Some(bandwidth));
    assert_eq!(limiter.ops, Some(TokenBucketConfig { size: 4, refill_time: 5, one_time_burst: None }));
    let interface = &config.network_interfaces[0];
    assert_eq!(interface.guest_mac.unwrap().0, [6, 0, 0, 0, 0, 1]);
    assert_eq!((interface.mtu, interface.num_queues), (Some(9000), 2));
    assert_eq!(config.vsock.as_ref().unwrap().guest_cid, 3);
    assert!(config.balloon.as_ref().unwrap().free_page_hinting);

    let written = serde_json::to_vec(&config).unwrap();
    assert_eq!(VmConfig::from_json(&written).unwrap(), config);
}

#[test]
fn what_firecracker_does_not_know_is_written_only_when_it_is_used() {
    let drive = serde_json::to_value(DriveConfig::new("d", "/d")).unwrap();
    let names: Vec<_> = drive.as_object().unwrap().keys().cloned().collect();
    let known = ["cache_type", "drive_id", "io_engine", "is_read_only", "is_root_device", "path_on_host"];
    assert_eq!(names, known);
    let interface = serde_json::to_value(NetworkInterfaceConfig::new("e", "t")).unwrap();
    let names: Vec<_> = interface.as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["host_dev_name", "iface_id"]);
}

#[test]
fn a_fault_names_its_field() {
    let drive = |members: &str| {
        let base = r#""drive_id": "d", "is_root_device": false, "path_on_host": "/d""#;
        format!("[{{{base}{members}}}]")
    };
    let interface = |members: &str| format!(r#"[{{"iface_id": "e", "host_dev_name": "t"{members}}}]"#);
    let same_mac = |id: &str| {
        format!(r#"{{"iface_id": "{id}", "host_dev_name": "{id}", "guest_mac": "06:00:00:00:00:01"}}"#)
    };
    let root = r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "/d"}"#;
    let other_root = r#"{"drive_id": "b", "is_root_device": true, "path_on_host": "/d"}"#;
    let long = "v".repeat(108);
    let cases = [
        (
            "drives",
            r#"[{"drive_id": "d", "path_on_host": "/d"}]"#.into(),
            "drives[0].is_root_device: is required",
        ),
        (
            "drives",
            r#"[{"drive_id": "../d", "is_root_device": false, "path_on_host": "/d"}]"#.into(),
            "drives[0].drive_id: must be letters, digits and `_`, got '.'",
        ),
        ("drives", drive(r#", "socket": "/s""#), "drives[0]: unknown field `socket`, expected one of"),
        ("drives", drive(r#", "num_queues": 0"#), "drives[0].num_queues: must be between 1 and 16, got 0"),
        (
            "drives",
            drive(r#", "queue_size": 100"#),
            "drives[0].queue_size: must be a power of two between 16 and 1024, got 100",
        ),
        (
            "drives",
            drive(r#", "logical_block_size": 1024"#),
            "drives[0].logical_block_size: must be 512 or 4096, got 1024",
        ),
        (
            "drives",
            drive(r#", "partuuid": "1 2""#),
            "drives[0].partuuid: must be 1 to 64 letters, digits or `-`",
        ),
        (
            "drives",
            drive(r#", "rate_limiter": {"ops": {"size": 1, "refill_time": 99999999999999}}"#),
            "drives[0].rate_limiter.ops.refill_time: must be at most 31536000000, got 99999999999999",
        ),
        (
            "drives",
            format!("[{root}, {other_root}]"),
            "drives[1].is_root_device: must be false, since drives[0] is the root device",
        ),
        (
            "drives",
            format!("[{root}, {root}]").replacen("true", "false", 1),
            r#"drives[1].drive_id: must be unique, but drives[0] has a too"#,
        ),
        (
            "network-interfaces",
            format!("[{}]", ["a", "b"].map(same_mac).join(", ")),
            "network-interfaces[1].guest_mac: must be unique, but network-interfaces[0] has 06:00:00:00:00:01 too",
        ),
        (
            "network-interfaces",
            interface(r#", "mtu": 67"#),
            "network-interfaces[0].mtu: must be between 68 and 65535, got 67",
        ),
        (
            "network-interfaces",
            interface(r#", "guest_mac": "x""#),
            r#"network-interfaces[0].guest_mac: must be a MAC address such as 06:00:AC:10:00:02, got "x""#,
        ),
        (
            "network-interfaces",
            interface(r#", "num_queues": 17"#),
            "network-interfaces[0].num_queues: must be between 1 and 16, got 17",
        ),
        (
            "vsock",
            r#"{"guest_cid": 2, "uds_path": "/v"}"#.into(),
            "vsock.guest_cid: must be between 3 and 4294967294, got 2",
        ),
        (
            "vsock",
            format!(r#"{{"guest_cid": 3, "uds_path": "{long}"}}"#),
            "vsock.uds_path: must be at most 107 bytes, got 108",
        ),
        (
            "balloon",
            r#"{"amount_mib": 129, "deflate_on_oom": false}"#.into(),
            "balloon.amount_mib: must be at most the guest's memory of 128 MiB, got 129",
        ),
        (
            "entropy",
            r#"{"rate_limiter": {"bandwidth": {"size": 1}}}"#.into(),
            "entropy.rate_limiter.bandwidth.refill_time: is required",
        ),
    ];
    for (section, value, message) in cases {
        let error = read(section, &value).unwrap_err();
        assert!(error.starts_with(message), "{section} {value}: {error}");
    }
}

#[test]
fn sections_that_are_null_or_empty_ask_for_nothing() {
    for (section, value) in [
        ("drives", "[]"),
        ("drives", "null"),
        ("network-interfaces", "null"),
        ("vsock", "null"),
        ("balloon", "null"),
    ] {
        let config = read(section, value).unwrap();
        assert!(config.drives.is_empty() && config.vsock.is_none() && config.balloon.is_none());
    }
}
