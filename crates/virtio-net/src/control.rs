//! What a device, its workers and its control share, and the control.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kindling_rate_limiter::{BucketConfig, Error, SharedLimiter, Update};
use kindling_virtio_device::{ConfigSpace, Settings};
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use crate::NetMetrics;

/// Offset of the status in the configuration space (VIRTIO 1.2, 5.1.4).
const STATUS_OFFSET: usize = 6;

/// How many queues of the tap a driver's commands attach and detach: all that there can be, and back, at once, and as many a
/// second from then on. Detaching one takes the host's kernel a tenth of a millisecond or more, in which it holds a lock
/// that all its networks share.
const CHANGES: BucketConfig =
    BucketConfig { size: 64, refill_time: Duration::from_secs(1), one_time_burst: 0 };

/// What can be changed while the device runs, and is not a rate limit.
#[derive(Clone, Debug)]
pub(crate) struct NetSettings {
    /// Whether the link is up, as far as the host's side wants.
    pub link_up: bool,
}

pub(crate) struct Shared {
    pub settings: Arc<Settings<NetSettings>>,
    pub config: Arc<ConfigSpace>,
    pub rx: Arc<SharedLimiter>,
    pub tx: Arc<SharedLimiter>,
    /// Limits how many queues are attached and detached for the driver, its successors included.
    pub changes: Arc<SharedLimiter>,
    pub metrics: Arc<NetMetrics>,
    tap_lost: AtomicBool,
}

impl Shared {
    pub fn new(config: Arc<ConfigSpace>) -> Arc<Self> {
        Arc::new(Self {
            settings: Settings::new(NetSettings { link_up: true }),
            config,
            rx: Arc::default(),
            tx: Arc::default(),
            // No error: these are numbers that a bucket can have.
            changes: Arc::new(SharedLimiter::new(Some(CHANGES), None).unwrap_or_default()),
            metrics: Arc::default(),
            tap_lost: AtomicBool::new(false),
        })
    }

    /// The tap works no longer, and never will again.
    pub fn lose_tap(&self) {
        if !self.tap_lost.swap(true, Ordering::SeqCst) {
            // Once, however often the guest starts anew.
            log::warn!("a network device has lost its tap, and its link is down for good");
        }
        self.show_link();
    }

    pub fn is_link_up(&self) -> bool {
        self.settings.get().link_up && !self.tap_lost.load(Ordering::SeqCst)
    }

    /// Shows the driver the link as it is.
    fn show_link(&self) {
        self.config.update(|bytes| {
            // In here, so that of two who call this at a time the later one shows what both have done.
            let status = if self.is_link_up() { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
            let field = bytes.get_mut(STATUS_OFFSET..).and_then(<[u8]>::first_chunk_mut);
            if let Some(field) = field {
                *field = status.to_le_bytes();
            }
        });
    }
}

/// Changes a network device from outside, at any time and whether it has a driver or not.
#[derive(Clone)]
pub struct NetControl(pub(crate) Arc<Shared>);

impl NetControl {
    /// Takes the link up or down: the driver is told (VIRTIO 1.2, 5.1.4.2), and while the link is down, frames are dropped.
    pub fn set_link(&self, up: bool) {
        self.0.settings.change(|settings| settings.link_up = up);
        self.0.show_link();
    }

    /// Whether the link is up: it was not taken down, and the tap has not been lost.
    pub fn is_link_up(&self) -> bool {
        self.0.is_link_up()
    }

    /// Changes the limits of what the guest receives: bytes of frames, and frames. Buckets that are set start full.
    ///
    /// # Errors
    ///
    /// [`Error::Bandwidth`] or [`Error::Ops`]. Nothing has changed then.
    pub fn limit_rx(&self, bandwidth: Update, ops: Update) -> Result<(), Error> {
        self.limit(&self.0.rx, bandwidth, ops)
    }

    /// Changes the limits of what the guest sends: bytes of frames, and frames. Buckets that are set start full.
    ///
    /// # Errors
    ///
    /// [`Error::Bandwidth`] or [`Error::Ops`]. Nothing has changed then.
    pub fn limit_tx(&self, bandwidth: Update, ops: Update) -> Result<(), Error> {
        self.limit(&self.0.tx, bandwidth, ops)
    }

    fn limit(&self, limiter: &SharedLimiter, bandwidth: Update, ops: Update) -> Result<(), Error> {
        limiter.update(bandwidth, ops)?;
        // Who waits for the old buckets asks the new ones.
        self.0.settings.change(|_| ());
        Ok(())
    }
}
