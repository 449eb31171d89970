//! From the configuration of devices to devices: the one place that knows each kind by its name.

use std::time::Duration;

use kindling_api::{
    BalloonConfig, CacheType, DriveConfig, EntropyConfig, IoEngine, NetworkInterfaceConfig,
    RateLimiterConfig, TokenBucketConfig, VmConfig, VsockConfig,
};
use kindling_rate_limiter::BucketConfig;
use kindling_virtio_balloon::{self as balloon, Balloon};
use kindling_virtio_blk::{self as blk, Blk, BlkConfig, FileDisk};
use kindling_virtio_device::Device;
use kindling_virtio_net::{Backend, Net};
use kindling_virtio_rng::{Limits, Rng};
use kindling_virtio_vsock::{DEFAULT_MAX_CONNECTIONS, Vsock};

use crate::error::Error;
use crate::registry::{Machine, Registry};

/// Attaches all devices that `config` asks for, in the order in which the guest shall find them.
pub fn attach(registry: &mut Registry, machine: &Machine<'_>, config: &VmConfig) -> Result<(), Error> {
    let mut drives: Vec<_> = config.drives.iter().enumerate().collect();
    // The guest calls the first one vda. Sorting is stable: the others stay in their order.
    drives.sort_by_key(|(_, drive)| !drive.is_root_device);
    for (index, drive) in drives {
        let device = self::drive(drive).map_err(at(|| format!("drives[{index}]")))?;
        registry.attach(machine, &drive.drive_id, device)?;
    }
    for (index, interface) in config.network_interfaces.iter().enumerate() {
        let device = network(interface).map_err(at(|| format!("network-interfaces[{index}]")))?;
        registry.attach(machine, &interface.iface_id, device)?;
    }
    if let Some(vsock) = &config.vsock {
        let device = self::vsock(vsock).map_err(at(|| "vsock".to_owned()))?;
        registry.attach(machine, "vsock", device)?;
    }
    if let Some(entropy) = &config.entropy {
        let device = self::entropy(entropy).map_err(at(|| "entropy".to_owned()))?;
        registry.attach(machine, "entropy", device)?;
    }
    if let Some(balloon) = &config.balloon {
        let device = self::balloon(balloon).map_err(at(|| "balloon".to_owned()))?;
        registry.attach(machine, "balloon", device)?;
    }
    Ok(())
}

/// What the kernel has to be told of the root device, if there is one.
pub fn root_parameter(config: &VmConfig) -> Option<String> {
    let root = config.drives.iter().find(|drive| drive.is_root_device)?;
    let mode = if root.is_read_only { "ro" } else { "rw" };
    Some(match &root.partuuid {
        Some(partuuid) => format!("root=PARTUUID={partuuid} {mode}"),
        None => format!("root=/dev/vda {mode}"),
    })
}

/// A field of a device's section, and what is wrong with it.
type Fault = (&'static str, Box<dyn std::error::Error + Send + Sync>);

/// For `map_err`: says which field is at fault.
fn fault<E: std::error::Error + Send + Sync + 'static>(field: &'static str) -> impl FnOnce(E) -> Fault {
    move |error| (field, error.into())
}

/// For `map_err`: says in which section the field is.
fn at(section: impl FnOnce() -> String) -> impl FnOnce(Fault) -> Error {
    move |(field, cause)| Error::Configuration { field: format!("{}.{field}", section()), cause }
}

fn drive(config: &DriveConfig) -> Result<Box<dyn Device>, Fault> {
    let disk = FileDisk::open(&config.path_on_host, config.is_read_only, config.direct)
        .map_err(fault("path_on_host"))?;
    let (bandwidth, ops) = buckets(config.rate_limiter.as_ref());
    let config = BlkConfig {
        id: config.drive_id.clone(),
        cache: match config.cache_type {
            CacheType::Unsafe => blk::CacheMode::Unsafe,
            CacheType::Writeback => blk::CacheMode::Writeback,
        },
        engine: match config.io_engine {
            IoEngine::Sync => blk::IoEngine::Sync,
            IoEngine::Async => blk::IoEngine::Async,
        },
        queues: config.num_queues,
        queue_size: config.queue_size,
        block_size: config.logical_block_size,
        discard: config.discard,
        bandwidth,
        ops,
    };
    // The ranges are checked already: what is left is what this disk, or this host, cannot do.
    let device = Blk::new(std::sync::Arc::new(disk), &config).map_err(fault("path_on_host"))?;
    Ok(Box::new(device))
}

fn network(config: &NetworkInterfaceConfig) -> Result<Box<dyn Device>, Fault> {
    let tap =
        Backend::tap(&config.host_dev_name, config.num_queues.into()).map_err(fault("host_dev_name"))?;
    let device = Net::new(tap, config.guest_mac.map(|mac| mac.0), config.mtu).map_err(fault("mtu"))?;
    let control = device.control();
    let (bandwidth, ops) = buckets(config.rx_rate_limiter.as_ref());
    control.limit_rx(bandwidth.into(), ops.into()).map_err(fault("rx_rate_limiter"))?;
    let (bandwidth, ops) = buckets(config.tx_rate_limiter.as_ref());
    control.limit_tx(bandwidth.into(), ops.into()).map_err(fault("tx_rate_limiter"))?;
    Ok(Box::new(device))
}

fn vsock(config: &VsockConfig) -> Result<Box<dyn Device>, Fault> {
    let cid = u32::try_from(config.guest_cid).map_err(fault("guest_cid"))?;
    let device = Vsock::new(cid, &config.uds_path, DEFAULT_MAX_CONNECTIONS).map_err(fault("uds_path"))?;
    Ok(Box::new(device))
}

fn entropy(config: &EntropyConfig) -> Result<Box<dyn Device>, Fault> {
    let (bandwidth, ops) = buckets(config.rate_limiter.as_ref());
    Ok(Box::new(Rng::new(Limits { bandwidth, ops }).map_err(fault("rate_limiter"))?))
}

fn balloon(config: &BalloonConfig) -> Result<Box<dyn Device>, Fault> {
    let config = balloon::Config {
        amount_mib: u32::try_from(config.amount_mib).map_err(fault("amount_mib"))?,
        deflate_on_oom: config.deflate_on_oom,
        statistics_interval_s: config.stats_polling_interval_s,
        free_page_hinting: config.free_page_hinting,
        free_page_reporting: config.free_page_reporting,
    };
    Ok(Box::new(Balloon::new(config).map_err(fault("amount_mib"))?))
}

/// The buckets of a limiter, for bytes and operations. One of size or refill time 0 limits nothing.
fn buckets(limiter: Option<&RateLimiterConfig>) -> (Option<BucketConfig>, Option<BucketConfig>) {
    let bucket = |config: TokenBucketConfig| {
        (config.size != 0 && config.refill_time != 0).then(|| BucketConfig {
            size: config.size,
            refill_time: Duration::from_millis(config.refill_time),
            one_time_burst: config.one_time_burst.unwrap_or(0),
        })
    };
    limiter.map_or((None, None), |limiter| (limiter.bandwidth.and_then(bucket), limiter.ops.and_then(bucket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(drives: Vec<DriveConfig>) -> VmConfig {
        VmConfig { drives, ..VmConfig::default() }
    }

    #[test]
    fn the_kernel_is_told_of_the_root_device() {
        assert_eq!(root_parameter(&config(vec![DriveConfig::new("d", "/d")])), None);
        let root = DriveConfig { is_root_device: true, ..DriveConfig::new("r", "/r") };
        let with = |root| root_parameter(&config(vec![DriveConfig::new("d", "/d"), root])).unwrap();
        assert_eq!(with(root.clone()), "root=/dev/vda rw");
        assert_eq!(with(DriveConfig { is_read_only: true, ..root.clone() }), "root=/dev/vda ro");
        let partuuid = Some("00aa-01".to_owned());
        assert_eq!(with(DriveConfig { partuuid, ..root }), "root=PARTUUID=00aa-01 rw");
    }

    #[test]
    fn a_bucket_of_nothing_limits_nothing() {
        let bucket =
            |size, refill_time| Some(TokenBucketConfig { size, refill_time, one_time_burst: Some(7) });
        let limiter = RateLimiterConfig { bandwidth: bucket(1000, 100), ops: bucket(0, 100) };
        let expected =
            BucketConfig { size: 1000, refill_time: Duration::from_millis(100), one_time_burst: 7 };
        assert_eq!(buckets(Some(&limiter)), (Some(expected), None));
        let limiter = RateLimiterConfig { bandwidth: None, ops: bucket(5, 0) };
        assert_eq!(buckets(Some(&limiter)), (None, None));
        assert_eq!(buckets(None), (None, None));
    }
}
