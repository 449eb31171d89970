//! What the registers and the device's threads share without a lock: device status and interrupt status.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};

use super::metrics::TransportMetrics;

/// The words that change without a lock.
#[derive(Default)]
pub(crate) struct Shared {
    /// VIRTIO 1.2, 2.1. Only DEVICE_NEEDS_RESET is set without the transport's lock.
    status: AtomicU32,
    /// VIRTIO 1.2, 4.2.2, InterruptStatus.
    interrupt_status: AtomicU32,
    pub metrics: Arc<TransportMetrics>,
}

impl Shared {
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Whether all of `bits` are set.
    pub fn has(&self, bits: u32) -> bool {
        self.status() & bits == bits
    }

    pub fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    pub fn set_status(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Sets DEVICE_NEEDS_RESET if there is a driver to know of it. Returns whether that is new.
    pub fn set_needs_reset(&self) -> bool {
        let set = |status: u32| {
            (status & VIRTIO_CONFIG_S_DRIVER_OK != 0).then_some(status | VIRTIO_CONFIG_S_NEEDS_RESET)
        };
        let before = self.status.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set);
        let is_new = before.is_ok_and(|status| status & VIRTIO_CONFIG_S_NEEDS_RESET == 0);
        if is_new {
            self.metrics.protocol_errors.increment();
        }
        is_new
    }

    pub fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::SeqCst)
    }

    pub fn add_interrupt(&self, bits: u32) {
        self.interrupt_status.fetch_or(bits, Ordering::SeqCst);
    }

    pub fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::SeqCst);
    }
}
