//! What can go wrong on the host's side of a transport.

use std::io;

use kindling_virtio_device::{ActivateError, RestoreError, StopError};
use thiserror::Error;

/// A transport cannot be made, or cannot do what the monitor asks of it.
#[derive(Debug, Error)]
pub enum Error {
    /// The host is out of descriptors.
    #[error("making the eventfd by which a queue is notified")]
    Kick(#[source] io::Error),
    /// The device was given more or fewer threads than it asks for.
    #[error("the device needs places for {needed} workers, not for {given}")]
    Slots {
        /// The places that it needs.
        needed: usize,
        /// The places that it was given.
        given: usize,
    },
    /// The device did not finish its requests in time. It is broken until it has.
    #[error("taking the device's workers back")]
    Stop(#[source] StopError),
    /// Only a sleeping device can be saved.
    #[error("the device is to be saved and is awake")]
    Awake,
    /// Only a device that has no driver yet can be restored.
    #[error("the device is to be restored and has a driver already")]
    InUse,
    /// A field of the saved state does not fit the device.
    #[error("restoring the device")]
    Restore(#[from] RestoreError),
    /// The saved queues cannot be used.
    #[error("restoring the device's queues")]
    Activate(#[source] ActivateError),
}
