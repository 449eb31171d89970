//! The block device: what outlives a driver.

use std::sync::{Arc, Mutex};

use kindling_metrics::Metrics;
use kindling_rate_limiter::SharedLimiter;
use kindling_virtio_device::{
    ActivateError, Activation, ConfigSpace, Device, SetUp, Settings, Worker, Workers,
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::control::BlkSettings;
use crate::worker::{self, RingPlace};
use crate::{BlkConfig, BlkControl, BlkMetrics, Disk, Error, IoEngine};

/// A virtio block device (VIRTIO 1.2, 5.2).
///
/// Every queue has a worker of its own, which takes requests, has the disk do them, and answers. So a disk that is slow
/// or does not answer holds up nothing but the guest's requests to it.
pub struct Blk {
    control: BlkControl,
    features: u64,
    queue_sizes: Vec<u16>,
    /// By queue, for the asynchronous engine.
    rings: Option<Vec<Arc<RingPlace>>>,
}

/// What the workers of a device and its control share.
pub(crate) struct Shared {
    pub metrics: Arc<BlkMetrics>,
    pub limiter: Arc<SharedLimiter>,
    pub id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// Bytes of a block as the guest sees it.
    pub block_size: u32,
    /// Held during a change of the disk, so that capacity and configuration space agree in the end.
    pub changing: Mutex<()>,
}

impl Blk {
    /// A device over `disk`, most likely a [`FileDisk`](crate::FileDisk).
    ///
    /// # Errors
    ///
    /// When something in `config` is out of range, or not possible with this disk or on this host.
    pub fn new(disk: Arc<dyn Disk>, config: &BlkConfig) -> Result<Self, Error> {
        config.check()?;
        let info = *disk.info();
        BlkConfig::check_disk(config.block_size, &info)?;
        let settings = BlkSettings::new(disk, config.block_size)?;
        let rings = match config.engine {
            IoEngine::Sync => None,
            IoEngine::Async => {
                // Better now than when there are threads.
                RingPlace::new(config.queue_size).fill().map_err(Error::Ring)?;
                Some((0..config.queues).map(|_| Arc::new(RingPlace::new(config.queue_size))).collect())
            }
        };
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        id.iter_mut().zip(config.id.bytes()).for_each(|(to, from)| *to = from);
        let shared = Shared {
            metrics: Arc::default(),
            limiter: Arc::new(SharedLimiter::new(config.bandwidth, config.ops).map_err(Error::Limit)?),
            id,
            block_size: config.block_size,
            changing: Mutex::new(()),
        };
        let space = ConfigSpace::new(&config.space(&info, settings.capacity));
        Ok(Self {
            features: config.features(&info),
            queue_sizes: vec![config.queue_size; config.queues.into()],
            rings,
            control: BlkControl {
                settings: Settings::new(settings),
                config: space,
                shared: Arc::new(shared),
            },
        })
    }

    /// The disk that it has now.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.control.settings.get().disk
    }

    /// What changes the device while it exists.
    pub fn control(&self) -> BlkControl {
        self.control.clone()
    }
}

impl Device for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn workers(&self) -> Workers {
        Workers::Own(self.queue_sizes.len())
    }

    fn set_up_thread(&self, index: usize) -> Option<SetUp> {
        let place = Arc::clone(self.rings.as_ref()?.get(index)?);
        Some(Box::new(move || place.fill()))
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.control.config
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::clone(&self.control.shared.metrics) as Arc<dyn Metrics>
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        if !activation.queues.iter().any(|queue| queue.index() == 0) {
            return Err(ActivateError::Missing(0));
        }
        let workers = activation.queues.into_iter().map(|queue| {
            let ring = self.rings.as_ref().and_then(|rings| rings.get(usize::from(queue.index())));
            worker::new(queue, activation.features, self.features, ring, &self.control)
                .map_err(|source| ActivateError::Host { doing: "make a worker of a block device", source })
        });
        workers.collect()
    }
}
