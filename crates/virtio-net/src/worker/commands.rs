//! The queue for commands (VIRTIO 1.2, 5.1.6.5). There is one command: how many queue pairs the driver wants to use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use kindling_virtio_device::{Chain, Queue, WorkerError};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::{Backend, NetMetrics};

const MQ_CLASS: u8 = VIRTIO_NET_CTRL_MQ as u8;
const PAIRS_SET: u8 = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;

pub(crate) struct Commands {
    pub(super) queue: Queue,
    chain: Chain,
    backend: Arc<Backend>,
    /// Queue pairs that the driver set up.
    pairs: u16,
    /// How many of them it wants to use.
    wanted: Arc<AtomicU16>,
    metrics: Arc<NetMetrics>,
}

impl Commands {
    pub fn new(
        queue: Queue,
        backend: &Arc<Backend>,
        pairs: u16,
        wanted: &Arc<AtomicU16>,
        metrics: &Arc<NetMetrics>,
    ) -> Self {
        Self {
            chain: Chain::new(queue.memory()),
            queue,
            backend: Arc::clone(backend),
            pairs,
            wanted: Arc::clone(wanted),
            metrics: Arc::clone(metrics),
        }
    }

    /// Obeys one command. The host's kernel may take milliseconds to detach queues, and the thread has other things to do,
    /// such as to stop.
    pub(super) fn run(&mut self) -> Result<(), WorkerError> {
        self.queue.begin_batch();
        if self.queue.pop(&mut self.chain).map_err(WorkerError::queue(self.queue.index()))? {
            self.metrics.commands.increment();
            let is_done = self.obey();
            let ack = if is_done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let written = self.chain.writable.write(&[ack as u8]);
            if !is_done || written == 0 {
                self.metrics.commands_failed.increment();
            }
            self.queue.push(self.chain.head(), written as u32);
        }
        self.queue.end_batch();
        Ok(())
    }

    /// Does what the chain says, if it is known, well-formed and possible.
    fn obey(&mut self) -> bool {
        let command = &mut self.chain.readable;
        match command.take() {
            Some([MQ_CLASS, PAIRS_SET]) if command.len() == 2 => {
                let pairs = command.take().map(u16::from_le_bytes);
                let set = pairs
                    .filter(|pairs| (1..=self.pairs).contains(pairs))
                    .filter(|pairs| self.backend.set_active(*pairs).is_ok());
                set.inspect(|pairs| self.wanted.store(*pairs, Ordering::Relaxed)).is_some()
            }
            _ => false,
        }
    }
}
