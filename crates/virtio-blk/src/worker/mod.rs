//! The data path: one worker for each queue.
//!
//! A worker takes requests from its queue, checks them, asks the limiter, and passes them to its engine, which does or
//! begins them. While a request waits for the limiter, the queue is left alone, and its driver is not asked to kick; the
//! timer, or a change of the limits, makes the worker go on.

mod io;
mod on_thread;
mod ring;
mod sync;

use std::io::Result as IoResult;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use kindling_rate_limiter::Share;
use kindling_virtio_device::{Queue, QueueState, Subscription, Watch, Worker, WorkerError};
use vmm_sys_util::epoll::EventSet;

use crate::control::BlkSettings;
use crate::request::{Job, Rules};
use crate::{BlkControl, Disk};
use io::Io;
use on_thread::{OnThread, Parts};
use ring::Ring;
pub(crate) use ring::RingPlace;
use sync::Sync;

/// The driver kicked.
const KICK: u32 = 0;
/// The settings changed.
const SETTINGS: u32 = 1;
/// A request need not wait for the limiter any more.
const TIMER: u32 = 2;
/// The engine has finished requests.
const ENGINE: u32 = 3;

/// How long the driver is left without what is done already while a batch goes on: some twenty times what an interrupt costs it.
const PUBLISH_AFTER: Duration = Duration::from_micros(200);

/// How long a batch goes on before the thread looks whether there is something else to do, such as to stop.
const BATCH_TIME: Duration = Duration::from_millis(10);

/// What does the requests.
trait Engine: Send {
    /// What to watch for requests that have finished.
    fn watched(&self) -> Option<RawFd>;

    /// A job that is not in use. There is always one: a queue has no more chains in flight than entries.
    fn free(&mut self) -> Option<&mut Job>;

    /// Does, or begins, what the free job has been made.
    fn run(&mut self, io: &mut Io) -> Result<(), WorkerError>;

    /// Ends a batch: hands over to the kernel what was begun, and finishes what is done. What the kernel does not take now
    /// is left for the next time, for which it kicks the worker.
    fn submit(&mut self, io: &mut Io) -> Result<(), WorkerError>;

    /// Finishes all that has begun.
    fn drain(&mut self, io: &mut Io);

    /// The disk has been exchanged. Nothing is in flight.
    fn set_disk(&mut self, disk: &dyn Disk) -> Result<(), WorkerError>;
}

struct BlkWorker<E> {
    io: Io,
    engine: E,
    settings: Subscription<BlkSettings>,
    rules: Rules,
    limiter: Share,
}

/// A worker for `queue`, asynchronous if there is a place for its ring. The driver accepted `features` of those `offered`.
pub(crate) fn new(
    queue: Queue,
    features: u64,
    offered: u64,
    ring: Option<&Arc<RingPlace>>,
    control: &BlkControl,
) -> IoResult<Box<dyn Worker>> {
    let mut settings = control.settings.subscribe()?;
    let io = Io::new(queue, settings.latest().disk, Arc::clone(&control.shared), offered & !features);
    Ok(match ring {
        None => Box::new(BlkWorker::new(Sync::new(&io), io, settings, features)?),
        Some(ring) => Box::new(OnThread::Parts(Parts { ring: Arc::clone(ring), io, settings, features })),
    })
}

impl<E: Engine> BlkWorker<E> {
    fn new(engine: E, io: Io, settings: Subscription<BlkSettings>, features: u64) -> IoResult<Self> {
        let disk = io.disk.as_ref();
        // The capacity comes with the settings, before anything is asked of it.
        let rules = Rules { capacity: 0, granule: granule(disk), read_only: disk.info().read_only, features };
        let limiter = Share::new(&io.shared.limiter)?;
        Ok(Self { io, engine, settings, rules, limiter })
    }

    /// Follows the settings.
    fn configure(&mut self) -> Result<(), WorkerError> {
        let BlkSettings { disk, capacity } = self.settings.latest();
        if !Arc::ptr_eq(&disk, &self.io.disk) {
            self.engine.drain(&mut self.io);
            self.io.queue.publish();
            self.engine.set_disk(disk.as_ref())?;
            self.rules.granule = granule(disk.as_ref());
            self.io.disk = disk;
        }
        self.rules.capacity = capacity;
        // A request that waits asks again: the limits may be others.
        self.limiter.forget();
        Ok(())
    }

    /// Takes requests: at most as many as the queue has entries.
    fn process(&mut self) -> Result<(), WorkerError> {
        self.io.queue.begin_batch();
        if self.limiter.is_blocked() {
            return self.settle();
        }
        self.io.tick();
        let begun = self.io.now;
        let mut published = begun;
        for _ in 0..self.io.queue.size() {
            let Some(job) = self.engine.free() else { break };
            let queue = &mut self.io.queue;
            if !queue.pop(&mut job.chain).map_err(WorkerError::queue(queue.index()))? {
                break;
            }
            // In this order: a request of a driver that has been told of a change finds it in force.
            if self.settings.is_stale() {
                queue.unpop(&job.chain);
                self.configure()?;
                continue;
            }
            job.begun = self.io.now;
            match job.parse(&self.rules) {
                Err(status) => self.io.refuse(job, status),
                Ok(()) if self.limiter.consume(job.cost()) => self.engine.run(&mut self.io)?,
                Ok(()) => {
                    self.io.queue.unpop(&job.chain);
                    self.io.shared.metrics.throttled.increment();
                    // The driver's kicks stay off.
                    return self.settle();
                }
            }
            if self.io.now.saturating_duration_since(published) > PUBLISH_AFTER {
                self.io.queue.publish();
                published = self.io.now;
            }
            if self.io.now.saturating_duration_since(begun) > BATCH_TIME {
                break;
            }
        }
        self.engine.submit(&mut self.io)?;
        self.io.queue.end_batch();
        Ok(())
    }

    /// Goes on with what has begun, and shows the driver what is done.
    fn settle(&mut self) -> Result<(), WorkerError> {
        self.engine.submit(&mut self.io)?;
        self.io.queue.publish();
        Ok(())
    }
}

/// What offsets and lengths of transfers are multiples of. Who goes past the page cache cannot have less than a block.
fn granule(disk: &dyn Disk) -> u32 {
    disk.info().alignment.offset.max(crate::SECTOR as u32)
}

impl<E: Engine> Worker for BlkWorker<E> {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add_kicks(&self.io.queue, KICK)?;
        watch.add(&self.settings, SETTINGS, EventSet::IN)?;
        watch.add(self.limiter.timer(), TIMER, EventSet::IN)?;
        if let Some(file) = self.engine.watched() {
            watch.add(&file, ENGINE, EventSet::IN)?;
        }
        self.configure()?;
        self.process()
    }

    fn event(&mut self, token: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        match token {
            ENGINE => return self.settle(),
            SETTINGS => self.configure()?,
            TIMER => self.limiter.on_timer(),
            _ => {}
        }
        self.process()
    }

    fn drain(&mut self) {
        self.limiter.forget();
        self.engine.drain(&mut self.io);
        self.io.queue.publish();
    }

    fn queues(&self) -> Vec<QueueState> {
        vec![self.io.queue.state()]
    }
}
