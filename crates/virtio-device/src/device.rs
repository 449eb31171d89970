//! The traits between a device, its worker and its transport.

use std::io;
use std::sync::Arc;

use kindling_metrics::Metrics;
use vmm_sys_util::epoll::EventSet;

use crate::{ActivateError, ConfigSpace, GuestMemory, Queue, QueueState, RestoreError, Watch, WorkerError};

/// A virtio device, whatever shows it to the guest and whatever hypervisor runs that.
///
/// ```text
///     Configured ──activate──▶ Running ──sleep──▶ Asleep ──wake──▶ Running
///          ▲                      │                  │
///          └────────reset─────────┘             save / restore
/// ```
///
/// - *activate* makes the device's workers: they own the queues and all of the data path. Each is moved to a thread.
/// - *sleep* takes the workers back, whole, when they have finished what they had begun ([`Worker::drain`]); *wake*
///   gives them to their threads again. A device has nothing to do for either.
/// - *reset* comes after the workers were taken back and dropped. The device is then as if it had never had a driver.
///
/// What stays in the device is what outlives a driver: its back end, its configuration, its [`Settings`](crate::Settings).
pub trait Device: Send {
    /// The device's number (VIRTIO 1.2, 5).
    fn device_type(&self) -> u32;

    /// The features that it offers, as a mask, beside [`COMMON_FEATURES`](crate::COMMON_FEATURES).
    fn features(&self) -> u64;

    /// The most entries that each of its queues can have: powers of two of at most 32,768.
    fn queue_sizes(&self) -> &[u16];

    /// The threads that its workers need.
    fn workers(&self) -> Workers;

    /// What has to run on the thread of worker `index`, which is its own, before that thread is confined and the device activated:
    /// for what a worker must not be able to do at any later time. Most need nothing.
    fn set_up_thread(&self, index: usize) -> Option<SetUp> {
        let _ = index;
        None
    }

    /// Its configuration space.
    fn config(&self) -> &Arc<ConfigSpace>;

    /// The driver writes `data` at `offset` of the configuration space. Most devices have nothing to be written.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// What it counts.
    fn metrics(&self) -> Arc<dyn Metrics>;

    /// Makes the workers, at most as many as [`Device::workers`] says; each is moved to its own thread.
    ///
    /// # Errors
    ///
    /// When the driver's choice of queues cannot work, or the host refuses something. The device is left as it was.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError>;

    /// Forgets the driver. The workers are gone already.
    fn reset(&mut self) {}

    /// What must be kept of a sleeping device to go on elsewhere, beside features, configuration space and queues, which
    /// the transport keeps. Empty for most.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over what [`Device::save`] gave, before it is activated. The bytes are not to be trusted.
    ///
    /// # Errors
    ///
    /// When they are not a state of this device, which is left as it was.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        match state {
            [] => Ok(()),
            _ => Err(RestoreError {
                field: "device state",
                problem: format!("{} bytes, and this device has none", state.len()),
            }),
        }
    }
}

/// See [`Device::set_up_thread`].
pub type SetUp = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// The threads that a device's workers run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One worker, on a thread that it may share with other devices' workers: it never waits and does little.
    Shared,
    /// So many workers, each on a thread of its own.
    Own(usize),
}

/// What a device is activated with.
pub struct Activation {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The queues that the driver enabled, in the order of their indices.
    pub queues: Vec<Queue>,
    /// The features that driver and device agreed on.
    pub features: u64,
    /// How the driver is told of changes to the configuration.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Whether driver and device agreed on the feature with number `bit`.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features >> bit & 1 == 1
    }

    /// Takes queue `index` out of the list.
    ///
    /// # Errors
    ///
    /// [`ActivateError::Missing`] when the driver did not enable it.
    pub fn take_queue(&mut self, index: u16) -> Result<Queue, ActivateError> {
        let at = self.queues.iter().position(|queue| queue.index() == index);
        at.map(|at| self.queues.remove(at)).ok_or(ActivateError::Missing(index))
    }
}

/// How a device interrupts its driver.
///
/// Workers call this on their threads, while their transport may be waiting for one to stop: it must not wait for
/// anybody, and so take no lock that is held meanwhile.
pub trait Interrupt: Send + Sync {
    /// Buffers of queue `queue` were used.
    fn queue_used(&self, queue: u16);

    /// The configuration space changed.
    fn config_changed(&self);

    /// The device cannot go on: sets DEVICE_NEEDS_RESET, and tells the driver (VIRTIO 1.2, 2.1.1).
    fn needs_reset(&self);
}

/// A part of a device's data path, owned by the thread that it runs on.
///
/// None of its functions may wait for anything but its back end, and none may loop for as long as a guest likes: the
/// thread has messages to answer, and maybe other workers. [`Queue::end_batch`] helps.
pub trait Worker: Send {
    /// Begins, or goes on after a sleep: watches what it needs to know of, and looks at its queues and settings, which
    /// may have changed unwatched.
    ///
    /// # Errors
    ///
    /// When it cannot go on. Its device then needs a reset.
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError>;

    /// What was watched with `token` is ready. It may have been dealt with since, or may not be watched any more.
    ///
    /// # Errors
    ///
    /// When it cannot go on. Its device then needs a reset.
    fn event(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) -> Result<(), WorkerError>;

    /// Finishes what has begun, before a sleep or the end, also after an error. Nothing is watched any more.
    fn drain(&mut self) {}

    /// Where its queues stand. What was taken from them and is not finished counts as not taken.
    fn queues(&self) -> Vec<QueueState>;
}
