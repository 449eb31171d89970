//! The state of a sleeping device, to go on elsewhere.

use std::sync::Arc;

use kindling_virtio_device::{ActivateError, ConfigSpace, RestoreError};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use super::Control;
use super::queues::{QueueRegisters, is_size, registers_at_reset};
use super::status::{LADDER, features_agree};
use crate::Error;

/// What is kept of a device and its driver. It is the same for all transports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransportState {
    /// The device's number (VIRTIO 1.2, 5).
    pub device_type: u32,
    /// The device status (VIRTIO 1.2, 2.1).
    pub status: u32,
    /// The features that the driver has accepted.
    pub driver_features: u64,
    /// What the driver has selected.
    pub selectors: Selectors,
    /// The queues, by index.
    pub queues: Vec<QueueRegisters>,
    /// Why the driver was interrupted (VIRTIO 1.2, 4.2.2, InterruptStatus).
    pub interrupt_status: u32,
    /// The configuration space.
    pub config: Vec<u8>,
    /// VIRTIO 1.2, 4.2.2, ConfigGeneration.
    pub config_generation: u32,
    /// What the device itself has to keep.
    pub device: Vec<u8>,
}

/// Which of several values a register stands for. The driver may select what there is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// VIRTIO 1.2, 4.2.2, DeviceFeaturesSel.
    pub device_features: u32,
    /// VIRTIO 1.2, 4.2.2, DriverFeaturesSel.
    pub driver_features: u32,
    /// VIRTIO 1.2, 4.2.2, QueueSel.
    pub queue: u32,
}

impl Control {
    pub fn save(&self) -> Result<TransportState, Error> {
        if !self.asleep {
            return Err(Error::Awake);
        }
        Ok(TransportState {
            device_type: self.device.device_type(),
            status: self.shared.status(),
            driver_features: self.driver_features,
            selectors: self.selectors,
            queues: self.queues.clone(),
            interrupt_status: self.shared.interrupt_status(),
            config: self.device.config().bytes(),
            config_generation: self.config_generation(),
            device: self.device.save(),
        })
    }

    pub fn restore(&mut self, state: &TransportState) -> Result<(), Error> {
        if self.shared.status() != 0 {
            return Err(Error::InUse);
        }
        self.check(state)?;
        let old_config = self.device.config().bytes();
        set_config_bytes(self.device.config(), &state.config);
        if let Err(error) = self.device.restore(&state.device) {
            set_config_bytes(self.device.config(), &old_config);
            return Err(error.into());
        }
        self.queues.clone_from(&state.queues);
        self.driver_features = state.driver_features;
        let runs = state.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
        if runs == VIRTIO_CONFIG_S_DRIVER_OK {
            match self.make_workers() {
                Ok(workers) => self.workers.replace(workers),
                Err(ActivateError::Missing(_)) if self.is_queue_in_reset() => (),
                Err(error) => {
                    self.forget_driver();
                    self.device.reset();
                    set_config_bytes(self.device.config(), &old_config);
                    return Err(Error::Activate(error));
                }
            }
        }
        self.selectors = state.selectors;
        self.shared.set_status(state.status);
        self.shared.add_interrupt(state.interrupt_status);
        self.asleep = true;
        self.restore_generation(state);
        Ok(())
    }

    /// Has the driver notice when the configuration is no longer what it was.
    fn restore_generation(&mut self, state: &TransportState) {
        let config = self.device.config();
        let changed = config.bytes() != state.config;
        let generation = state.config_generation.wrapping_add(changed.into());
        self.generation_base = generation.wrapping_sub(config.generation());
        // What a driver that is not ready has read before is not known: it is told when it is.
        self.generation_at_start = generation.wrapping_sub(1);
        if self.shared.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            config.set_interrupt(Some(Arc::clone(&self.interrupt)));
            if changed {
                self.interrupt.config_changed();
            }
        }
    }

    /// Whether a device of this kind could have been in that state. What the device and its queues check themselves is
    /// not looked at.
    fn check(&self, state: &TransportState) -> Result<(), RestoreError> {
        let own = self.device.device_type();
        require(state.device_type == own, "device type", || {
            format!("{}, and this device is of type {own}", state.device_type)
        })?;
        require(is_status(state.status), "status", || format!("{:#x} is impossible", state.status))?;
        let has = |bit| state.status & bit != 0;

        let (accepted, offered) = (state.driver_features, self.offered_features());
        let agreed = if has(VIRTIO_CONFIG_S_FEATURES_OK) {
            features_agree(accepted, offered)
        } else {
            accepted == 0 || has(VIRTIO_CONFIG_S_DRIVER)
        };
        require(agreed, "features", || {
            format!("{accepted:#x} cannot have been accepted of {offered:#x} with status {:#x}", state.status)
        })?;

        let known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        require(state.interrupt_status & !known == 0, "interrupt status", || {
            format!("{:#x} has unknown bits", state.interrupt_status)
        })?;
        require(state.config.len() == self.config_len, "configuration", || {
            format!("{} bytes, and this device has {}", state.config.len(), self.config_len)
        })?;
        self.check_queues(state)
    }

    fn check_queues(&self, state: &TransportState) -> Result<(), RestoreError> {
        let at_reset = registers_at_reset(self.device.as_ref());
        require(state.queues.len() == at_reset.len(), "queues", || {
            format!("{}, and this device has {}", state.queues.len(), at_reset.len())
        })?;
        let negotiated = state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        let runs = state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        for (queue, fresh) in state.queues.iter().zip(&at_reset) {
            let QueueRegisters { state, ready, reset } = *queue;
            let index = fresh.state.index;
            let require = |is_so, problem: &str| {
                require(is_so, "queues", || format!("queue {index} {problem}: {queue:?}"))
            };
            require(state.index == index, "has another index")?;
            require(negotiated || queue == fresh, "was set up before the features were accepted")?;
            let is_size = is_size(state.config.size, fresh.state.config.size);
            require(is_size || state.config.size == 0 && !ready, "has an impossible size")?;
            require(!reset || runs && !ready, "cannot have been reset")?;
            let begun = state.next_available != 0 || state.next_used != 0;
            require(!begun || runs && ready, "cannot have been used")?;
        }
        Ok(())
    }
}

fn require(is_so: bool, field: &'static str, problem: impl FnOnce() -> String) -> Result<(), RestoreError> {
    if is_so { Ok(()) } else { Err(RestoreError { field, problem: problem() }) }
}

/// Whether a device that is not broken can have that status.
fn is_status(status: u32) -> bool {
    let climbed = status & !(VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET);
    let runs = status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
    let mut reached = 0;
    let on_ladder = climbed == 0
        || LADDER.iter().any(|bit| {
            reached |= bit;
            climbed == reached
        });
    on_ladder && (runs || status & VIRTIO_CONFIG_S_NEEDS_RESET == 0)
}

/// Replaces all bytes, of which there are as many as before.
fn set_config_bytes(config: &ConfigSpace, to: &[u8]) {
    config.update_by_driver(|bytes| {
        for (byte, new) in bytes.iter_mut().zip(to) {
            *byte = *new;
        }
    });
}
