//! The data path: one worker for each queue.
//!
//! A worker takes requests from its queue, checks them, asks the limiter, and passes them to its engine, which does or
//! begins them. While a request waits for the limiter, the queue is left alone, and its driver is not asked to kick; the
//! timer, or a change of the limits, makes the worker go on.

mod io;
mod ring;
mod sync;

use std::io::Result as IoResult;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_virtio_device::{Queue, QueueState, Subscription, Watch, Worker, WorkerError};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::control::BlkSettings;
use crate::request::{Job, Rules};
use crate::{BlkControl, Disk, IoEngine};
use io::Io;
pub(crate) use ring::Ring;
use sync::Sync;

/// The driver kicked.
const KICK: u32 = 0;
/// The settings changed.
const SETTINGS: u32 = 1;
/// A request need not wait for the limiter any more.
const TIMER: u32 = 2;
/// The engine has finished requests.
const ENGINE: u32 = 3;

/// How long the driver is left without what is done already while a batch goes on. An interrupt costs it less.
const PUBLISH_AFTER: Duration = Duration::from_micros(50);

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

    /// Ends a batch: hands over to the kernel what was begun, and finishes what is done.
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
    timer: TimerFd,
    waiting: Option<Waiting>,
}

/// A request that was put back until the limiter's tokens for it have flowed in. It has taken them already.
struct Waiting {
    cost: u64,
    until: Instant,
}

/// A worker for `queue`. The driver accepted `features` of those `offered`.
pub(crate) fn new(
    queue: Queue,
    features: u64,
    offered: u64,
    engine: IoEngine,
    control: &BlkControl,
) -> IoResult<Box<dyn Worker>> {
    let settings = control.settings.subscribe()?;
    let io = Io::new(queue, settings.latest().disk, Arc::clone(&control.shared), offered & !features);
    Ok(match engine {
        IoEngine::Sync => Box::new(BlkWorker::new(Sync::new(&io), io, settings, features)?),
        IoEngine::Async => Box::new(BlkWorker::new(Ring::new(&io)?, io, settings, features)?),
    })
}

impl<E: Engine> BlkWorker<E> {
    fn new(engine: E, io: Io, settings: Subscription<BlkSettings>, features: u64) -> IoResult<Self> {
        let disk = io.disk.as_ref();
        // The capacity comes with the settings, before anything is asked of it.
        let rules = Rules { capacity: 0, granule: granule(disk), read_only: disk.info().read_only, features };
        Ok(Self { io, engine, settings, rules, timer: TimerFd::new()?, waiting: None })
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
        self.stop_waiting();
        Ok(())
    }

    /// Takes requests: at most as many as the queue has entries.
    fn process(&mut self) -> Result<(), WorkerError> {
        self.io.queue.begin_batch();
        if self.is_waiting() {
            return Ok(());
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
            job.begun = self.io.now;
            match job.parse(&self.rules) {
                Err(status) => self.io.refuse(job, status),
                Ok(()) => {
                    let cost = job.cost();
                    if !admit(&self.io, &mut self.waiting, cost) {
                        self.io.queue.unpop(&job.chain);
                        return self.wait();
                    }
                    self.engine.run(&mut self.io)?;
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

    /// Ends a batch whose next request has to wait. The driver's kicks stay off.
    fn wait(&mut self) -> Result<(), WorkerError> {
        self.io.shared.metrics.throttled.increment();
        self.engine.submit(&mut self.io)?;
        self.io.queue.publish();
        self.set_timer()
    }

    /// Lets the timer fire when the request that waits need not wait any more.
    fn set_timer(&mut self) -> Result<(), WorkerError> {
        let Some(waiting) = &self.waiting else { return Ok(()) };
        // Zero would switch it off.
        let rest = waiting.until.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        self.timer
            .reset(rest, None)
            .map_err(|error| WorkerError::host("set the timer of a rate limiter")(error.into()))
    }

    fn is_waiting(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| Instant::now() < waiting.until)
    }

    /// Gives back what a waiting request has taken; it will ask again.
    fn stop_waiting(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            self.io.shared.limiter.give_back(waiting.cost);
        }
    }
}

/// Whether a request of such a cost may start. If not, it has to wait.
fn admit(io: &Io, waiting: &mut Option<Waiting>, cost: u64) -> bool {
    let limiter = &io.shared.limiter;
    match waiting.take() {
        // It has waited, and has what it needs.
        Some(paid) if paid.cost == cost => return true,
        // The driver has made it another one.
        Some(paid) => limiter.give_back(paid.cost),
        None => {}
    }
    let wait = limiter.reserve(cost);
    if wait.is_zero() {
        return true;
    }
    // 584 years at most, which the clock can take.
    let now = Instant::now();
    let until = now.checked_add(wait).unwrap_or(now);
    *waiting = Some(Waiting { cost, until });
    false
}

/// What offsets and lengths of transfers are multiples of. Who goes past the page cache cannot have less than a block.
fn granule(disk: &dyn Disk) -> u32 {
    disk.info().alignment.offset.max(crate::SECTOR as u32)
}

impl<E: Engine> Worker for BlkWorker<E> {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add(self.io.queue.kick(), KICK, EventSet::IN)?;
        watch.add(&self.settings, SETTINGS, EventSet::IN)?;
        watch.add(&self.timer, TIMER, EventSet::IN)?;
        if let Some(file) = self.engine.watched() {
            watch.add(&file, ENGINE, EventSet::IN)?;
        }
        self.configure()?;
        self.process()
    }

    fn event(&mut self, token: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        match token {
            ENGINE => {
                self.engine.submit(&mut self.io)?;
                self.io.queue.publish();
                return Ok(());
            }
            SETTINGS => self.configure()?,
            TIMER => {
                // Fails only for what is no timer.
                let _ = self.timer.clear();
                if self.is_waiting() {
                    // It was set again after this event.
                    return self.set_timer();
                }
            }
            _ => {}
        }
        self.process()
    }

    fn drain(&mut self) {
        self.stop_waiting();
        self.engine.drain(&mut self.io);
        self.io.queue.publish();
    }

    fn queues(&self) -> Vec<QueueState> {
        vec![self.io.queue.state()]
    }
}
