//! A device's workers: on their threads, here, or on their way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use kindling_virtio_device::{Interrupt, StopError, Stopping, Worker, WorkerSlot};
use vmm_sys_util::eventfd::EventFd;

/// The workers of one device. The one at position `n` runs in the place at position `n`.
pub(super) struct Workers {
    slots: Vec<WorkerSlot>,
    /// How many are on their threads.
    running: usize,
    /// Those that were asked for and are not here yet, behind those that are.
    coming: VecDeque<Stopping>,
    /// Those that are here.
    here: Vec<Box<dyn Worker>>,
}

impl Workers {
    pub fn new(slots: Vec<WorkerSlot>) -> Self {
        Self { slots, running: 0, coming: VecDeque::new(), here: Vec::new() }
    }

    /// How many there can be.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// Those that are here.
    pub fn here(&self) -> &[Box<dyn Worker>] {
        &self.here
    }

    /// Replaces all, when all are here, by `workers`.
    pub fn replace(&mut self, workers: Vec<Box<dyn Worker>>) {
        self.here = workers;
    }

    /// Puts all, when all are here, on their threads.
    pub fn start(&mut self, interrupt: &Arc<dyn Interrupt>) {
        for (slot, worker) in self.slots.iter().zip(self.here.drain(..)) {
            slot.start(worker, Arc::clone(interrupt));
            self.running = self.running.saturating_add(1);
        }
    }

    /// Gets all here. When that fails, one can try again.
    pub fn recall(&mut self, deadline: Instant) -> Result<(), StopError> {
        // All are asked before one is waited for.
        let running = std::mem::take(&mut self.running);
        self.coming.extend(self.slots.iter().take(running).map(WorkerSlot::stop));
        while let Some(next) = self.coming.front() {
            self.here.extend(next.wait(deadline)?);
            self.coming.pop_front();
        }
        Ok(())
    }

    /// Has `event` written when it is worth a try again.
    pub fn notify(&self, event: &Arc<EventFd>) {
        if let Some(next) = self.coming.front() {
            next.notify(event);
        }
    }
}
