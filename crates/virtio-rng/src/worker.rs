//! The data path: fills what the guest offers.

use std::io;
use std::sync::Arc;

use kindling_rate_limiter::Share;
use kindling_virtio_device::{Chain, Queue, QueueState, Subscription, Watch, Worker, WorkerError};
use vmm_sys_util::epoll::EventSet;

use crate::{REQUEST_MAX, RngMetrics};

/// Random bytes that are asked for at once.
const CHUNK: usize = 4096;

const QUEUE: u32 = 0;
const LIMITER: u32 = 1;
const CHANGED: u32 = 2;

/// The worker of an entropy device.
pub(crate) struct RngWorker {
    queue: Queue,
    chain: Chain,
    limiter: Share,
    /// The limits are others.
    changed: Subscription<()>,
    chunk: Box<[u8; CHUNK]>,
    metrics: Arc<RngMetrics>,
}

impl RngWorker {
    pub(crate) fn new(
        queue: Queue,
        limiter: Share,
        changed: Subscription<()>,
        metrics: Arc<RngMetrics>,
    ) -> Self {
        let chain = Chain::new(queue.memory());
        Self { queue, chain, limiter, changed, chunk: Box::new([0; CHUNK]), metrics }
    }

    /// Answers what is available, as far as the limiter allows.
    fn serve(&mut self) -> Result<(), WorkerError> {
        self.queue.begin_batch();
        let index = self.queue.index();
        for _ in 0..self.queue.size() {
            if !self.queue.pop(&mut self.chain).map_err(WorkerError::queue(index))? {
                break;
            }
            self.chain.writable.truncate(REQUEST_MAX);
            if !self.limiter.consume(self.chain.writable.len().into()) {
                // The timer brings it back; a kick would bring nothing but the same answer.
                self.metrics.throttled.increment();
                self.queue.unpop(&self.chain);
                self.queue.publish();
                return Ok(());
            }
            let written = self.fill();
            self.queue.push(self.chain.head(), written);
        }
        self.queue.end_batch();
        Ok(())
    }

    /// Fills the chain with random bytes; returns how many.
    fn fill(&mut self) -> u32 {
        let wanted = self.chain.writable.len();
        let mut written: u32 = 0;
        while !self.chain.writable.is_empty() {
            let len = (self.chain.writable.len() as usize).min(CHUNK);
            let Some(bytes) = self.chunk.get_mut(..len) else { break };
            let Ok(len) = random(bytes) else { break };
            let filled = self.chunk.get(..len).map_or(0, |bytes| self.chain.writable.write(bytes));
            written = written.saturating_add(filled as u32);
        }
        self.metrics.requests.increment();
        self.metrics.bytes.add(written.into());
        if written < wanted || wanted == 0 {
            self.metrics.failures.increment();
        }
        written
    }
}

impl Worker for RngWorker {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add_kicks(&self.queue, QUEUE)?;
        watch.add(&self.changed, CHANGED, EventSet::IN)?;
        watch.add(self.limiter.timer(), LIMITER, EventSet::IN)?;
        self.serve()
    }

    fn event(&mut self, token: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        match token {
            LIMITER => self.limiter.on_timer(),
            CHANGED => {
                self.changed.latest();
                self.limiter.forget();
            }
            _ => {}
        }
        self.serve()
    }

    fn drain(&mut self) {
        self.limiter.forget();
    }

    fn queues(&self) -> Vec<QueueState> {
        vec![self.queue.state()]
    }
}

/// Fills `bytes` from the front with the host's random bytes; returns how many there were, at least one.
fn random(bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and the length are those of a slice that this function may write.
        let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(len) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => return Ok(len),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
