//! virtio-mmio, version 2 (VIRTIO 1.2, 4.2).
//!
//! Registers below the configuration space are accessed 4 bytes at a time, aligned. The guest's other accesses there, and
//! those that a register does not allow, change nothing, read as 0, and are counted. The configuration space is accessed
//! with any width and alignment, as its fields need it; beyond its end, it reads as 0.

mod interrupt;
mod registers;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kindling_metrics::Metrics;
use kindling_virtio_device::{ConfigSpace, Device, GuestMemory, Interrupt, WorkerSlot};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY,
};
use vmm_sys_util::eventfd::EventFd;

use self::interrupt::MmioInterrupt;
use crate::common::{Control, Shared};
use crate::{Error, Transport, TransportState};

/// Bytes of guest-physical address space that a device takes: a page.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Offset of the register QueueNotify, to which the driver writes the index of the queue that it kicks, as 32 bits.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Offset of the configuration space.
pub const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// Offset of the register QueueReset.
const QUEUE_RESET: u32 = 0x0c0;

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");

/// The version of the register layout.
const VERSION: u32 = 2;

/// Who made the device.
const VENDOR: u32 = u32::from_le_bytes(*b"KNDL");

/// A device on virtio-mmio.
///
/// vCPUs call [`MmioTransport::read`] and [`MmioTransport::write`]. Interrupt status and notifications take no lock; the
/// other registers take one for a moment, or for as long as [`RESET_DEADLINE`](crate::RESET_DEADLINE), once, when the
/// device's back end hangs while its guest resets it.
pub struct MmioTransport {
    device_type: u32,
    device_metrics: Arc<dyn Metrics>,
    config: Arc<ConfigSpace>,
    kicks: Arc<[EventFd]>,
    shared: Arc<Shared>,
    interrupt: Arc<MmioInterrupt>,
    control: Mutex<Control>,
}

impl MmioTransport {
    /// Shows `device` to the guest whose memory is `memory`. Its workers run in `slots`: one for
    /// [`Workers::Shared`](kindling_virtio_device::Workers::Shared), `n` for
    /// [`Workers::Own(n)`](kindling_virtio_device::Workers::Own). `line` is written to raise the device's interrupt line,
    /// which is edge-triggered and may be shared. `late`, which may be shared too, is written when it is time for
    /// [`Transport::go_on`].
    ///
    /// # Errors
    ///
    /// [`Error::Slots`] for another number of them; [`Error::Kick`] when the host is out of descriptors.
    pub fn new(
        device: Box<dyn Device>,
        memory: Arc<GuestMemory>,
        slots: Vec<WorkerSlot>,
        line: EventFd,
        late: Arc<EventFd>,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let interrupt = Arc::new(MmioInterrupt::new(Arc::clone(&shared), line));
        let device_interrupt = Arc::clone(&interrupt) as Arc<dyn Interrupt>;
        let control = Control::new(device, memory, slots, device_interrupt, Arc::clone(&shared), late)?;
        Ok(Self {
            device_type: control.device().device_type(),
            device_metrics: control.device().metrics(),
            config: Arc::clone(control.device().config()),
            kicks: Arc::clone(control.kicks()),
            shared,
            interrupt,
            control: Mutex::new(control),
        })
    }

    /// What makes the device look at a queue, by the queue's index. A monitor has the hypervisor write it when the guest
    /// writes that index, as 32 bits, to [`QUEUE_NOTIFY`].
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The guest reads `data.len()` bytes at `offset` of the device's window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.config.read(offset, data);
        }
        let value = register(offset, data.len()).and_then(|offset| match offset {
            VIRTIO_MMIO_INTERRUPT_STATUS => Some(self.shared.interrupt_status()),
            _ => registers::read(&self.settled(), offset),
        });
        match value {
            Some(value) => data.copy_from_slice(&value.to_le_bytes()),
            None => self.shared.metrics.refused_accesses.increment(),
        }
    }

    /// The guest writes `data` at `offset` of the device's window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let taken = match (offset.checked_sub(CONFIG), <[u8; 4]>::try_from(data)) {
            (Some(offset), _) => self.settled().write_config(offset, data),
            (None, Ok(value)) => self.write_register(offset, u32::from_le_bytes(value)),
            (None, Err(_)) => false,
        };
        if !taken {
            self.shared.metrics.refused_accesses.increment();
        }
    }

    fn write_register(&self, offset: u64, value: u32) -> bool {
        match register(offset, 4) {
            Some(VIRTIO_MMIO_QUEUE_NOTIFY) => self.notify(value),
            Some(VIRTIO_MMIO_INTERRUPT_ACK) => {
                self.shared.acknowledge(value);
                true
            }
            Some(offset) => registers::write(&mut self.settled(), offset, value),
            None => false,
        }
    }

    fn notify(&self, queue: u32) -> bool {
        let Some(kick) = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue)) else {
            return false;
        };
        self.shared.metrics.exit_notifications.increment();
        // Fails only when the counter is full, and then the worker is about to look anyway.
        let _ = kick.write(1);
        true
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control, after a look whether a broken device can go on.
    fn settled(&self) -> MutexGuard<'_, Control> {
        let mut control = self.control();
        control.settle();
        control
    }
}

/// The register that an access of `width` bytes is to, if such an access is allowed.
fn register(offset: u64, width: usize) -> Option<u32> {
    if width == 4 && offset.is_multiple_of(4) { u32::try_from(offset).ok() } else { None }
}

impl Transport for MmioTransport {
    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn sleep(&self, deadline: Instant) -> Result<(), Error> {
        self.control().sleep(deadline)
    }

    fn wake(&self) -> Result<(), Error> {
        let woken = self.control().wake();
        // An edge before the sleep may be lost, if the device was restored.
        self.interrupt.repeat();
        woken
    }

    fn go_on(&self) {
        self.control().go_on();
    }

    fn reset(&self, deadline: Instant) -> Result<(), Error> {
        self.control().reset(deadline)
    }

    fn save(&self) -> Result<TransportState, Error> {
        self.control().save()
    }

    fn restore(&self, state: &TransportState) -> Result<(), Error> {
        self.control().restore(state)
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::clone(&self.shared.metrics) as Arc<dyn Metrics>
    }

    fn device_metrics(&self) -> Arc<dyn Metrics> {
        Arc::clone(&self.device_metrics)
    }
}
