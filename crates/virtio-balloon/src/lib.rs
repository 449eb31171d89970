#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod control;
mod pages;
mod statistics;
mod worker;

use std::sync::Arc;

use kindling_metrics::{Metrics, metrics};
use kindling_virtio_device::{ActivateError, Activation, ConfigSpace, Device, Worker, Workers};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

pub use control::{Control, Hinting};
pub use statistics::{STATISTICS, Statistics};
use worker::BalloonWorker;

// Feature bits (VIRTIO 1.2, 5.5.3).
const VIRTIO_BALLOON_F_STATS_VQ: u32 = 1;
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_FREE_PAGE_HINT: u32 = 3;
const VIRTIO_BALLOON_F_PAGE_REPORTING: u32 = 5;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;

/// What the balloon can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// MiB that the guest shall give up at first.
    pub amount_mib: u32,
    /// Whether the guest may take memory back before it kills processes for lack of it.
    pub deflate_on_oom: bool,
    /// Seconds between two requests for statistics; 0 for no statistics at all.
    pub statistics_interval_s: u16,
    /// Whether the guest can be asked which of its memory is free.
    pub free_page_hinting: bool,
    /// Whether the guest says by itself which of its memory is free.
    pub free_page_reporting: bool,
}

/// Why there is no balloon, or why it is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of 4 KiB pages has 32 bits (VIRTIO 1.2, 5.5.4).
    #[error("a balloon can be at most {most} MiB large, not {0}", most = MAX_MIB)]
    Amount(u32),
    /// The balloon was made without that ability, which a running guest cannot be offered.
    #[error("the balloon was made without {0}")]
    Unable(&'static str),
    /// The guest is offered statistics when it starts, or never.
    #[error("a balloon's statistics cannot be switched on or off, only their interval can change")]
    Switch,
}

/// The largest balloon: 2^32 pages, less one.
const MAX_MIB: u32 = u32::MAX / PAGES_PER_MIB;
/// Pages of the balloon's size in a MiB.
const PAGES_PER_MIB: u32 = 256;

metrics! {
    /// What a balloon did.
    pub struct BalloonMetrics {
        /// Pages of 4 KiB that the guest gave up.
        inflated: Counter,
        /// Pages of 4 KiB that the guest took back.
        deflated: Counter,
        /// Pages that the guest gave up although it has no such pages.
        bad_pages: Counter,
        /// Bytes that the guest said were free, when asked.
        hinted_bytes: Counter,
        /// Bytes that the guest said were free by itself.
        reported_bytes: Counter,
        /// Times the host refused to take memory back.
        discard_failures: Counter,
        /// Times the guest sent statistics.
        statistics_updates: Counter,
        /// Statistics that could not be understood.
        bad_statistics: Counter,
    }
}

/// A virtio balloon.
pub struct Balloon {
    features: u64,
    queues: Vec<u16>,
    control: Arc<Control>,
    metrics: Arc<BalloonMetrics>,
}

impl Balloon {
    /// A balloon.
    ///
    /// # Errors
    ///
    /// [`Error::Amount`] for a balloon larger than a guest can count.
    pub fn new(config: Config) -> Result<Self, Error> {
        let abilities = [
            (config.deflate_on_oom, VIRTIO_BALLOON_F_DEFLATE_ON_OOM, 0),
            (config.statistics_interval_s != 0, VIRTIO_BALLOON_F_STATS_VQ, 1),
            (config.free_page_hinting, VIRTIO_BALLOON_F_FREE_PAGE_HINT, 1),
            (config.free_page_reporting, VIRTIO_BALLOON_F_PAGE_REPORTING, 1),
        ];
        let (mut features, mut queues) = (0, vec![QUEUE_SIZE; 2]);
        for (_, feature, queue_count) in abilities.into_iter().filter(|(wanted, ..)| *wanted) {
            features |= 1 << feature;
            queues.extend(std::iter::repeat_n(QUEUE_SIZE, queue_count));
        }
        Ok(Self { features, queues, control: Arc::new(Control::new(config)?), metrics: Arc::default() })
    }

    /// What can be done with the balloon while the guest runs.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }
}

impl Device for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn workers(&self) -> Workers {
        Workers::Shared
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        self.control.config()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.control.driver_writes(offset, data);
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::<BalloonMetrics>::clone(&self.metrics)
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let worker = BalloonWorker::new(activation, self.control(), Arc::clone(&self.metrics))?;
        Ok(vec![Box::new(worker)])
    }

    fn reset(&mut self) {
        self.control.reset();
    }
}
