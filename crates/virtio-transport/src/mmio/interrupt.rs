//! How a device on virtio-mmio interrupts its driver (VIRTIO 1.2, 4.2.3.3).

use std::sync::Arc;

use kindling_virtio_device::Interrupt;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use crate::common::Shared;

/// The interrupt of one device: bits that say why, and an eventfd that raises the line.
///
/// The line may be shared with other devices, and is edge-triggered: the driver must find the bit when the edge comes,
/// and each bit that is set needs an edge after it, even if it was set before.
pub(super) struct MmioInterrupt {
    shared: Arc<Shared>,
    line: EventFd,
}

impl MmioInterrupt {
    pub fn new(shared: Arc<Shared>, line: EventFd) -> Self {
        Self { shared, line }
    }

    /// Raises the line again, if the driver has not acknowledged all that it was interrupted for.
    pub fn repeat(&self) {
        if self.shared.interrupt_status() != 0 {
            self.raise(0);
        }
    }

    fn raise(&self, why: u32) {
        self.shared.add_interrupt(why);
        // Fails only when the counter is full, and then there is an edge to come.
        let _ = self.line.write(1);
    }
}

impl Interrupt for MmioInterrupt {
    fn queue_used(&self, _: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn needs_reset(&self) {
        if self.shared.set_needs_reset() {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }
}
