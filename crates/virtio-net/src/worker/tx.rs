//! From the guest to the host (VIRTIO 1.2, 5.1.6.2).

use std::fs::File;
use std::sync::Arc;

use kindling_rate_limiter::Share;
use kindling_virtio_device::{Chain, Queue, WorkerError};

use super::{BATCH, Wait, WorkerDetour};
use crate::{HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, NetMetrics};

pub(super) struct Transmitter {
    pub queue: Queue,
    pub limiter: Share,
    chain: Chain,
    metrics: Arc<NetMetrics>,
}

/// What became of a frame.
enum Sent {
    /// The host has it.
    Yes,
    /// Nobody will ever have it.
    Dropped,
    /// It is to be tried again.
    NotYet(Wait),
}

impl Transmitter {
    pub fn new(queue: Queue, limiter: Share, metrics: &Arc<NetMetrics>) -> Self {
        Self { chain: Chain::new(queue.memory()), queue, limiter, metrics: Arc::clone(metrics) }
    }

    /// Sends a batch of frames, to the tap or by the detour; drops them while there is no tap, which includes that the link is
    /// down.
    pub fn run(
        &mut self,
        tap: Option<&File>,
        mut detour: Option<&mut WorkerDetour>,
    ) -> Result<Wait, WorkerError> {
        self.queue.begin_batch();
        let (mut frames, mut bytes) = (0_u64, 0_u64);
        let mut wait = Wait::Driver;
        for _ in 0..BATCH {
            let popped = self.queue.pop(&mut self.chain).map_err(WorkerError::queue(self.queue.index()))?;
            if !popped {
                break;
            }
            let len = u64::from(self.chain.readable.len()).saturating_sub(HEADER_BYTES as u64);
            match self.send(tap, detour.as_deref_mut(), len) {
                Sent::Yes => {
                    frames = frames.saturating_add(1);
                    bytes = bytes.saturating_add(len);
                }
                Sent::Dropped => {}
                Sent::NotYet(what) => {
                    self.queue.unpop(&self.chain);
                    wait = what;
                    break;
                }
            }
            self.queue.push(self.chain.head(), 0);
        }
        self.metrics.tx_frames.add(frames);
        self.metrics.tx_bytes.add(bytes);
        match wait {
            Wait::Driver => self.queue.end_batch(),
            // Until then, kicks would tell nothing.
            _ => self.queue.publish(),
        }
        Ok(wait)
    }

    /// Shows the driver what is finished, and leaves nothing begun.
    pub fn drain(&mut self) {
        self.limiter.forget();
        self.queue.publish();
    }

    /// Sends the chain, whose frame has `len` bytes.
    fn send(&mut self, tap: Option<&File>, detour: Option<&mut WorkerDetour>, len: u64) -> Sent {
        if len < MIN_FRAME_BYTES as u64 || len > MAX_FRAME_BYTES as u64 {
            self.metrics.tx_dropped_size.increment();
            return Sent::Dropped;
        }
        let Some(tap) = tap else {
            self.metrics.tx_dropped_link_down.increment();
            return Sent::Dropped;
        };
        if !self.limiter.consume(len) {
            self.metrics.tx_throttled.increment();
            return Sent::NotYet(Wait::Tokens);
        }
        if let Some(detour) = detour
            && detour.wants(&self.chain.readable)
        {
            detour.receive(&mut self.chain.readable);
            self.metrics.tx_detoured.increment();
            return Sent::Yes;
        }
        let Err(error) = self.chain.readable.write_to(tap) else { return Sent::Yes };
        let wait = match error.raw_os_error() {
            Some(libc::EAGAIN) => {
                self.metrics.tx_waits.increment();
                Wait::Tap
            }
            Some(libc::EBADFD | libc::ENODEV | libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => {
                Wait::Never
            }
            // EINVAL for a wrong header, EIO while the tap is not up.
            _ => {
                self.metrics.tx_refused.increment();
                return Sent::Dropped;
            }
        };
        self.limiter.give_back(len);
        Sent::NotYet(wait)
    }
}
