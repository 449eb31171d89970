//! What a monitor does with a device, whatever shows it to the guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_metrics::Metrics;

use crate::{Error, TransportState};

/// How long a vCPU waits, at most, for a device's workers when its guest resets the device or one of its queues. It
/// waits once: a device whose workers did not come back is broken until they have, and a broken device is not waited for.
pub const RESET_DEADLINE: Duration = Duration::from_secs(1);

/// A device as its monitor sees it.
///
/// ```text
///     awake ──sleep──▶ asleep ──wake──▶ awake
///                      │    ▲
///                    save  restore (of a device that has no driver yet)
/// ```
///
/// All functions may be called from any thread at any time.
pub trait Transport: Send + Sync {
    /// The device's number (VIRTIO 1.2, 5).
    fn device_type(&self) -> u32;

    /// Takes the device's workers off their threads, when they have finished what they had begun. The guest's accesses
    /// still work: what they start begins when the device wakes. A device that sleeps already stays so.
    ///
    /// # Errors
    ///
    /// [`Error::Stop`] when that takes until after `deadline`. The device is then not asleep but broken until its
    /// workers have finished, and shows DEVICE_NEEDS_RESET meanwhile. One can call again, or have it go on with
    /// [`Transport::wake`] or [`Transport::go_on`].
    fn sleep(&self, deadline: Instant) -> Result<(), Error>;

    /// Puts the workers on their threads again. A device that is awake stays so.
    ///
    /// # Errors
    ///
    /// [`Error::Stop`] when the device is still broken. When its workers have finished, it goes on with the next call of
    /// this function, or the guest's next access to its status.
    fn wake(&self) -> Result<(), Error>;

    /// Has a device go on that did not sleep in time, if its workers have finished since. Nothing changes if they have not,
    /// if it was put to sleep since, or if its driver has asked for a reset meanwhile, which its next access completes.
    ///
    /// A driver that works may not access a register for hours. So the monitor calls this when the eventfd is written that
    /// the transport was given for it.
    fn go_on(&self);

    /// Does what a guest's reset does, for a guest that is not asked. Whether the device sleeps does not change.
    ///
    /// # Errors
    ///
    /// [`Error::Stop`] when the workers do not finish until `deadline`. The device is then broken; when they have, the
    /// next call, or the guest's next access to its status, completes the reset.
    fn reset(&self, deadline: Instant) -> Result<(), Error>;

    /// The state of a sleeping device.
    ///
    /// # Errors
    ///
    /// [`Error::Awake`].
    fn save(&self) -> Result<TransportState, Error>;

    /// Takes over a saved state, which is not to be trusted. The device is asleep then.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] when the device has a driver; [`Error::Restore`] and [`Error::Activate`] when the state does not
    /// fit device and guest memory. The device is left as it was.
    fn restore(&self, state: &TransportState) -> Result<(), Error>;

    /// What the transport counts.
    fn metrics(&self) -> Arc<dyn Metrics>;

    /// What the device counts.
    fn device_metrics(&self) -> Arc<dyn Metrics>;
}
