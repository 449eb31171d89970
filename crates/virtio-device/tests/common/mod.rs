//! A driver of one queue.
#![allow(dead_code, reason = "not every test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{
    ActivateError, Activation, Chain, ConfigSpace, Device, Queue, QueueError, Worker, Workers,
};
use vm_memory::{Bytes, GuestAddress};

/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;

/// Descriptor flags.
pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

/// Where nothing else is in the driver's memory.
pub const FREE: u64 = 200 << 20;

kindling_metrics::metrics! {
    /// Nothing to speak of.
    struct NoMetrics {
        /// Nothing.
        nothing: Counter,
    }
}

/// A device that has a queue and does nothing.
struct Idle {
    config: Arc<ConfigSpace>,
    sizes: [u16; 1],
}

impl Device for Idle {
    fn device_type(&self) -> u32 {
        4
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }
    fn workers(&self) -> Workers {
        Workers::Shared
    }
    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }
    fn metrics(&self) -> Arc<dyn kindling_metrics::Metrics> {
        Arc::new(NoMetrics::default())
    }
    fn activate(&mut self, _: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        Ok(Vec::new())
    }
}

/// A driver of one queue with `size` entries.
pub fn driver(size: u16, features: u64) -> MockDriver {
    MockDriver::with_features(&Idle { config: ConfigSpace::new(&[]), sizes: [size] }, features)
}

/// The device's side of the driver's queue, from where the driver begins.
pub fn queue(driver: &MockDriver) -> Queue {
    driver.activation().take_queue(0).unwrap()
}

/// Both sides of a queue.
pub fn pair(size: u16, features: u64) -> (MockDriver, Queue) {
    let driver = driver(size, features);
    let queue = queue(&driver);
    (driver, queue)
}

/// Offers a chain of these buffers and takes it as the device.
pub fn chain(driver: &mut MockDriver, queue: &mut Queue, buffers: &[Buffer<'_>]) -> Chain {
    driver.queues[0].add(buffers);
    let mut chain = Chain::new(queue.memory());
    assert!(queue.pop(&mut chain).unwrap());
    chain
}

/// What the device says about the next chain, which is wrong.
pub fn error(queue: &mut Queue) -> QueueError {
    let (before, mut chain) = (queue.state(), Chain::new(queue.memory()));
    let error = queue.pop(&mut chain).unwrap_err();
    assert_eq!(queue.state(), before, "nothing was taken");
    error
}

/// A word of the driver's memory.
pub fn word(driver: &MockDriver, at: u64) -> u16 {
    u16::from_le(driver.memory.load(GuestAddress(at), Ordering::SeqCst).unwrap())
}

/// Sets a word of the driver's memory.
pub fn set_word(driver: &MockDriver, at: u64, value: u16) {
    driver.memory.store(value.to_le(), GuestAddress(at), Ordering::SeqCst).unwrap();
}

/// Addresses of the words of the rings that are no entries.
pub struct Words {
    pub available_flags: u64,
    pub available_index: u64,
    pub used_event: u64,
    pub used_flags: u64,
    pub used_index: u64,
    pub available_event: u64,
}

pub fn words(driver: &MockDriver) -> Words {
    let config = driver.queues[0].state.config;
    let size = u64::from(config.size);
    Words {
        available_flags: config.available_ring,
        available_index: config.available_ring + 2,
        used_event: config.available_ring + 4 + 2 * size,
        used_flags: config.used_ring,
        used_index: config.used_ring + 2,
        available_event: config.used_ring + 4 + 8 * size,
    }
}

/// Where two threads meet, to go on at the same moment as far as possible.
#[derive(Default)]
pub struct Meeting(AtomicU32);

impl Meeting {
    pub fn meet(&self) {
        let arrived = self.0.fetch_add(1, Ordering::SeqCst);
        let mut turns = 0_u32;
        while self.0.load(Ordering::SeqCst) / 2 == arrived / 2 {
            turns += 1;
            // There may be one processor only.
            if turns.is_multiple_of(1 << 8) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}
