//! What both engines have in common: doing a request at once, and ending one.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use kindling_virtio_device::Queue;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use crate::device::Shared;
use crate::request::{Job, Range, Request, Status};
use crate::{Clear, Disk, Segments};

/// Bytes that go through a worker's own memory at once.
const BOUNCE_BYTES: usize = 64 << 10;
/// What that memory is aligned to: enough for any [`Alignment`](crate::Alignment).
const BOUNCE_ALIGNMENT: usize = 4096;

/// A worker's queue and disk.
pub(super) struct Io {
    pub queue: Queue,
    pub disk: Arc<dyn Disk>,
    pub shared: Arc<Shared>,
    /// Whether each write must be durable when it is done: the driver could flush, and does not want to
    /// (VIRTIO 1.2, 5.2.6.2).
    pub durable: bool,
    /// The time, as of the last [`Io::tick`].
    pub now: Instant,
    bounce: Bounce,
}

/// Aligned memory for buffers that direct I/O cannot use. It is made when it is needed first.
#[derive(Default)]
struct Bounce(Vec<u8>);

impl Io {
    /// The driver could have accepted the features `declined`.
    pub fn new(queue: Queue, disk: Arc<dyn Disk>, shared: Arc<Shared>, declined: u64) -> Self {
        let durable = declined >> VIRTIO_BLK_F_FLUSH & 1 == 1;
        Self { queue, disk, shared, durable, now: Instant::now(), bounce: Bounce::default() }
    }

    pub fn tick(&mut self) {
        self.now = Instant::now();
    }

    /// Does what is left of a job.
    pub fn execute(&mut self, job: &mut Job) -> io::Result<()> {
        match job.request {
            Request::Read(offset) => self.read(job, offset),
            Request::Write(offset) => self.write(job, offset),
            Request::Flush => self.disk.flush(),
            Request::GetId => {
                job.chain.writable.write(&self.shared.id);
                Ok(())
            }
            Request::Clear(how) => {
                for Range { offset, len } in job.ranges.iter().skip(job.cleared) {
                    self.disk.clear(how, *offset, *len)?;
                }
                if self.durable { self.disk.flush() } else { Ok(()) }
            }
        }
    }

    fn read(&mut self, job: &mut Job, mut offset: u64) -> io::Result<()> {
        let alignment = self.disk.info().alignment;
        let to = &mut job.chain.writable;
        while !to.is_empty() {
            let count = if alignment.suits(to.iovecs()) {
                let count = self.disk.read(Segments::from(&*to), offset)?;
                // More than is left is taken for all that is left.
                to.skip(u32::try_from(count).unwrap_or(u32::MAX))
            } else {
                let bounce = self.bounce.get(to.len());
                let count = Segments::with_bytes(bounce, |bounce| self.disk.read(bounce, offset))?;
                to.write(bounce.get(..count).unwrap_or_default()) as u32
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset = offset.saturating_add(count.into());
        }
        Ok(())
    }

    fn write(&mut self, job: &mut Job, mut offset: u64) -> io::Result<()> {
        let alignment = self.disk.info().alignment;
        let from = &mut job.chain.readable;
        while !from.is_empty() {
            let count = if alignment.suits(from.iovecs()) {
                let count = self.disk.write(Segments::from(&*from), offset, self.durable)?;
                from.skip(u32::try_from(count).unwrap_or(u32::MAX))
            } else {
                let bounce = self.bounce.get(from.len());
                from.read(bounce);
                let wanted = bounce.len();
                let count =
                    Segments::with_bytes(bounce, |bounce| self.disk.write(bounce, offset, self.durable))?;
                // What is left of a piece would not be aligned.
                if count == wanted { count as u32 } else { 0 }
            };
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset = offset.saturating_add(count.into());
        }
        Ok(())
    }

    /// Ends a job that was done, or failed.
    pub fn finish(&mut self, job: &mut Job, result: &io::Result<()>) {
        let metrics = &self.shared.metrics;
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) if matches!(job.request, Request::Clear(_)) && is_unsupported(error) => {
                Status::Unsupported
            }
            Err(_) => Status::IoError,
        };
        let took = self.now.saturating_duration_since(job.begun);
        match (job.request, status) {
            (_, Status::Unsupported) => metrics.unsupported_requests.increment(),
            (Request::Read(_), Status::Ok) => {
                metrics.reads.increment();
                metrics.read_bytes.add(job.bytes);
                metrics.read_latency.record(took);
            }
            (Request::Read(_), Status::IoError) => metrics.read_errors.increment(),
            (Request::Write(_), Status::Ok) => {
                metrics.writes.increment();
                metrics.write_bytes.add(job.bytes);
                metrics.write_latency.record(took);
            }
            (Request::Write(_), Status::IoError) => metrics.write_errors.increment(),
            (Request::Flush, Status::Ok) => {
                metrics.flushes.increment();
                metrics.flush_latency.record(took);
            }
            (Request::Flush, Status::IoError) => metrics.flush_errors.increment(),
            (Request::GetId, _) => {}
            (Request::Clear(Clear::Discard), Status::Ok) => {
                metrics.discards.increment();
                metrics.discarded_bytes.add(job.bytes);
            }
            (Request::Clear(Clear::Discard), Status::IoError) => metrics.discard_errors.increment(),
            (Request::Clear(Clear::Zero { .. }), Status::Ok) => {
                metrics.write_zeroes.increment();
                metrics.zeroed_bytes.add(job.bytes);
            }
            (Request::Clear(Clear::Zero { .. }), Status::IoError) => metrics.write_zeroes_errors.increment(),
        }
        job.finish(status, &mut self.queue);
    }

    /// Ends a job that is not to be done.
    pub fn refuse(&mut self, job: &mut Job, status: Status) {
        match status {
            Status::Unsupported => self.shared.metrics.unsupported_requests.increment(),
            _ => self.shared.metrics.invalid_requests.increment(),
        }
        job.finish(status, &mut self.queue);
        // Its buffers may have been long.
        self.tick();
    }
}

/// Whether the host cannot do this at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

impl Bounce {
    /// Up to `len` bytes.
    fn get(&mut self, len: u32) -> &mut [u8] {
        // More than needed, so that there is an aligned place in it.
        self.0.resize(BOUNCE_BYTES.saturating_add(BOUNCE_ALIGNMENT), 0);
        let start = self.0.as_ptr().align_offset(BOUNCE_ALIGNMENT);
        let aligned = self.0.get_mut(start..).unwrap_or_default();
        aligned.get_mut(..BOUNCE_BYTES.min(len as usize)).unwrap_or_default()
    }
}
