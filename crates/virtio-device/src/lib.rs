#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod buffers;
mod chain;
mod config_space;
mod device;
mod error;
mod handover;
mod queue;
mod settings;
#[cfg(feature = "test-utils")]
pub mod test_utils;
mod thread;

pub use buffers::{Readable, Writable};
pub use chain::Chain;
pub use config_space::ConfigSpace;
pub use device::{Activation, Device, Interrupt, SetUp, Worker, Workers};
pub use error::{ActivateError, QueueError, RestoreError, StopError, WorkerError, one_line};
pub use queue::{Queue, QueueConfig, QueueState};
pub use settings::{Settings, Subscription};
pub use thread::{Stopping, Watch, WorkerSlot, WorkerThread};

/// Guest memory as devices see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap;

/// The features that every device offers, as a mask (VIRTIO 1.2, 6): indirect descriptors, event indices, version 1.
/// A transport adds what it can do itself, such as resetting a queue.
pub const COMMON_FEATURES: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
    | 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX
    | 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
