//! The threads that workers run on, and how workers get there and back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::one_line;
use crate::handover::{self, Giver, Taker, answer};
use crate::{Interrupt, Queue, StopError, Worker, WorkerError};

/// Stack of a worker's thread: a worker neither recurses nor keeps buffers on it. Pages that are not touched cost nothing.
const STACK_BYTES: usize = 128 << 10;

/// Events that are taken from the kernel at once.
const EVENTS: usize = 32;

/// The place in an event's data that stands for the thread's own eventfd.
const CONTROL: u32 = u32::MAX;

/// A thread that workers can be put on.
///
/// It ends when this and all its [`WorkerSlot`]s are gone and its workers have finished what they had begun; nobody waits
/// for that.
#[derive(Clone, Debug)]
pub struct WorkerThread {
    control: Arc<Control>,
}

/// A place for one worker on a thread.
#[derive(Debug)]
pub struct WorkerSlot {
    control: Arc<Control>,
    slot: u32,
}

/// A worker on its way back.
pub struct Stopping(Taker<Option<Box<dyn Worker>>>);

#[derive(Debug)]
struct Control {
    requests: Arc<handover::Queue<Request>>,
    event: EventFd,
    slots: AtomicU32,
}

enum Request {
    Start(u32, Box<dyn Worker>, Arc<dyn Interrupt>),
    Stop(u32, Giver<Option<Box<dyn Worker>>>),
    Remove(u32),
    End,
}

impl WorkerThread {
    /// Starts a thread with this name, which has no NUL. `set_up` runs on it before anything else, to confine it for
    /// example.
    ///
    /// # Errors
    ///
    /// When the host has no thread or descriptor left, or `set_up` fails.
    pub fn spawn(name: &str, set_up: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        let watch = EpollEvent::new(EventSet::IN, u64::from(CONTROL) << 32);
        epoll.ctl(ControlOperation::Add, event.as_raw_fd(), watch)?;
        let requests = Arc::new(handover::Queue::default());
        let (ready, is_ready) = mpsc::sync_channel(1);
        let runner = Runner {
            epoll,
            event: event.try_clone()?,
            requests: Arc::clone(&requests),
            places: BTreeMap::new(),
            logged: BTreeSet::new(),
        };
        thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(move || {
            let result = set_up();
            let failed = result.is_err();
            // Fails when nobody waits any more, and then there is nobody to tell.
            let _ = ready.send(result);
            if !failed {
                runner.run();
            }
        })?;
        is_ready.recv().map_err(|_| io::Error::other("the thread ended at once"))??;
        Ok(Self { control: Arc::new(Control { requests, event, slots: AtomicU32::new(0) }) })
    }

    /// A new place on the thread.
    pub fn slot(&self) -> WorkerSlot {
        let slot = self.control.slots.fetch_add(1, Ordering::Relaxed);
        WorkerSlot { control: Arc::clone(&self.control), slot }
    }
}

impl WorkerSlot {
    /// Puts a worker here and starts it. Should it fail to go on, `interrupt` hears of it, and the worker waits to be
    /// taken back. One that is here already is stopped and dropped.
    pub fn start(&self, worker: Box<dyn Worker>, interrupt: Arc<dyn Interrupt>) {
        self.control.send(Request::Start(self.slot, worker, interrupt));
    }

    /// Asks for the worker back. It finishes what it has begun first, even if it failed. When nobody waits for it, it is
    /// dropped.
    pub fn stop(&self) -> Stopping {
        let (reply, taker) = answer();
        self.control.send(Request::Stop(self.slot, reply));
        Stopping(taker)
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.control.send(Request::Remove(self.slot));
    }
}

impl Stopping {
    /// Waits for the worker, until `deadline`. There is none when none was started.
    ///
    /// # Errors
    ///
    /// [`StopError::Deadline`] when it takes longer; one can wait again. [`StopError::Gone`] when it will never come.
    pub fn wait(&self, deadline: Instant) -> Result<Option<Box<dyn Worker>>, StopError> {
        self.0.take(deadline)
    }

    /// Has `event` written when there is no more need to wait: the worker is there, or its thread ends. Written at once if
    /// it is there already, and not at all when it was taken or its thread has ended before. Of several events it is the last.
    pub fn notify(&self, event: &Arc<EventFd>) {
        self.0.notify(event);
    }
}

impl Control {
    fn send(&self, request: Request) {
        // Dropped when the thread has ended; who waits for an answer learns of it.
        self.requests.push(request);
        // Fails only when the counter is full, and then the thread is about to look anyway.
        let _ = self.event.write(1);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.send(Request::End);
    }
}

/// What a thread runs.
struct Runner {
    epoll: Epoll,
    event: EventFd,
    requests: Arc<handover::Queue<Request>>,
    /// By slot.
    places: BTreeMap<u32, Place>,
    /// The slots of which a failure was logged. A guest that has its device fail again and again does not fill the log.
    logged: BTreeSet<u32>,
}

/// A worker and what belongs to it.
struct Place {
    worker: Box<dyn Worker>,
    interrupt: Arc<dyn Interrupt>,
    watched: BTreeSet<RawFd>,
    /// Whether the worker failed, and only waits to be taken back.
    failed: bool,
}

impl Runner {
    fn run(mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("an I/O thread cannot wait for events: {error}");
                    return;
                }
            };
            let mut asked = false;
            for event in events.iter().take(count) {
                let (slot, token) = ((event.data() >> 32) as u32, event.data() as u32);
                if slot == CONTROL {
                    // Last of all, so that no worker gets the events of the one that was there before it.
                    asked = true;
                } else if let Some(place) = self.places.get_mut(&slot) {
                    let result = place.act(&self.epoll, slot, |worker, watch| {
                        worker.event(token, event.event_set(), watch)
                    });
                    self.log(slot, result);
                }
            }
            if asked && !self.take_requests() {
                return;
            }
        }
    }

    /// Does what was asked for; returns whether to go on.
    fn take_requests(&mut self) -> bool {
        // Fails when it was not written since the last look.
        let _ = self.event.read();
        while let Some(request) = self.requests.pop() {
            match request {
                Request::Start(slot, worker, interrupt) => {
                    drop(self.stop(slot));
                    let mut place = Place { worker, interrupt, watched: BTreeSet::new(), failed: false };
                    let result = place.act(&self.epoll, slot, |worker, watch| worker.start(watch));
                    self.places.insert(slot, place);
                    self.log(slot, result);
                }
                Request::Stop(slot, reply) => {
                    // When nobody waits any more, the worker ends here.
                    reply.give(self.stop(slot));
                }
                Request::Remove(slot) => {
                    drop(self.stop(slot));
                    self.logged.remove(&slot);
                }
                Request::End => return false,
            }
        }
        true
    }

    fn stop(&mut self, slot: u32) -> Option<Box<dyn Worker>> {
        let mut place = self.places.remove(&slot)?;
        place.unwatch(&self.epoll);
        place.worker.drain();
        Some(place.worker)
    }

    /// Says that the worker of `slot` has failed, the first time that it does.
    fn log(&mut self, slot: u32, result: Result<(), WorkerError>) {
        if let Err(error) = result
            && self.logged.insert(slot)
        {
            log::warn!("a virtio device needs a reset: {}", one_line(&error));
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.requests.close();
    }
}

impl Place {
    /// Has the worker do something. When it cannot go on, it is left alone from then on.
    fn act(
        &mut self,
        epoll: &Epoll,
        slot: u32,
        act: impl FnOnce(&mut dyn Worker, &mut Watch<'_>) -> Result<(), WorkerError>,
    ) -> Result<(), WorkerError> {
        if self.failed {
            return Ok(());
        }
        let mut watch = Watch::new(epoll, slot, &mut self.watched);
        let result = act(self.worker.as_mut(), &mut watch);
        if result.is_err() {
            self.failed = true;
            self.unwatch(epoll);
            self.interrupt.needs_reset();
        }
        result
    }

    fn unwatch(&mut self, epoll: &Epoll) {
        for fd in std::mem::take(&mut self.watched) {
            // Fails when it was closed, which ends the watch too.
            let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }
}

/// What a worker is woken for.
#[derive(Debug)]
pub struct Watch<'a> {
    epoll: &'a Epoll,
    slot: u32,
    watched: &'a mut BTreeSet<RawFd>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(epoll: &'a Epoll, slot: u32, watched: &'a mut BTreeSet<RawFd>) -> Self {
        Self { epoll, slot, watched }
    }

    /// Watches `file`: the worker gets an event with `token` when one of `events` happens. A worker that closes the file
    /// removes it first.
    ///
    /// # Errors
    ///
    /// When the host refuses: it is watched already, is of a kind that cannot be watched, or there are too many.
    pub fn add(&mut self, file: &impl AsRawFd, token: u32, events: EventSet) -> Result<(), WorkerError> {
        let fd = file.as_raw_fd();
        self.epoll
            .ctl(ControlOperation::Add, fd, self.event(token, events))
            .map_err(WorkerError::host("watch a descriptor"))?;
        self.watched.insert(fd);
        Ok(())
    }

    /// Watches the kicks of a queue: the worker gets an event with `token` for those since the last one. Nobody needs to read
    /// [`Queue::kick`], and one that came before the watch brings an event, too.
    ///
    /// # Errors
    ///
    /// As [`Watch::add`].
    pub fn add_kicks(&mut self, queue: &Queue, token: u32) -> Result<(), WorkerError> {
        self.add(queue.kick(), token, EventSet::IN | EventSet::EDGE_TRIGGERED)
    }

    /// Watches `file` for other events from now on.
    ///
    /// # Errors
    ///
    /// When it is not watched.
    pub fn modify(&mut self, file: &impl AsRawFd, token: u32, events: EventSet) -> Result<(), WorkerError> {
        self.epoll
            .ctl(ControlOperation::Modify, file.as_raw_fd(), self.event(token, events))
            .map_err(WorkerError::host("watch a descriptor for other events"))
    }

    /// Watches `file` no longer. Events of it that were taken from the kernel before may still come.
    pub fn remove(&mut self, file: &impl AsRawFd) {
        let fd = file.as_raw_fd();
        if self.watched.remove(&fd) {
            // Fails when it was closed, which ends the watch too.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }

    fn event(&self, token: u32, events: EventSet) -> EpollEvent {
        EpollEvent::new(events, u64::from(self.slot) << 32 | u64::from(token))
    }
}
