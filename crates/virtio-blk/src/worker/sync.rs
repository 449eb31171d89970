//! The synchronous engine: each request is done before the next is looked at.

use std::os::fd::RawFd;
use std::time::Instant;

use kindling_virtio_device::{Chain, WorkerError};

use super::Engine;
use super::io::Io;
use crate::Disk;
use crate::request::Job;

pub(super) struct Sync {
    job: Job,
}

impl Sync {
    pub fn new(io: &Io) -> Self {
        Self { job: Job::new(Chain::new(io.queue.memory()), Instant::now()) }
    }
}

impl Engine for Sync {
    fn watched(&self) -> Option<RawFd> {
        None
    }

    fn free(&mut self) -> Option<&mut Job> {
        Some(&mut self.job)
    }

    fn run(&mut self, io: &mut Io) -> Result<(), WorkerError> {
        let result = io.execute(&mut self.job);
        io.tick();
        io.finish(&mut self.job, &result);
        Ok(())
    }

    fn submit(&mut self, _: &mut Io) -> Result<(), WorkerError> {
        Ok(())
    }

    fn drain(&mut self, _: &mut Io) {}

    fn set_disk(&mut self, _: &dyn Disk) -> Result<(), WorkerError> {
        Ok(())
    }
}
