//! A worker's way to the device's detour, if it has one.

use std::sync::Arc;
use std::time::Instant;

use kindling_virtio_device::{Readable, Watch, WorkerError};
use vmm_sys_util::epoll::EventSet;

use super::DETOUR_TIMER;
use crate::HEADER_BYTES;
use crate::detour::SharedDetour;

pub(crate) struct WorkerDetour {
    shared: Arc<SharedDetour>,
    /// Whether the timer is this worker's business.
    has_timer: bool,
    /// A frame on its way.
    frame: Vec<u8>,
    /// Whether the detour may have frames for this worker to pass on.
    is_due: bool,
    /// Whether it has been given one since somebody wanted to know.
    is_fed: bool,
}

impl WorkerDetour {
    pub fn new(shared: &Arc<SharedDetour>, has_timer: bool) -> Self {
        Self { shared: Arc::clone(shared), has_timer, frame: Vec::new(), is_due: false, is_fed: false }
    }

    /// Begins, or goes on after a sleep, in which time may have passed.
    pub fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        if self.has_timer {
            self.is_due = true;
            self.shared.with_timer(|timer| watch.add(timer, DETOUR_TIMER, EventSet::IN))?;
        }
        Ok(())
    }

    pub fn on_timer(&mut self) {
        self.shared.clear_timer();
        self.is_due = true;
    }

    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// Whether the detour wants the frame behind the header in `chain`.
    pub fn wants(&self, chain: &Readable) -> bool {
        chain.peek(HEADER_BYTES).is_some_and(|head| self.shared.detour.wants(&head))
    }

    /// Gives the detour the frame behind the header in `chain`, which is not longer than any frame can be.
    pub fn receive(&mut self, chain: &mut Readable) {
        chain.skip(HEADER_BYTES as u32);
        self.frame.resize(chain.len() as usize, 0);
        // The guest may change it until now, and not from now on.
        chain.read(&mut self.frame);
        self.shared.detour.receive(Instant::now(), &self.frame);
        (self.is_due, self.is_fed) = (true, true);
    }

    /// Whether the detour was given a frame since the last call.
    pub fn was_fed(&mut self) -> bool {
        std::mem::take(&mut self.is_fed)
    }

    /// The detour's next frame for the guest, if it is this worker's turn to ask.
    pub fn next_frame(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if !self.is_due {
            return None;
        }
        let frame = self.shared.detour.next_frame(Instant::now(), buffer);
        if frame.is_none() {
            self.is_due = false;
            self.shared.set_timer();
        }
        frame
    }
}
