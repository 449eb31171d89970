//! From the configuration of devices to devices: the one place that knows each kind by its name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use kindling_api::{
    BalloonConfig, CacheType, DriveConfig, EntropyConfig, IoEngine, NetworkInterfaceConfig,
    RateLimiterConfig, Section, TokenBucketConfig, VmConfig, VsockConfig,
};
use kindling_rate_limiter::{BucketConfig, Update};
use kindling_seccomp_profiles::Thread;
use kindling_virtio_balloon::{self as balloon, Balloon};
use kindling_virtio_blk::{self as blk, Blk, BlkConfig, BlkControl, Disk, FileDisk};
use kindling_virtio_device::Device;
use kindling_virtio_net::{Backend, Net, NetControl};
use kindling_virtio_rng::{Limits, Rng};
use kindling_virtio_vsock::{DEFAULT_MAX_CONNECTIONS, SocketFile, Vsock};

use crate::error::Error;
use crate::metadata::Metadata;
use crate::prepared::replace;
use crate::registry::{Machine, Registry};

/// A device that a configuration asks for, in the order in which a guest finds them.
#[derive(Clone, Copy)]
enum Wanted<'c> {
    Drive(usize, &'c DriveConfig),
    NetworkInterface(usize, &'c NetworkInterfaceConfig),
    Vsock(&'c VsockConfig),
    Entropy(&'c EntropyConfig),
    Balloon(&'c BalloonConfig),
}

/// A device whose back end is open.
enum Opened {
    Drive(Blk),
    NetworkInterface(Net),
    Vsock(Vsock),
    Entropy(Rng),
    Balloon(Balloon),
}

fn wanted(config: &VmConfig) -> Vec<Wanted<'_>> {
    let mut drives: Vec<_> = config.drives.iter().enumerate().collect();
    // The guest calls the first one vda. Sorting is stable: the others stay in their order.
    drives.sort_by_key(|(_, drive)| !drive.is_root_device);
    let drives = drives.into_iter().map(|(index, drive)| Wanted::Drive(index, drive));
    let interfaces = config.network_interfaces.iter().enumerate();
    let interfaces = interfaces.map(|(index, interface)| Wanted::NetworkInterface(index, interface));
    let others = [
        config.vsock.as_ref().map(Wanted::Vsock),
        config.entropy.as_ref().map(Wanted::Entropy),
        config.balloon.as_ref().map(Wanted::Balloon),
    ];
    drives.chain(interfaces).chain(others.into_iter().flatten()).collect()
}

/// What `section` of `config` describes, if it is a device.
fn changed<'c>(config: &'c VmConfig, section: &Section) -> Option<Wanted<'c>> {
    wanted(config).into_iter().find(|wanted| match (wanted, section) {
        (Wanted::Drive(_, config), Section::Drive(changed)) => config.drive_id == changed.drive_id,
        (Wanted::NetworkInterface(_, config), Section::NetworkInterface(changed)) => {
            config.iface_id == changed.iface_id
        }
        (Wanted::Vsock(_), Section::Vsock(_))
        | (Wanted::Entropy(_), Section::Entropy(_))
        | (Wanted::Balloon(_), Section::Balloon(_)) => true,
        _ => false,
    })
}

impl Wanted<'_> {
    /// The section of the configuration that describes it.
    fn section(&self) -> String {
        match self {
            Wanted::Drive(index, _) => format!("drives[{index}]"),
            Wanted::NetworkInterface(index, _) => format!("network-interfaces[{index}]"),
            _ => self.kind().to_owned(),
        }
    }

    /// What kind of device it is to a reader of metrics.
    fn kind(&self) -> &'static str {
        match self {
            Wanted::Drive(..) => "block",
            Wanted::NetworkInterface(..) => "net",
            Wanted::Vsock(_) => "vsock",
            Wanted::Entropy(_) => "entropy",
            Wanted::Balloon(_) => "balloon",
        }
    }

    /// The kind of its threads: this device alone makes connections.
    fn thread(&self) -> Thread {
        match self {
            Wanted::Vsock(_) => Thread::Vsock,
            _ => Thread::Io,
        }
    }

    /// Its name among those of its kind.
    fn id(&self) -> &str {
        match self {
            Wanted::Drive(_, drive) => &drive.drive_id,
            Wanted::NetworkInterface(_, interface) => &interface.iface_id,
            _ => self.kind(),
        }
    }

    /// Its name among all devices: a drive and a network interface can have the same id.
    fn key(&self) -> String {
        format!("{} {}", self.kind(), self.id())
    }

    /// Whether the back end of the other one cannot be opened while that of this one is open.
    fn excludes(&self, other: &Wanted<'_>) -> bool {
        match (self, other) {
            (Wanted::NetworkInterface(_, one), Wanted::NetworkInterface(_, other)) => {
                one.host_dev_name == other.host_dev_name
            }
            (Wanted::Vsock(one), Wanted::Vsock(other)) => one.uds_path == other.uds_path,
            _ => false,
        }
    }

    fn open(&self) -> Result<Opened, Error> {
        let opened = match self {
            Wanted::Drive(_, config) => drive(config).map(Opened::Drive),
            Wanted::NetworkInterface(_, config) => network(config).map(Opened::NetworkInterface),
            Wanted::Vsock(config) => vsock(config).map(Opened::Vsock),
            Wanted::Entropy(config) => entropy(config).map(Opened::Entropy),
            Wanted::Balloon(config) => balloon(config).map(Opened::Balloon),
        };
        opened.map_err(|(field, cause)| Error::Configuration {
            field: format!("{}.{field}", self.section()),
            cause,
        })
    }
}

/// Devices whose back ends were opened when they were asked for, before the guest starts.
#[derive(Default)]
pub struct OpenDevices(BTreeMap<String, Opened>);

impl OpenDevices {
    /// Opens the back end of what `section` of `config` describes, if it is a device, in the place of what is open under its
    /// name since `before`. Should this fail, that stays open, unless it is the same tap or socket: then it is opened anew.
    pub fn open(&mut self, before: &VmConfig, config: &VmConfig, section: &Section) -> Result<(), Error> {
        let Some(wanted) = changed(config, section) else { return Ok(()) };
        let before = changed(before, section);
        let is_exclusive = before.as_ref().is_some_and(|before| before.excludes(&wanted));
        let key = wanted.key();
        let mut place = self.0.remove(&key);
        let reopen = || before.map(|before| before.open()).transpose();
        let result = replace(&mut place, is_exclusive, reopen, || wanted.open().map(Some));
        if let Some(opened) = place {
            self.0.insert(key, opened);
        }
        result
    }

    /// Opens what `config` asks for and is not open yet.
    pub fn open_missing(&mut self, config: &VmConfig) -> Result<(), Error> {
        for wanted in wanted(config) {
            if let Entry::Vacant(place) = self.0.entry(wanted.key()) {
                place.insert(wanted.open()?);
            }
        }
        Ok(())
    }

    /// What is open for drives.
    pub fn disks(&self) -> Vec<Arc<dyn Disk>> {
        let disk = |device: &Opened| match device {
            Opened::Drive(device) => Some(device.disk()),
            _ => None,
        };
        self.0.values().filter_map(disk).collect()
    }

    /// Has the files of sockets stay when their devices go.
    pub fn leave_sockets(&self) {
        for device in self.0.values() {
            if let Opened::Vsock(device) = device {
                device.socket_file().leave();
            }
        }
    }
}

/// What changes devices while the guest runs, by their ids.
#[derive(Default)]
pub struct Controls {
    /// Of drives.
    pub drives: BTreeMap<String, BlkControl>,
    /// Of network interfaces.
    pub network_interfaces: BTreeMap<String, NetControl>,
    /// Of the balloon.
    pub balloon: Option<Arc<balloon::Control>>,
    /// The file of the sockets device's socket.
    pub vsock: Option<Arc<SocketFile>>,
}

/// Attaches all devices that `config` asks for, in the order in which the guest shall find them. They are taken from those that
/// are `open`, as all have to be.
pub fn attach(
    registry: &mut Registry,
    machine: &Machine<'_>,
    config: &VmConfig,
    open: &mut OpenDevices,
    metadata: &mut Metadata,
) -> Result<Controls, Error> {
    let mut controls = Controls::default();
    for wanted in wanted(config) {
        let key = wanted.key();
        let not_open = || Error::host("attach a device")(format!("{key} is not open"));
        let opened = open.0.remove(&key).ok_or_else(not_open)?;
        let id = wanted.id();
        let device: Box<dyn Device> = match opened {
            Opened::Drive(device) => {
                controls.drives.insert(id.to_owned(), device.control());
                Box::new(device)
            }
            Opened::NetworkInterface(device) => {
                controls.network_interfaces.insert(id.to_owned(), device.control());
                Box::new(match metadata.detour(config.mmds_config.as_ref(), id)? {
                    Some(detour) => device.with_detour(detour),
                    None => device,
                })
            }
            Opened::Vsock(device) => {
                controls.vsock = Some(device.socket_file());
                Box::new(device)
            }
            Opened::Entropy(device) => Box::new(device),
            Opened::Balloon(device) => {
                controls.balloon = Some(device.control());
                Box::new(device)
            }
        };
        registry.attach(machine, (wanted.kind(), id), wanted.thread(), device)?;
    }
    Ok(controls)
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

fn drive(config: &DriveConfig) -> Result<Blk, Fault> {
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
    Blk::new(Arc::new(disk), &config).map_err(fault("path_on_host"))
}

fn network(config: &NetworkInterfaceConfig) -> Result<Net, Fault> {
    let tap =
        Backend::tap(&config.host_dev_name, config.num_queues.into()).map_err(fault("host_dev_name"))?;
    let device = Net::new(tap, config.guest_mac.map(|mac| mac.0), config.mtu).map_err(fault("mtu"))?;
    let control = device.control();
    let (bandwidth, ops) = buckets(config.rx_rate_limiter.as_ref());
    control.limit_rx(bandwidth.into(), ops.into()).map_err(fault("rx_rate_limiter"))?;
    let (bandwidth, ops) = buckets(config.tx_rate_limiter.as_ref());
    control.limit_tx(bandwidth.into(), ops.into()).map_err(fault("tx_rate_limiter"))?;
    Ok(device)
}

fn vsock(config: &VsockConfig) -> Result<Vsock, Fault> {
    let cid = u32::try_from(config.guest_cid).map_err(fault("guest_cid"))?;
    Vsock::new(cid, &config.uds_path, DEFAULT_MAX_CONNECTIONS).map_err(fault("uds_path"))
}

fn entropy(config: &EntropyConfig) -> Result<Rng, Fault> {
    let (bandwidth, ops) = buckets(config.rate_limiter.as_ref());
    Rng::new(Limits { bandwidth, ops }).map_err(fault("rate_limiter"))
}

fn balloon(config: &BalloonConfig) -> Result<Balloon, Fault> {
    let config = balloon::Config {
        amount_mib: u32::try_from(config.amount_mib).map_err(fault("amount_mib"))?,
        deflate_on_oom: config.deflate_on_oom,
        statistics_interval_s: config.stats_polling_interval_s,
        free_page_hinting: config.free_page_hinting,
        free_page_reporting: config.free_page_reporting,
    };
    Balloon::new(config).map_err(fault("amount_mib"))
}

/// The bucket that `config` describes; one of size or refill time 0 limits nothing.
pub fn bucket(config: TokenBucketConfig) -> Option<BucketConfig> {
    config.limits().then(|| BucketConfig {
        size: config.size,
        refill_time: Duration::from_millis(config.refill_time),
        one_time_burst: config.one_time_burst.unwrap_or(0),
    })
}

/// The buckets of a limiter, for bytes and operations.
fn buckets(limiter: Option<&RateLimiterConfig>) -> (Option<BucketConfig>, Option<BucketConfig>) {
    limiter.map_or((None, None), |limiter| (limiter.bandwidth.and_then(bucket), limiter.ops.and_then(bucket)))
}

/// What a change of a limiter does to its buckets, for bytes and operations: those that it does not name stay.
pub fn updates(limiter: Option<&RateLimiterConfig>) -> (Update, Update) {
    let update =
        |config: Option<TokenBucketConfig>| config.map_or(Update::Keep, |config| bucket(config).into());
    limiter.map_or((Update::Keep, Update::Keep), |limiter| (update(limiter.bandwidth), update(limiter.ops)))
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
