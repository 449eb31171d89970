//! The queue for commands (VIRTIO 1.2, 5.1.6.5). There is one command: how many queue pairs the driver wants to use.
//!
//! A driver that changes its mind too often waits for the answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use kindling_rate_limiter::Share;
use kindling_virtio_device::{Chain, Queue, WorkerError};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::control::Shared;
use crate::{Backend, NetMetrics};

const MQ_CLASS: u8 = VIRTIO_NET_CTRL_MQ as u8;
const PAIRS_SET: u8 = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;

pub(crate) struct Commands {
    pub(super) queue: Queue,
    pub(super) limiter: Share,
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
        shared: &Shared,
    ) -> io::Result<Self> {
        Ok(Self {
            limiter: Share::new(&shared.changes)?,
            chain: Chain::new(queue.memory()),
            queue,
            backend: Arc::clone(backend),
            pairs,
            wanted: Arc::clone(wanted),
            metrics: Arc::clone(&shared.metrics),
        })
    }

    /// Obeys one command. The host's kernel may take milliseconds to detach queues, and the thread has other things to do,
    /// such as to stop.
    pub(super) fn run(&mut self) -> Result<(), WorkerError> {
        self.queue.begin_batch();
        if self.limiter.is_blocked() {
            return Ok(());
        }
        if self.queue.pop(&mut self.chain).map_err(WorkerError::queue(self.queue.index()))? {
            let wanted = self.wanted();
            let changes = wanted.map_or(0, |pairs| self.backend.distance(pairs));
            if changes > 0 && !self.limiter.consume(changes.into()) {
                self.queue.unpop(&self.chain);
                // The timer comes, and kicks would tell nothing.
                self.queue.publish();
                return Ok(());
            }
            self.metrics.commands.increment();
            let done = wanted.filter(|pairs| self.backend.set_active(*pairs).is_ok());
            done.inspect(|pairs| self.wanted.store(*pairs, Ordering::Relaxed));
            let ack = if done.is_some() { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let written = self.chain.writable.write(&[ack as u8]);
            if done.is_none() || written == 0 {
                self.metrics.commands_failed.increment();
            }
            self.queue.push(self.chain.head(), written as u32);
        }
        self.queue.end_batch();
        Ok(())
    }

    /// Gives back a command that waits.
    pub(super) fn drain(&mut self) {
        self.limiter.forget();
    }

    /// How many queue pairs the chain asks for, if it is a command that is known, well-formed and possible.
    fn wanted(&mut self) -> Option<u16> {
        let command = &mut self.chain.readable;
        match command.take() {
            Some([MQ_CLASS, PAIRS_SET]) if command.len() == 2 => {
                command.take().map(u16::from_le_bytes).filter(|pairs| (1..=self.pairs).contains(pairs))
            }
            _ => None,
        }
    }
}
