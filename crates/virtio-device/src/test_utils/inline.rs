//! Running workers on the calling thread.

use std::collections::BTreeSet;

use vmm_sys_util::epoll::{Epoll, EpollEvent};

use crate::{Watch, Worker, WorkerError};

/// Workers that run on the calling thread, when asked to.
pub struct Inline {
    epoll: Epoll,
    workers: Vec<(Box<dyn Worker>, BTreeSet<i32>)>,
}

impl Inline {
    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// That of the first that cannot start.
    pub fn start(workers: Vec<Box<dyn Worker>>) -> Result<Self, WorkerError> {
        let epoll = Epoll::new().unwrap();
        let mut workers: Vec<_> = workers.into_iter().map(|worker| (worker, BTreeSet::new())).collect();
        for (slot, (worker, watched)) in (0..).zip(&mut workers) {
            worker.start(&mut Watch::new(&epoll, slot, watched))?;
        }
        Ok(Self { epoll, workers })
    }

    /// Lets the workers do what there is to do, waiting at most `timeout` milliseconds for it. Returns how many events
    /// there were.
    ///
    /// # Errors
    ///
    /// That of the first worker that cannot go on.
    pub fn step(&mut self, timeout: i32) -> Result<usize, WorkerError> {
        let mut events = [EpollEvent::default(); 32];
        let count = self.epoll.wait(timeout, &mut events).unwrap_or(0);
        for event in &events[..count] {
            let (slot, token) = ((event.data() >> 32) as u32, event.data() as u32);
            let (worker, watched) = &mut self.workers[slot as usize];
            worker.event(token, event.event_set(), &mut Watch::new(&self.epoll, slot, watched))?;
        }
        Ok(count)
    }

    /// Steps until nothing is left to do, at most `limit` times. Returns how many steps there were.
    ///
    /// # Errors
    ///
    /// That of the first worker that cannot go on.
    pub fn run(&mut self, limit: usize) -> Result<usize, WorkerError> {
        for step in 0..limit {
            if self.step(0)? == 0 {
                return Ok(step);
            }
        }
        Ok(limit)
    }

    /// Drains the workers and gives them back.
    pub fn stop(self) -> Vec<Box<dyn Worker>> {
        let drained = self.workers.into_iter().map(|(mut worker, _)| {
            worker.drain();
            worker
        });
        drained.collect()
    }
}
