//! What can go wrong between a device, its driver and its thread.

use std::io;

use thiserror::Error;
use vm_memory::GuestMemoryError;

/// The driver broke the rules of a virtqueue (VIRTIO 1.2, 2.7). The device needs a reset.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The size is not a power of two, or above the device's maximum.
    #[error("queue size {size} is not a power of two of at most {max}")]
    Size {
        /// The size that the driver chose.
        size: u16,
        /// The most that the device can do.
        max: u16,
    },
    /// A part of the queue is not aligned as VIRTIO 1.2, 2.7 asks.
    #[error("the queue's {part} at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// The part: descriptor table, available ring or used ring.
        part: &'static str,
        /// Its guest-physical address.
        address: u64,
        /// What it should be a multiple of.
        alignment: u64,
    },
    /// A part of the queue is not inside one region of guest memory.
    #[error("the queue's {part} at {address:#x} is not in guest memory")]
    Ring {
        /// The part: descriptor table, available ring or used ring.
        part: &'static str,
        /// Its guest-physical address.
        address: u64,
        /// What the memory says.
        #[source]
        source: GuestMemoryError,
    },
    /// More chains are available, or not yet shown as used, than the queue has entries.
    #[error("available index {index}, with {next} the next to take, exceeds the queue's size of {size}")]
    AvailableIndex {
        /// The driver's index.
        index: u16,
        /// What the device would take next.
        next: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A descriptor index is not below the size of its table.
    #[error("descriptor {index} is not in a table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain was made available while the device still has it.
    #[error("the chain at descriptor {head} is already in use")]
    InUse {
        /// Its first descriptor.
        head: u16,
    },
    /// A chain has more buffers than its queue has entries, perhaps because it has a loop (VIRTIO 1.2, 2.7.5.3.1).
    #[error("the chain at descriptor {head} has more than {size} buffers")]
    ChainLength {
        /// Its first descriptor.
        head: u16,
        /// The most it can have.
        size: u16,
    },
    /// A buffer is not in guest memory.
    #[error("the buffer of {len} bytes at {address:#x} is not in guest memory")]
    Buffer {
        /// Its guest-physical address.
        address: u64,
        /// Its length in bytes.
        len: u32,
        /// What the memory says.
        #[source]
        source: GuestMemoryError,
    },
    /// A buffer for the device to read comes after one for it to write (VIRTIO 1.2, 2.7.4.2).
    #[error("the chain at descriptor {head} has a readable buffer after a writable one")]
    Order {
        /// Its first descriptor.
        head: u16,
    },
    /// An indirect table that is empty, not a whole number of descriptors, nested, or not in guest memory
    /// (VIRTIO 1.2, 2.7.5.3).
    #[error("the indirect table of {len} bytes at {address:#x} is not one")]
    Indirect {
        /// Its guest-physical address.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// The readable or the writable buffers of a chain are 4 GiB or longer together (VIRTIO 1.2, 2.7.5.2).
    #[error("the chain at descriptor {head} is 4 GiB long or longer")]
    TooLong {
        /// Its first descriptor.
        head: u16,
    },
}

/// A worker cannot go on. Its device needs a reset.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The driver broke the protocol.
    #[error("queue {queue}: the driver broke the protocol")]
    Queue {
        /// Index of the queue.
        queue: u16,
        /// How.
        #[source]
        source: QueueError,
    },
    /// The host refused something without which the device cannot work.
    #[error("cannot {doing}")]
    Host {
        /// What was being done to what.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl WorkerError {
    /// For `map_err`: the host refused while `doing` something.
    pub fn host(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }

    /// For `map_err`: the driver broke the protocol of queue `queue`.
    pub fn queue(queue: u16) -> impl FnOnce(QueueError) -> Self {
        move |source| Self::Queue { queue, source }
    }
}

/// A device cannot be activated.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver set up a queue wrongly.
    #[error("queue {queue} cannot be used")]
    Queue {
        /// Its index.
        queue: u16,
        /// Why not.
        #[source]
        source: QueueError,
    },
    /// The driver did not enable a queue without which the device cannot work.
    #[error("queue {0} is not enabled")]
    Missing(u16),
    /// The host refused something.
    #[error("cannot {doing}")]
    Host {
        /// What was being done to what.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A worker was not given back.
#[derive(Debug, Error)]
pub enum StopError {
    /// It did not finish what it had begun in time. It stays with its thread, and its place with it.
    #[error("the worker did not finish its requests in time")]
    Deadline,
    /// Its thread has ended.
    #[error("the worker's thread has ended")]
    Gone,
}

/// A saved state does not fit the device.
#[derive(Debug, Error)]
#[error("saved state: {field}: {problem}")]
pub struct RestoreError {
    /// The field that is wrong.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// An error and its causes, in one line.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
