//! What all transports have in common: a device, and where it and its driver stand (VIRTIO 1.2, 2 and 3.1).

pub mod metrics;
pub mod queues;
mod shared;
pub mod state;
mod status;
mod workers;

use std::sync::Arc;
use std::time::Instant;

use kindling_virtio_device::{
    ActivateError, Activation, Device, GuestMemory, Interrupt, Queue, StopError, Worker, WorkerSlot,
    Workers as Threads, one_line,
};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::queues::QueueRegisters;
pub(crate) use self::shared::Shared;
use self::state::Selectors;
use self::workers::Workers;
use crate::{Error, RESET_DEADLINE};

/// What the workers are taken back for. A later one includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    /// They are started again as they are.
    Sleep,
    /// There are to be others, for the queues that are enabled now.
    Restart,
    /// The driver is forgotten.
    Reset,
}

/// A device, its driver's settings, and its workers: what is behind a transport's lock.
pub(crate) struct Control {
    device: Box<dyn Device>,
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn Interrupt>,
    shared: Arc<Shared>,
    kicks: Arc<[EventFd]>,
    /// Tells the monitor that workers are back that did not come in time.
    late: Arc<EventFd>,
    /// Bytes of the configuration space, which never change in number.
    config_len: usize,
    /// Makes the device's count of changes go on from a saved one.
    generation_base: u32,
    /// The configuration's generation when the driver came, which has read nothing of it before.
    generation_at_start: u32,
    pub selectors: Selectors,
    driver_features: u64,
    queues: Vec<QueueRegisters>,
    workers: Workers,
    asleep: bool,
    /// What the workers are still to come back for, when they did not in time: the device is broken until then, since
    /// they may still write to the guest's memory.
    overdue: Option<Purpose>,
    /// Whether there are to be workers for the queues that are enabled now, which the driver's next access has made. To make
    /// them can take more than the monitor's own thread may do.
    unmade: bool,
    /// What was said of the device. A guest that brings it about again and again does not fill the log.
    logged: Logged,
}

#[derive(Default)]
struct Logged {
    broken: bool,
    needs_reset: bool,
}

impl Control {
    pub fn new(
        device: Box<dyn Device>,
        memory: Arc<GuestMemory>,
        slots: Vec<WorkerSlot>,
        interrupt: Arc<dyn Interrupt>,
        shared: Arc<Shared>,
        late: Arc<EventFd>,
    ) -> Result<Self, Error> {
        let needed = match device.workers() {
            Threads::Shared => 1,
            Threads::Own(count) => count,
        };
        if slots.len() != needed {
            return Err(Error::Slots { needed, given: slots.len() });
        }
        let new_kick = |_: &u16| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let kicks =
            device.queue_sizes().iter().map(new_kick).collect::<Result<_, _>>().map_err(Error::Kick)?;
        Ok(Self {
            config_len: device.config().bytes().len(),
            queues: queues::registers_at_reset(device.as_ref()),
            device,
            memory,
            interrupt,
            shared,
            kicks,
            late,
            generation_base: 0,
            generation_at_start: 0,
            selectors: Selectors::default(),
            driver_features: 0,
            workers: Workers::new(slots),
            asleep: false,
            overdue: None,
            unmade: false,
            logged: Logged::default(),
        })
    }

    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    pub fn kicks(&self) -> &Arc<[EventFd]> {
        &self.kicks
    }

    /// VIRTIO 1.2, 4.2.2, ConfigGeneration.
    pub fn config_generation(&self) -> u32 {
        self.generation_base.wrapping_add(self.device.config().generation())
    }

    /// The driver writes to the configuration space. Returns whether it may.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) -> bool {
        let end = offset.checked_add(data.len() as u64);
        let may = self.shared.has(VIRTIO_CONFIG_S_DRIVER)
            && !self.shared.has(VIRTIO_CONFIG_S_FAILED)
            && end.is_some_and(|end| end <= self.config_len as u64);
        if may {
            self.device.write_config(offset, data);
        }
        may
    }

    /// The driver accesses the device. If its workers were late and have come back, goes on.
    pub fn settle(&mut self) {
        // Fails when it still cannot, which its status says.
        if self.look_for_late().is_ok() {
            self.make();
            self.start();
        }
    }

    pub fn sleep(&mut self, deadline: Instant) -> Result<(), Error> {
        self.recall(deadline, Purpose::Sleep).map_err(Error::Stop)?;
        self.asleep = true;
        Ok(())
    }

    /// Goes on if the device was to sleep and nothing else, did not in time, and can by now. What the driver has asked for is
    /// left to its next access.
    pub fn go_on(&mut self) {
        // Fails when it still cannot. The monitor hears of it again.
        if self.overdue == Some(Purpose::Sleep) && self.look_for_late().is_ok() {
            self.start();
        }
    }

    pub fn wake(&mut self) -> Result<(), Error> {
        self.asleep = false;
        self.look_for_late().map_err(Error::Stop)?;
        self.start();
        Ok(())
    }

    pub fn reset(&mut self, deadline: Instant) -> Result<(), Error> {
        self.recall(deadline, Purpose::Reset).map_err(Error::Stop)
    }

    /// Until when a guest may be made to wait.
    fn guest_deadline(&self) -> Instant {
        let now = Instant::now();
        if self.overdue.is_some() { now } else { now.checked_add(RESET_DEADLINE).unwrap_or(now) }
    }

    /// The driver has noticed the device.
    fn acknowledged(&mut self) {
        self.generation_at_start = self.config_generation();
    }

    /// The driver has set everything up.
    fn driver_ok(&mut self) {
        self.device.config().set_interrupt(Some(Arc::clone(&self.interrupt)));
        // Until now it could not be told of changes to what it may have read.
        if self.config_generation() != self.generation_at_start {
            self.interrupt.config_changed();
        }
        self.activate();
        self.start();
    }

    /// Replaces the workers by others, since other queues are enabled now.
    fn restart(&mut self) {
        if self.recall(self.guest_deadline(), Purpose::Restart).is_ok() {
            self.make();
            self.start();
        }
    }

    /// Takes the workers that were late back, if they have come.
    fn look_for_late(&mut self) -> Result<(), StopError> {
        if self.overdue.is_some() { self.recall(Instant::now(), Purpose::Sleep) } else { Ok(()) }
    }

    /// Takes the workers back, and does what that was asked for, now or before. If they do not come in time, the device
    /// is broken until they do.
    fn recall(&mut self, deadline: Instant, purpose: Purpose) -> Result<(), StopError> {
        let purpose = self.overdue.map_or(purpose, |before| before.max(purpose));
        let recalled = self.workers.recall(deadline);
        if let Err(error) = recalled {
            if self.overdue.is_none() {
                self.shared.metrics.hangs.increment();
                if !std::mem::replace(&mut self.logged.broken, true) {
                    log::warn!("a virtio device of type {} is broken: {error}", self.device.device_type());
                }
            }
            if self.overdue.replace(purpose) != Some(purpose) && purpose == Purpose::Reset {
                // The driver is forgotten, though the workers may still write where it told them.
                self.forget_driver();
                self.shared.set_status(VIRTIO_CONFIG_S_FAILED);
            }
            if purpose == Purpose::Sleep {
                self.workers.notify(&self.late);
            }
            return Err(error);
        }
        self.overdue = None;
        self.complete_queue_resets();
        self.note_positions();
        match purpose {
            Purpose::Sleep => (),
            Purpose::Restart => {
                self.workers.replace(Vec::new());
                self.unmade = true;
            }
            Purpose::Reset => {
                self.workers.replace(Vec::new());
                self.forget_driver();
                self.device.reset();
                self.shared.acknowledge(u32::MAX);
                if self.shared.status() != 0 {
                    self.shared.metrics.resets.increment();
                }
                self.shared.set_status(0);
            }
        }
        Ok(())
    }

    /// Notes where the queues stand that the workers have.
    fn note_positions(&mut self) {
        for state in self.workers.here().iter().flat_map(|worker| worker.queues()) {
            // A queue that was reset meanwhile begins anew.
            if let Some(queue) = self.queues.get_mut(usize::from(state.index)).filter(|queue| queue.ready) {
                queue.state.next_available = state.next_available;
                queue.state.next_used = state.next_used;
            }
        }
    }

    fn forget_driver(&mut self) {
        self.device.config().set_interrupt(None);
        self.queues = queues::registers_at_reset(self.device.as_ref());
        self.driver_features = 0;
        self.selectors = Selectors::default();
        self.unmade = false;
    }

    /// Makes the workers that there are to be.
    fn make(&mut self) {
        if std::mem::take(&mut self.unmade) {
            self.activate();
        }
    }

    /// Puts the workers that are here on their threads, unless the device sleeps.
    fn start(&mut self) {
        if !self.asleep {
            self.workers.start(&self.interrupt);
        }
    }

    /// Makes the workers for a driver that is ready. There are none when it has done something wrong, which it is told,
    /// and none while it resets a queue without which the device cannot work.
    fn activate(&mut self) {
        if self.shared.has(VIRTIO_CONFIG_S_NEEDS_RESET) {
            return;
        }
        match self.make_workers() {
            Ok(workers) => {
                self.shared.metrics.activations.increment();
                self.workers.replace(workers);
            }
            Err(ActivateError::Missing(_)) if self.is_queue_in_reset() => (),
            Err(error) => {
                if !std::mem::replace(&mut self.logged.needs_reset, true) {
                    let device_type = self.device.device_type();
                    log::warn!("a virtio device of type {device_type} needs a reset: {}", one_line(&error));
                }
                self.interrupt.needs_reset();
            }
        }
    }

    fn make_workers(&mut self) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let mut queues = Vec::new();
        for (queue, kick) in self.queues.iter().zip(self.kicks.iter()).filter(|(queue, _)| queue.ready) {
            let kick = kick.try_clone().map_err(host("copy the eventfd of a queue"))?;
            let (memory, interrupt) = (Arc::clone(&self.memory), Arc::clone(&self.interrupt));
            let made = Queue::new(memory, queue.state, self.driver_features, kick, interrupt);
            queues.push(made.map_err(|source| ActivateError::Queue { queue: queue.state.index, source })?);
        }
        let workers = self.device.activate(Activation {
            memory: Arc::clone(&self.memory),
            queues,
            features: self.driver_features,
            interrupt: Arc::clone(&self.interrupt),
        })?;
        if workers.len() > self.workers.places() {
            return Err(host("run more workers than there are places for")(
                std::io::ErrorKind::QuotaExceeded.into(),
            ));
        }
        Ok(workers)
    }

    /// Whether the driver has reset a queue and not yet enabled it again.
    fn is_queue_in_reset(&self) -> bool {
        self.queues.iter().any(|queue| queue.reset)
    }
}

/// For `map_err`: the host refused while `doing` something.
fn host(doing: &'static str) -> impl FnOnce(std::io::Error) -> ActivateError {
    move |source| ActivateError::Host { doing, source }
}
