//! The options of `vmm run` that describe devices: lists such as `root.img,ro,queues=4`.

use std::str::FromStr;

use kindling_api::{
    BalloonConfig, CacheType, DriveConfig, IoEngine, MacAddress, NetworkInterfaceConfig, VsockConfig,
    parse_memory_size,
};

/// Reads what `--disk` takes. The drive has no id yet unless one is given.
pub fn disk(text: &str) -> Result<DriveConfig, String> {
    let (path, rest) = match text.split_once(',') {
        Some((path, rest)) => (path, Some(rest)),
        None => (text, None),
    };
    if path.is_empty() {
        return Err("must begin with the path of a file or block device".to_owned());
    }
    let mut drive = DriveConfig::new("", path);
    for item in items(rest) {
        match item {
            ("ro", None) => drive.is_read_only = true,
            ("root", None) => drive.is_root_device = true,
            ("direct", None) => drive.direct = true,
            ("nodiscard", None) => drive.discard = false,
            ("id", Some(id)) => drive.drive_id = id.to_owned(),
            ("partuuid", Some(uuid)) => drive.partuuid = Some(uuid.to_owned()),
            ("engine", Some("sync")) => drive.io_engine = IoEngine::Sync,
            ("engine", Some("async")) => drive.io_engine = IoEngine::Async,
            ("engine", Some(_)) => return Err("engine must be sync or async".to_owned()),
            ("cache", Some("unsafe")) => drive.cache_type = CacheType::Unsafe,
            ("cache", Some("writeback")) => drive.cache_type = CacheType::Writeback,
            ("cache", Some(_)) => return Err("cache must be unsafe or writeback".to_owned()),
            ("queues", Some(number)) => drive.num_queues = parse("queues", number)?,
            ("queue-size", Some(number)) => drive.queue_size = parse("queue-size", number)?,
            ("sector", Some(number)) => drive.logical_block_size = parse("sector", number)?,
            item => {
                return Err(unknown(
                    item,
                    "ro, root, direct, nodiscard, id=, partuuid=, engine=, cache=, queues=, queue-size=, sector=",
                ));
            }
        }
    }
    if drive.partuuid.is_some() && !drive.is_root_device {
        return Err("partuuid is for the root device alone: add root".to_owned());
    }
    Ok(drive)
}

/// Reads what `--net` takes. The interface has no id yet unless one is given.
pub fn net(text: &str) -> Result<NetworkInterfaceConfig, String> {
    let mut interface = NetworkInterfaceConfig::new("", "");
    for item in items(Some(text)) {
        match item {
            ("tap", Some(name)) => interface.host_dev_name = name.to_owned(),
            ("id", Some(id)) => interface.iface_id = id.to_owned(),
            ("mac", Some(address)) => {
                interface.guest_mac =
                    Some(address.parse::<MacAddress>().map_err(|cause| format!("mac {cause}"))?);
            }
            ("mtu", Some(number)) => interface.mtu = Some(parse("mtu", number)?),
            ("queues", Some(number)) => interface.num_queues = parse("queues", number)?,
            item => return Err(unknown(item, "tap=, id=, mac=, mtu=, queues=")),
        }
    }
    if interface.host_dev_name.is_empty() {
        return Err("must name the tap on the host: tap=NAME".to_owned());
    }
    Ok(interface)
}

/// Reads what `--vsock` takes.
pub fn vsock(text: &str) -> Result<VsockConfig, String> {
    let (mut guest_cid, mut uds_path) = (None, None);
    for item in items(Some(text)) {
        match item {
            ("cid", Some(number)) => guest_cid = Some(parse("cid", number)?),
            ("path", Some(path)) if !path.is_empty() => uds_path = Some(path.into()),
            item => return Err(unknown(item, "cid=, path=")),
        }
    }
    match (guest_cid, uds_path) {
        (Some(guest_cid), Some(uds_path)) => Ok(VsockConfig { guest_cid, uds_path, vsock_id: None }),
        _ => Err("must be cid=N,path=PATH".to_owned()),
    }
}

/// Reads what `--balloon` takes: a size, as for the guest's memory but possibly 0, and then options.
pub fn balloon(text: &str) -> Result<BalloonConfig, String> {
    let (size, rest) = match text.split_once(',') {
        Some((size, rest)) => (size, Some(rest)),
        None => (text, None),
    };
    let amount_mib = match size {
        "0" => 0,
        size => parse_memory_size(size).map_err(|cause| format!("{cause}, got {size:?}"))?,
    };
    let mut balloon = BalloonConfig {
        amount_mib,
        deflate_on_oom: false,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: false,
    };
    for item in items(rest) {
        match item {
            ("deflate-on-oom", None) => balloon.deflate_on_oom = true,
            ("hinting", None) => balloon.free_page_hinting = true,
            ("reporting", None) => balloon.free_page_reporting = true,
            ("stats", Some(seconds)) => balloon.stats_polling_interval_s = parse("stats", seconds)?,
            item => return Err(unknown(item, "deflate-on-oom, hinting, reporting, stats=")),
        }
    }
    Ok(balloon)
}

/// The parts of a list: names, some with a value behind `=`.
fn items(list: Option<&str>) -> impl Iterator<Item = (&str, Option<&str>)> {
    list.into_iter().flat_map(|list| list.split(',')).map(|item| match item.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (item, None),
    })
}

fn parse<T: FromStr>(name: &str, number: &str) -> Result<T, String> {
    number.parse().map_err(|_| format!("{name} must be a number that fits, got {number:?}"))
}

fn unknown((name, _): (&str, Option<&str>), known: &str) -> String {
    format!("must be a list of {known} but has {name:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_path_and_options() {
        assert_eq!(disk("/d"), Ok(DriveConfig::new("", "/d")));
        let options = "/d,ro,root,direct,nodiscard,id=x,engine=async,cache=writeback,queues=4,queue-size=64,sector=4096";
        let drive = disk(options).unwrap();
        assert!(drive.is_read_only && drive.is_root_device && drive.direct && !drive.discard);
        assert_eq!((drive.io_engine, drive.cache_type), (IoEngine::Async, CacheType::Writeback));
        assert_eq!((drive.num_queues, drive.queue_size, drive.logical_block_size), (4, 64, 4096));
        assert_eq!(drive.drive_id, "x");
    }

    #[test]
    fn an_interface_is_a_tap_and_options() {
        let interface = net("tap=t0,mac=06:00:00:00:00:01,mtu=9000,queues=2,id=lan").unwrap();
        assert_eq!((interface.host_dev_name.as_str(), interface.iface_id.as_str()), ("t0", "lan"));
        assert_eq!((interface.mtu, interface.num_queues), (Some(9000), 2));
        assert_eq!(interface.guest_mac.unwrap().0, [6, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_balloon_is_a_size_and_options() {
        assert_eq!(balloon("0").unwrap().amount_mib, 0);
        let balloon = balloon("1G,deflate-on-oom,hinting,reporting,stats=5").unwrap();
        assert_eq!((balloon.amount_mib, balloon.stats_polling_interval_s), (1024, 5));
        assert!(balloon.deflate_on_oom && balloon.free_page_hinting && balloon.free_page_reporting);
    }

    #[test]
    fn a_fault_names_what_is_wrong() {
        for (error, part) in [
            (disk("").unwrap_err(), "path"),
            (disk("/d,fast").unwrap_err(), "\"fast\""),
            (disk("/d,ro=yes").unwrap_err(), "\"ro\""),
            (disk("/d,engine=warp").unwrap_err(), "engine"),
            (disk("/d,queues=-1").unwrap_err(), "queues"),
            (disk("/d,").unwrap_err(), "\"\""),
            (net("mac=06:00:00:00:00:01").unwrap_err(), "tap="),
            (net("tap=t,mac=1").unwrap_err(), "mac"),
            (vsock("cid=3").unwrap_err(), "cid=N,path=PATH"),
            (vsock("cid=x,path=/v").unwrap_err(), "cid"),
            (balloon("many").unwrap_err(), "many"),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
