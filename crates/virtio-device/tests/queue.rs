//! The device's side of a queue against the driver's.

use std::sync::Arc;

use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{ActivateError, Activation, Chain, ConfigSpace, Device, Worker, Workers};

kindling_metrics::counters! {
    /// Nothing to speak of.
    struct NoMetrics {
        /// Nothing.
        nothing,
    }
}

struct Nothing(Arc<ConfigSpace>);

impl Device for Nothing {
    fn device_type(&self) -> u32 {
        4
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }
    fn workers(&self) -> Workers {
        Workers::Shared
    }
    fn config(&self) -> &Arc<ConfigSpace> {
        &self.0
    }
    fn metrics(&self) -> Arc<dyn kindling_metrics::Metrics> {
        Arc::new(NoMetrics::default())
    }
    fn activate(&mut self, _: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        Ok(Vec::new())
    }
}

#[test]
fn a_chain_goes_there_and_back() {
    let device = Nothing(ConfigSpace::new(&[]));
    let mut driver = MockDriver::new(&device);
    let mut queue = driver.activation().take_queue(0).unwrap();
    let mut chain = Chain::new(queue.memory());
    for round in 0..100_u32 {
        let head = if round % 2 == 0 {
            driver.queues[0].add(&[
                Buffer::Readable(b"hello"),
                Buffer::Readable(b" world"),
                Buffer::Writable(4),
                Buffer::Writable(3),
            ])
        } else {
            driver.queues[0].add_indirect(&[
                Buffer::Readable(b"hello"),
                Buffer::Readable(b" world"),
                Buffer::Writable(4),
                Buffer::Writable(3),
            ])
        };
        queue.begin_batch();
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!(chain.head(), head);
        assert_eq!(chain.readable.take::<7>().unwrap(), *b"hello w");
        assert_eq!(chain.readable.len(), 4);
        assert!(chain.writable.set_last_aside());
        assert_eq!(chain.writable.write(b"abcdefgh"), 6);
        chain.writable.write_last(9);
        queue.push(chain.head(), 7);
        assert!(driver.queues[0].take_used().is_none());
        assert!(!queue.pop(&mut chain).unwrap());
        queue.end_batch();
        let used = driver.queues[0].take_used().unwrap();
        assert_eq!((used.head, used.written, &used.data[..]), (head, 7, &b"abcdef\x09"[..]));
        assert_eq!(driver.interrupt.queue(0), u64::from(round) + 1);
    }
}
