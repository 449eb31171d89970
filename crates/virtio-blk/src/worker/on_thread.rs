//! The worker with an I/O ring, which is made, or taken over, on the thread that uses it.
//!
//! The kernel keeps a ring with every thread that made it or used it, and has such a thread wait at its end for whoever
//! is inside the ring. So the thread that activates a device, a vCPU's, must not make its rings: it could not end while
//! a disk hangs.

use std::sync::Arc;

use kindling_virtio_device::{QueueState, Subscription, Watch, Worker, WorkerError};
use vmm_sys_util::epoll::EventSet;

use super::io::Io;
use super::{BlkWorker, Ring, RingPlace};
use crate::control::BlkSettings;

/// What a worker is made of, on its thread.
pub(super) struct Parts {
    pub ring: Arc<RingPlace>,
    pub io: Io,
    pub settings: Subscription<BlkSettings>,
    pub features: u64,
}

/// A worker that is made when it is started first.
pub(super) enum OnThread {
    Parts(Parts),
    Worker(Box<BlkWorker<Ring>>),
    /// It could not be made; its queue stood here.
    Failed(QueueState),
}

impl OnThread {
    fn make(&mut self) -> Result<(), WorkerError> {
        let Self::Parts(Parts { io, .. }) = self else { return Ok(()) };
        let failed = Self::Failed(io.queue.state());
        if let Self::Parts(Parts { ring, io, settings, features }) = std::mem::replace(self, failed) {
            let made = Ring::new(ring, &io).and_then(|ring| BlkWorker::new(ring, io, settings, features));
            *self = Self::Worker(Box::new(made.map_err(WorkerError::host("set up an I/O ring"))?));
        }
        Ok(())
    }
}

impl Worker for OnThread {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        self.make()?;
        match self {
            Self::Worker(worker) => worker.start(watch),
            Self::Parts(_) | Self::Failed(_) => Ok(()),
        }
    }

    fn event(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        match self {
            Self::Worker(worker) => worker.event(token, events, watch),
            Self::Parts(_) | Self::Failed(_) => Ok(()),
        }
    }

    fn drain(&mut self) {
        if let Self::Worker(worker) = self {
            worker.drain();
        }
    }

    fn queues(&self) -> Vec<QueueState> {
        match self {
            Self::Worker(worker) => worker.queues(),
            Self::Parts(parts) => vec![parts.io.queue.state()],
            Self::Failed(state) => vec![*state],
        }
    }
}
