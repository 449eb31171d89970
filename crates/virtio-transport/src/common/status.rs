//! The device status (VIRTIO 1.2, 2.1) as the driver climbs through it, and the features that are negotiated on the way.

use kindling_virtio_device::COMMON_FEATURES;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};

use super::Control;

/// The bits that the driver sets.
const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// The bits of a driver that starts, in order (VIRTIO 1.2, 3.1.1). None is set before the one ahead of it.
pub(super) const LADDER: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

impl Control {
    /// The device status. A broken device shows DEVICE_NEEDS_RESET, and never 0.
    pub fn status(&self) -> u32 {
        self.shared.status() | if self.overdue.is_some() { NEEDS_RESET } else { 0 }
    }

    /// The driver writes the device status. Returns whether all that it asked for was done.
    pub fn write_status(&mut self, value: u32) -> bool {
        if value == 0 {
            return self.reset(self.guest_deadline()).is_ok();
        }
        let before = self.shared.status();
        // The driver never takes a bit back (VIRTIO 1.2, 2.1.1).
        if before & DRIVER_BITS & !value != 0 {
            return false;
        }
        self.shared.add_status(value & FAILED);
        for bit in LADDER {
            let status = self.shared.status();
            if status & bit != 0 {
                continue;
            }
            if value & bit == 0 || status & FAILED != 0 || bit == FEATURES_OK && !self.features_agree() {
                break;
            }
            self.shared.add_status(bit);
            match bit {
                ACKNOWLEDGE => self.acknowledged(),
                DRIVER_OK => self.driver_ok(),
                _ => (),
            }
        }
        value & !self.shared.status() & !NEEDS_RESET == 0
    }

    /// All features that the driver may accept.
    pub fn offered_features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES | 1 << VIRTIO_F_RING_RESET
    }

    /// The offered features that are selected, 32 at a time.
    pub fn selected_features(&self) -> u32 {
        match self.selectors.device_features {
            0 => self.offered_features() as u32,
            1 => (self.offered_features() >> 32) as u32,
            _ => 0,
        }
    }

    /// The driver accepts those features of the selected 32 that are set in `value`. Returns whether it may.
    pub fn accept_features(&mut self, value: u32) -> bool {
        if !self.shared.has(DRIVER) || self.shared.status() & (FEATURES_OK | FAILED) != 0 {
            return false;
        }
        let old = self.driver_features;
        match self.selectors.driver_features {
            0 => self.driver_features = old >> 32 << 32 | u64::from(value),
            1 => self.driver_features = old & u64::from(u32::MAX) | u64::from(value) << 32,
            // No such features are offered, so that there is nothing to accept.
            _ => return value == 0,
        }
        true
    }

    /// Whether the features that the driver accepted were all offered, with version 1 among them.
    pub(super) fn features_agree(&self) -> bool {
        features_agree(self.driver_features, self.offered_features())
    }

    /// Whether the driver accepted that it may reset a single queue.
    pub(super) fn has_queue_reset(&self) -> bool {
        self.shared.has(FEATURES_OK) && self.driver_features >> VIRTIO_F_RING_RESET & 1 == 1
    }
}

/// Whether a driver may accept `accepted` of `offered`.
pub(super) fn features_agree(accepted: u64, offered: u64) -> bool {
    accepted & !offered == 0 && accepted >> VIRTIO_F_VERSION_1 & 1 == 1
}
