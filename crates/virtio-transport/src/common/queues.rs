//! The registers of the queues (VIRTIO 1.2, 4.2.2 and 4.2.3.2), and resetting one of them (VIRTIO 1.2, 2.6.1).
//!
//! When queues are reset or enabled while the device runs, its workers are taken back, and the device makes others for
//! the queues that are enabled then, which go on where they were.

use kindling_virtio_device::{Device, QueueConfig, QueueState};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
};

use super::Control;

/// The registers of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueRegisters {
    /// How it is set up, and where it stood when its worker was last taken back. A size of 0 stands for one that the
    /// device cannot do.
    pub state: QueueState,
    /// Whether it is enabled, or was and may still be used.
    pub ready: bool,
    /// Whether it was reset or disabled while the device ran, and so can be set up anew. If it is `ready` all the same, its
    /// worker is still to come back; it is never saved so.
    pub reset: bool,
}

impl QueueRegisters {
    fn is_enabled(&self) -> bool {
        self.ready && !self.reset
    }

    fn is_resetting(&self) -> bool {
        self.ready && self.reset
    }
}

/// The registers of all queues as they are without a driver.
pub(super) fn registers_at_reset(device: &dyn Device) -> Vec<QueueRegisters> {
    (0..).zip(device.queue_sizes()).map(|(index, max)| registers(index, *max)).collect()
}

fn registers(index: u16, max: u16) -> QueueRegisters {
    let config = QueueConfig { size: max, ..QueueConfig::default() };
    QueueRegisters {
        state: QueueState { index, config, ..QueueState::default() },
        ready: false,
        reset: false,
    }
}

/// Whether a queue of at most `max` entries can have `size`.
pub(super) fn is_size(size: u16, max: u16) -> bool {
    size.is_power_of_two() && size <= max
}

impl Control {
    /// The selected queue.
    pub fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.selectors.queue).ok()?)
    }

    /// The most entries that the selected queue can have; 0 if there is no such queue.
    pub fn queue_size_max(&self) -> u16 {
        let index = usize::try_from(self.selectors.queue).ok();
        index.and_then(|index| self.device.queue_sizes().get(index)).copied().unwrap_or(0)
    }

    /// Whether a reset of the selected queue is under way (VIRTIO 1.2, 4.2.2, QueueReset).
    pub fn is_queue_resetting(&self) -> bool {
        self.queue().is_some_and(QueueRegisters::is_resetting)
    }

    /// Sets the size of the selected queue. Returns whether the device can do it, now.
    pub fn set_queue_size(&mut self, size: u32) -> bool {
        let max = self.queue_size_max();
        let size = u16::try_from(size).ok().filter(|size| is_size(*size, max));
        self.configure_queue(|config| config.size = size.unwrap_or(0)) && size.is_some()
    }

    /// Changes the selected queue. Returns whether the driver may do so, now.
    pub fn configure_queue(&mut self, change: impl FnOnce(&mut QueueConfig)) -> bool {
        let Some(queue) = self.configurable_queue() else { return false };
        change(&mut queue.state.config);
        true
    }

    /// Enables or disables the selected queue. Returns whether that was possible. What is disabled is ready until its worker
    /// has come back (VIRTIO 1.2, 4.2.2, QueueReady).
    pub fn set_queue_ready(&mut self, ready: bool) -> bool {
        let Some(queue) = self.queue() else { return false };
        if queue.is_enabled() == ready {
            return true;
        }
        let runs = self.shared.has(VIRTIO_CONFIG_S_DRIVER_OK);
        if !ready {
            return self.clear_queue(runs);
        }
        let max = self.queue_size_max();
        let queue = self.configurable_queue().filter(|queue| is_size(queue.state.config.size, max));
        let Some(queue) = queue else { return false };
        queue.ready = true;
        queue.reset = false;
        if runs {
            self.restart();
        }
        true
    }

    /// Resets the selected queue. Returns whether that was possible.
    pub fn reset_queue(&mut self) -> bool {
        self.has_queue_reset() && self.clear_queue(self.shared.has(VIRTIO_CONFIG_S_DRIVER_OK))
    }

    /// The selected queue, if the driver may set it up now.
    fn configurable_queue(&mut self) -> Option<&mut QueueRegisters> {
        let status = self.shared.status();
        if status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED) != VIRTIO_CONFIG_S_FEATURES_OK {
            return None;
        }
        let runs = status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        let queue = self.queues.get_mut(usize::try_from(self.selectors.queue).ok()?)?;
        (!queue.ready && (queue.reset || !runs)).then_some(queue)
    }

    /// Takes the selected queue from the device, and its settings from the queue.
    fn clear_queue(&mut self, runs: bool) -> bool {
        let (index, max) = (self.selectors.queue, self.queue_size_max());
        let queue = usize::try_from(index).ok().and_then(|index| self.queues.get_mut(index));
        let Some(queue) = queue else { return false };
        let is_used = runs && queue.ready;
        *queue = QueueRegisters { ready: is_used, reset: runs, ..registers(queue.state.index, max) };
        if is_used {
            self.restart();
        }
        true
    }

    /// Completes the resets of queues that are under way: the workers are back.
    pub(super) fn complete_queue_resets(&mut self) {
        for queue in &mut self.queues {
            queue.ready = queue.is_enabled();
        }
    }
}
