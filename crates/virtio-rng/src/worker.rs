//! The data path: fills what the guest offers.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kindling_rate_limiter::RateLimiter;
use kindling_virtio_device::{Chain, Queue, QueueState, Subscription, Watch, Worker, WorkerError};
use vmm_sys_util::epoll::EventSet;

use crate::{Limits, REQUEST_MAX, RngMetrics};

/// Random bytes that are asked for at once.
const CHUNK: usize = 4096;

const QUEUE: u32 = 0;
const LIMITER: u32 = 1;
const SETTINGS: u32 = 2;

/// The limiter of an entropy device, and what it was made of. No two workers have it at a time.
pub(crate) struct Limiter {
    pub limits: Limits,
    pub limiter: RateLimiter,
}

/// The worker of an entropy device.
pub(crate) struct RngWorker {
    queue: Queue,
    chain: Chain,
    limiter: Arc<Mutex<Limiter>>,
    settings: Subscription<Limits>,
    chunk: Box<[u8; CHUNK]>,
    metrics: Arc<RngMetrics>,
}

impl RngWorker {
    pub(crate) fn new(
        queue: Queue,
        settings: Subscription<Limits>,
        limiter: Arc<Mutex<Limiter>>,
        metrics: Arc<RngMetrics>,
    ) -> Self {
        Self {
            chain: Chain::new(queue.memory()),
            queue,
            limiter,
            settings,
            chunk: Box::new([0; CHUNK]),
            metrics,
        }
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
            if !self.limiter().limiter.consume(self.chain.writable.len().into()) {
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

    /// Takes over the limits that are wanted now.
    fn reconfigure(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        let wanted = self.settings.latest();
        let mut shared = self.limiter();
        let Limiter { limits, limiter } = &mut *shared;
        if wanted == *limits {
            return Ok(());
        }
        let had_timer = limiter.timer().is_some();
        // The limits are valid, so the host is out of descriptors. Rather no random bytes than unlimited ones.
        limiter
            .update(wanted.bandwidth.into(), wanted.ops.into())
            .map_err(|error| WorkerError::host("limit an entropy device")(io::Error::other(error)))?;
        *limits = wanted;
        match limiter.timer() {
            Some(timer) if !had_timer => watch.add(&timer, LIMITER, EventSet::IN),
            _ => Ok(()),
        }
    }

    /// A lock that outlives a panic: any limiter is valid.
    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker for RngWorker {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add(self.queue.kick(), QUEUE, EventSet::IN)?;
        watch.add(&self.settings, SETTINGS, EventSet::IN)?;
        let timer = self.limiter().limiter.timer();
        if let Some(timer) = timer {
            watch.add(&timer, LIMITER, EventSet::IN)?;
        }
        self.reconfigure(watch)?;
        self.serve()
    }

    fn event(&mut self, token: u32, _: EventSet, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        match token {
            LIMITER => self.limiter().limiter.on_timer(),
            SETTINGS => self.reconfigure(watch)?,
            _ => {}
        }
        self.serve()
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
