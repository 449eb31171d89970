//! The asynchronous engine: requests are with the kernel, in an I/O ring, all at a time.
//!
//! What a batch begins goes to the kernel in one system call, which does at once whatever needs no waiting; the worker
//! watches the ring for the rest. A flush may run beside writes that have not finished: it is for those that were
//! finished when it was asked for (VIRTIO 1.2, 5.2.6.2).
//!
//! Each job has at most one entry in the ring at a time, so that neither of its queues overflows. Reads and writes that
//! come back short go on where they ended. What a ring cannot do is done at once: unaligned direct I/O, and what has an
//! `ioctl` only.
//!
//! The kernel may have no memory for requests, or want its results taken first (EAGAIN, EBUSY). Entries then stay in the
//! ring, from which nothing takes them back, and are handed over again a little later: to the guest, the disk is slow.
//!
//! Guest memory is the kernel's while a job is in flight. So the engine never goes away before all are back.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use kindling_virtio_device::{Chain, GuestMemory, WorkerError};
use libc::{c_int, iovec};

use super::Engine;
use super::io::{Io, is_unsupported};
use crate::file_disk::{PUNCH_HOLE, ZERO_RANGE};
use crate::request::{Job, Range, Request};
use crate::{Clear, Disk};

/// IOSQE_FIXED_FILE: the file is one of the ring's own. The ring accepts no others.
const FIXED_FILE: u8 = 1;
/// IORING_REGISTER_FILES_UPDATE.
const REGISTER_FILES_UPDATE: u8 = 6;
/// The disk: the ring's only file.
const DISK: types::Fixed = types::Fixed(0);

/// What an empty place among a ring's files is called.
const NO_FILE: RawFd = -1;

/// For how many milliseconds the kernel is left alone that does not take entries, unless it has results before.
const REFUSED_MS: c_int = 1;
/// How often in a row it may refuse a worker that has nothing else to do than to finish: about a second.
const REFUSALS: usize = 1000;

/// Where the ring of a queue is while no worker has it. It is made once and serves one worker after the other: no filter of system
/// calls sees what a ring is told to do, so that a thread which is confined by one must not be able to make another.
pub(crate) struct RingPlace {
    size: u16,
    state: Mutex<State>,
}

enum State {
    Empty,
    Free(Box<IoUring>),
    /// A worker has it, or could not give it back.
    InUse,
}

impl RingPlace {
    /// A place for a ring with so many entries.
    pub(crate) fn new(size: u16) -> Self {
        Self { size, state: Mutex::new(State::Empty) }
    }

    /// Makes the ring if that has not been done.
    pub(crate) fn fill(&self) -> io::Result<()> {
        self.change(|state| {
            if matches!(state, State::Empty) {
                *state = State::Free(Box::new(create(self.size)?));
            }
            Ok(())
        })
    }

    fn take(&self) -> io::Result<Box<IoUring>> {
        self.fill()?;
        self.change(|state| match std::mem::replace(state, State::InUse) {
            State::Free(ring) => Ok(ring),
            State::Empty | State::InUse => Err(io::ErrorKind::ResourceBusy.into()),
        })
    }

    fn put(&self, ring: Box<IoUring>) {
        self.change(|state| *state = State::Free(ring));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A ring of `size` entries that can do nothing but what this engine does, to nothing but one file, which it does not have yet.
fn create(size: u16) -> io::Result<IoUring> {
    let ring = IoUring::builder().dontfork().setup_r_disabled().build(size.into())?;
    ring.submitter().register_files(&[NO_FILE])?;
    ring.submitter().register_restrictions(&mut [
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_flags_required(FIXED_FILE),
        Restriction::register_op(REGISTER_FILES_UPDATE),
    ])?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

pub(super) struct Ring {
    ring: ManuallyDrop<Box<IoUring>>,
    place: Arc<RingPlace>,
    /// One more than the queue has entries, for the next chain to be taken into. Those in the ring are the kernel's.
    jobs: Vec<Job>,
    /// Indices of jobs that are not in use.
    free: Vec<u16>,
    /// The kernel does not give back what it has.
    is_stuck: bool,
    memory: Arc<GuestMemory>,
}

impl Ring {
    pub(super) fn new(place: Arc<RingPlace>, io: &Io) -> io::Result<Self> {
        let (memory, size) = (io.queue.memory(), io.queue.size());
        let now = Instant::now();
        let ring = Self {
            ring: ManuallyDrop::new(place.take()?),
            place,
            jobs: (0..=size).map(|_| Job::new(Chain::new(memory), now)).collect(),
            free: (0..=size).rev().collect(),
            is_stuck: false,
            memory: Arc::clone(memory),
        };
        ring.set_file(io.disk.as_ref())?;
        Ok(ring)
    }

    fn set_file(&self, disk: &dyn Disk) -> io::Result<()> {
        self.ring.submitter().register_files_update(0, &[disk.as_fd().as_raw_fd()]).map(drop)
    }

    /// Goes on with job `index`, which is not with the kernel: passes it there, or does it at once.
    fn begin(&mut self, index: u16, io: &mut Io) -> Result<(), WorkerError> {
        let Some(job) = self.jobs.get_mut(usize::from(index)) else { return Ok(()) };
        let Some(entry) = entry(job, io) else {
            let result = io.execute(job);
            io.tick();
            io.finish(job, &result);
            self.free.push(index);
            return Ok(());
        };
        let entry = entry.user_data(index.into());
        // SAFETY: what the entry points to are the job's segments, in guest memory, which `memory` keeps mapped. The job
        // stays as it is until the ring gives it back, and all of it stays until then (see `drop`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|error| {
            // Never: a queue has no more chains in flight than its ring has entries.
            self.free.push(index);
            WorkerError::host("put a request into an I/O ring")(io::Error::other(error))
        })
    }

    /// Hands all entries over to the kernel; returns whether it took them.
    fn enter(&mut self) -> Result<bool, WorkerError> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(error) if is_refusal(&error) => return Ok(false),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(WorkerError::host("submit requests to an I/O ring")(error));
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// Takes back what the kernel has done; begins again what is not complete.
    fn reap(&mut self, io: &mut Io) -> Result<(), WorkerError> {
        if self.ring.completion().is_empty() {
            return Ok(());
        }
        io.tick();
        loop {
            let Some(entry) = self.ring.completion().next() else { return Ok(()) };
            let index = entry.user_data() as u16;
            let Some(job) = self.jobs.get_mut(usize::from(index)) else { continue };
            match advance(job, entry.result(), io) {
                Some(result) => {
                    io.finish(job, &result);
                    self.free.push(index);
                }
                None => self.begin(index, io)?,
            }
        }
    }

    /// Jobs that are in use: with the kernel, or about to be.
    fn in_flight(&self) -> usize {
        self.jobs.len().saturating_sub(self.free.len())
    }

    /// Waits for the kernel to have done something; returns whether that is worth while.
    fn wait(&mut self) -> bool {
        for _ in 0..REFUSALS {
            match self.ring.submit_and_wait(1) {
                Err(error) if is_refusal(&error) => self.pause(),
                Err(error) => return error.kind() == io::ErrorKind::Interrupted,
                Ok(_) => return true,
            }
            if !self.ring.completion().is_empty() {
                return true;
            }
        }
        false
    }

    /// Leaves the kernel alone for a moment.
    fn pause(&self) {
        let mut results = libc::pollfd { fd: self.ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which lives across the call. It does not matter how that ends.
        unsafe { libc::poll(&raw mut results, 1, REFUSED_MS) };
    }
}

/// Whether the kernel takes no entries for now, but will (io_uring_enter(2)).
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

impl Engine for Ring {
    fn watched(&self) -> Option<RawFd> {
        // Readable while it has results that were not taken.
        Some(self.ring.as_raw_fd())
    }

    fn free(&mut self) -> Option<&mut Job> {
        self.free.last().and_then(|index| self.jobs.get_mut(usize::from(*index)))
    }

    fn run(&mut self, io: &mut Io) -> Result<(), WorkerError> {
        self.free.pop().map_or(Ok(()), |index| self.begin(index, io))
    }

    fn submit(&mut self, io: &mut Io) -> Result<(), WorkerError> {
        loop {
            let is_taken = self.enter()?;
            self.reap(io)?;
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            if !is_taken {
                self.pause();
                io.queue.kick_worker();
                return Ok(());
            }
        }
    }

    fn drain(&mut self, io: &mut Io) {
        while self.in_flight() > 0 {
            if !self.wait() || self.reap(io).is_err() {
                self.is_stuck = true;
                return;
            }
        }
    }

    fn set_disk(&mut self, disk: &dyn Disk) -> Result<(), WorkerError> {
        if self.is_stuck {
            // What is in flight would go to the wrong file.
            return Err(WorkerError::host("finish the requests in an I/O ring")(
                io::ErrorKind::ResourceBusy.into(),
            ));
        }
        self.set_file(disk).map_err(WorkerError::host("exchange the file of an I/O ring"))
    }
}

impl Drop for Ring {
    /// Nothing is in flight after [`Engine::drain`]; this is for a worker that was never drained. One that could not be is not
    /// waited for again: whoever takes it back has no business with a ring, and may not enter one.
    fn drop(&mut self) {
        let mut in_flight = self.in_flight();
        while in_flight > 0 && !self.is_stuck && self.wait() {
            in_flight = in_flight.saturating_sub(self.ring.completion().count());
        }
        // SAFETY: nobody uses the field after this.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        if in_flight > 0 {
            // The kernel may still write to it.
            std::mem::forget(Arc::clone(&self.memory));
        } else {
            self.place.put(ring);
        }
    }
}

/// The ring's entry for the next step of a job, if there is one for it.
fn entry(job: &Job, io: &Io) -> Option<squeue::Entry> {
    let info = io.disk.info();
    let suitable = |segments: &[iovec]| {
        let usable = !segments.is_empty() && info.alignment.suits(segments);
        usable.then_some((segments.as_ptr(), segments.len() as u32))
    };
    let sync = || opcode::Fsync::new(DISK).flags(types::FsyncFlags::DATASYNC).build();
    match job.request {
        Request::Read(offset) => {
            let (segments, count) = suitable(job.chain.writable.iovecs())?;
            Some(opcode::Readv::new(DISK, segments, count).offset(offset).build())
        }
        Request::Write(offset) => {
            let (segments, count) = suitable(job.chain.readable.iovecs())?;
            let flags = if io.durable { libc::RWF_DSYNC } else { 0 };
            Some(opcode::Writev::new(DISK, segments, count).offset(offset).rw_flags(flags).build())
        }
        Request::Flush => Some(sync()),
        Request::Clear(how) if !info.is_block_device => {
            let Some(Range { offset, len }) = job.ranges.get(job.cleared) else { return Some(sync()) };
            let mode = match how {
                Clear::Discard | Clear::Zero { unmap: true } => PUNCH_HOLE,
                Clear::Zero { unmap: false } => ZERO_RANGE,
            };
            Some(opcode::Fallocate::new(DISK, *len).offset(*offset).mode(mode).build())
        }
        Request::Clear(_) | Request::GetId => None,
    }
}

/// Takes note of what the kernel has done of a job. Returns how it ended, if it did.
fn advance(job: &mut Job, result: i32, io: &mut Io) -> Option<io::Result<()>> {
    let count = match u32::try_from(result) {
        Ok(count) => count,
        Err(_) => {
            let error = io::Error::from_raw_os_error(result.saturating_neg());
            let has_other_way = matches!(job.request, Request::Clear(_)) && is_unsupported(&error);
            return Some(if has_other_way { io.execute(job) } else { Err(error) });
        }
    };
    match &mut job.request {
        Request::Read(offset) => {
            let count = job.chain.writable.skip(count);
            *offset = offset.saturating_add(count.into());
            transferred(count, job.chain.writable.is_empty(), io::ErrorKind::UnexpectedEof)
        }
        Request::Write(offset) => {
            let count = job.chain.readable.skip(count);
            *offset = offset.saturating_add(count.into());
            transferred(count, job.chain.readable.is_empty(), io::ErrorKind::WriteZero)
        }
        Request::Clear(_) => {
            job.cleared = job.cleared.saturating_add(1);
            let steps = job.ranges.len().saturating_add(io.durable.into());
            (job.cleared >= steps).then_some(Ok(()))
        }
        Request::Flush | Request::GetId => Some(Ok(())),
    }
}

/// How a transfer ended that moved `count` more bytes, if it did.
fn transferred(count: u32, is_complete: bool, otherwise: io::ErrorKind) -> Option<io::Result<()>> {
    match count {
        _ if is_complete => Some(Ok(())),
        0 => Some(Err(otherwise.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kindling_virtio_device::test_utils::MockDriver;

    use super::*;
    use crate::{Blk, BlkConfig, FileDisk};

    #[test]
    fn ranges_are_cleared_one_by_one_and_made_durable_in_the_end_where_that_is_asked_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = Arc::new(FileDisk::open(file.path(), false, false).unwrap());
        let device = Blk::new(Arc::clone(&disk) as Arc<dyn Disk>, &BlkConfig::default()).unwrap();
        let queue = MockDriver::new(&device).activation().take_queue(0).unwrap();
        let mut job = Job::new(Chain::new(queue.memory()), Instant::now());
        job.request = Request::Clear(Clear::Discard);
        job.ranges = vec![Range { offset: 0, len: 512 }, Range { offset: 1024, len: 512 }];
        let mut io = Io::new(queue, disk, Arc::clone(&device.control().shared), u64::MAX);
        assert!(io.durable);
        for (opcode, is_last) in
            [(opcode::Fallocate::CODE, false), (opcode::Fallocate::CODE, false), (opcode::Fsync::CODE, true)]
        {
            assert_eq!(entry(&job, &io).unwrap().get_opcode(), u32::from(opcode));
            assert_eq!(advance(&mut job, 0, &mut io).is_some(), is_last);
        }
        io.durable = false;
        job.cleared = 1;
        assert!(advance(&mut job, 0, &mut io).is_some());
    }
}
