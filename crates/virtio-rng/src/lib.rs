#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod worker;

use std::io;
use std::sync::Arc;

use kindling_metrics::{Metrics, metrics};
use kindling_rate_limiter::{BucketConfig, Share, SharedLimiter};
use kindling_virtio_device::{ActivateError, Activation, ConfigSpace, Device, Settings, Worker, Workers};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use worker::RngWorker;

/// Most bytes that one request gets. A driver that wants more asks again (VIRTIO 1.2, 5.4.6.1).
pub const REQUEST_MAX: u32 = 64 << 10;

/// The entropy device's only queue.
const QUEUES: [u16; 1] = [256];

/// Limits of what the guest gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of bytes.
    pub bandwidth: Option<BucketConfig>,
    /// Of requests.
    pub ops: Option<BucketConfig>,
}

/// Why there is no entropy device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A limit cannot be.
    #[error("cannot limit the entropy device")]
    Limits(#[from] kindling_rate_limiter::Error),
}

metrics! {
    /// What an entropy device did.
    pub struct RngMetrics {
        /// Requests that were answered.
        requests: Counter,
        /// Random bytes that the guest got.
        bytes: Counter,
        /// Requests that had to wait for the rate limiter.
        throttled: Counter,
        /// Requests without room for a byte, and those that the host had no random bytes for.
        failures: Counter,
    }
}

/// A virtio entropy device.
pub struct Rng {
    config: Arc<ConfigSpace>,
    control: RngControl,
    metrics: Arc<RngMetrics>,
}

/// Changes an entropy device from outside, whether or not there is a driver.
#[derive(Clone)]
pub struct RngControl {
    /// Outlives a driver, so that a guest gets no tokens by a reset.
    limiter: Arc<SharedLimiter>,
    /// Wakes a worker that waits for limits that are others now.
    changed: Arc<Settings<()>>,
}

impl RngControl {
    /// Replaces the limits. Buckets start full.
    ///
    /// # Errors
    ///
    /// [`Error::Limits`] when a limit is out of its range. Nothing has changed then.
    pub fn set_limits(&self, limits: Limits) -> Result<(), Error> {
        self.limiter.update(limits.bandwidth.into(), limits.ops.into())?;
        self.changed.change(|()| ());
        Ok(())
    }
}

impl Rng {
    /// An entropy device that gives out no more than `limits` allow.
    ///
    /// # Errors
    ///
    /// [`Error::Limits`] when a limit is out of its range.
    pub fn new(limits: Limits) -> Result<Self, Error> {
        let limiter = Arc::new(SharedLimiter::new(limits.bandwidth, limits.ops)?);
        Ok(Self {
            config: ConfigSpace::new(&[]),
            control: RngControl { limiter, changed: Settings::new(()) },
            metrics: Arc::default(),
        })
    }

    /// What changes the device while it exists.
    pub fn control(&self) -> RngControl {
        self.control.clone()
    }
}

impl Device for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn workers(&self) -> Workers {
        Workers::Shared
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::<RngMetrics>::clone(&self.metrics)
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let queue = activation.take_queue(0)?;
        let host = |doing| move |source: io::Error| ActivateError::Host { doing, source };
        let RngControl { limiter, changed } = &self.control;
        let limiter = Share::new(limiter).map_err(host("make the entropy device's timer"))?;
        let changed = changed.subscribe().map_err(host("watch the entropy device's settings"))?;
        Ok(vec![Box::new(RngWorker::new(queue, limiter, changed, Arc::clone(&self.metrics)))])
    }
}
