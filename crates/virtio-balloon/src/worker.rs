//! The worker: takes what the guest gives up, and listens to what it tells.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kindling_virtio_device::{
    ActivateError, Activation, Chain, GuestMemory, Queue, QueueState, Subscription, Watch, Worker,
    WorkerError,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::statistics::Statistics;
use crate::{
    BalloonMetrics, Control, VIRTIO_BALLOON_F_FREE_PAGE_HINT, VIRTIO_BALLOON_F_PAGE_REPORTING,
    VIRTIO_BALLOON_F_STATS_VQ, pages,
};

/// Page numbers that are looked at together. Linux sends as many in one request.
const BATCH: usize = 256;
/// Bytes of page numbers that are looked at in one request: a guest cannot keep the worker busy with one.
const REQUEST_MAX: u32 = 64 << 10;
/// Pages after which the other workers of the thread get their turn: giving one back may take a microsecond, and the
/// requests of a full queue, of the largest size, would take seconds.
const EVENT_PAGES: u64 = 16 << 10;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Hinting,
    Reporting,
}

/// Token of the timer; lower ones are positions of queues.
const TIMER: u32 = 16;
/// Token of the subscription to the interval.
const INTERVAL: u32 = 17;

/// The worker of a balloon.
pub(crate) struct BalloonWorker {
    queues: Vec<(Role, Queue)>,
    chain: Chain,
    /// The chain with statistics that the guest gets back when it shall tell anew.
    held: Option<u16>,
    timer: TimerFd,
    interval: Subscription<u16>,
    control: Arc<Control>,
    metrics: Arc<BalloonMetrics>,
}

impl BalloonWorker {
    pub(crate) fn new(
        mut activation: Activation,
        control: Arc<Control>,
        metrics: Arc<BalloonMetrics>,
    ) -> Result<Self, ActivateError> {
        let host = |doing| move |source: io::Error| ActivateError::Host { doing, source };
        let timer = TimerFd::new().map_err(|error| host("make the balloon's timer")(error.into()))?;
        let interval = control.watch_interval().map_err(host("watch the balloon's settings"))?;
        // Queues of abilities that are not used are left out, and the next take their places (VIRTIO 1.2, 5.5.2).
        let roles = [
            (true, Role::Inflate),
            (true, Role::Deflate),
            (activation.has_feature(VIRTIO_BALLOON_F_STATS_VQ), Role::Statistics),
            (activation.has_feature(VIRTIO_BALLOON_F_FREE_PAGE_HINT), Role::Hinting),
            (activation.has_feature(VIRTIO_BALLOON_F_PAGE_REPORTING), Role::Reporting),
        ];
        let mut queues = Vec::new();
        for (index, (_, role)) in (0..).zip(roles.into_iter().filter(|(used, _)| *used)) {
            queues.push((role, activation.take_queue(index)?));
        }
        let chain = Chain::new(&activation.memory);
        Ok(Self { queues, chain, held: None, timer, interval, control, metrics })
    }

    fn serve(&mut self, position: usize) -> Result<(), WorkerError> {
        let Some((role, queue)) = self.queues.get_mut(position) else { return Ok(()) };
        let role = *role;
        let index = queue.index();
        let mut pages: u64 = 0;
        queue.begin_batch();
        for _ in 0..queue.size() {
            if pages >= EVENT_PAGES {
                break;
            }
            if !queue.pop(&mut self.chain).map_err(WorkerError::queue(index))? {
                break;
            }
            let chain = &mut self.chain;
            match role {
                Role::Inflate => {
                    let looked_at = inflate(chain, &self.metrics, queue.memory());
                    pages = pages.saturating_add(looked_at);
                }
                Role::Deflate => self.metrics.deflated.add(u64::from(chain.readable.len()) / 4),
                Role::Reporting => {
                    let bytes = discard_all(chain, &self.metrics, queue.memory());
                    self.metrics.reported_bytes.add(bytes);
                    pages = pages.saturating_add(bytes >> pages::PAGE_SHIFT);
                }
                Role::Hinting => {
                    if let Some(command) = chain.readable.take() {
                        self.control.guest_commands(u32::from_le_bytes(command));
                    }
                    let take = || discard_all(chain, &self.metrics, queue.memory());
                    if !chain.writable.is_empty()
                        && let Some(bytes) = self.control.take_hinted(take)
                    {
                        self.metrics.hinted_bytes.add(bytes);
                        pages = pages.saturating_add(bytes >> pages::PAGE_SHIFT);
                    }
                }
                Role::Statistics => {
                    match Statistics::read(&mut chain.readable) {
                        Some(statistics) => {
                            self.control.keep_statistics(statistics);
                            self.metrics.statistics_updates.increment();
                        }
                        None => self.metrics.bad_statistics.increment(),
                    }
                    // A second buffer takes the place of the first, which goes back.
                    let Some(first) = self.held.replace(chain.head()) else { continue };
                    queue.push(first, 0);
                    continue;
                }
            }
            queue.push(self.chain.head(), 0);
        }
        queue.end_batch();
        Ok(())
    }
}

impl BalloonWorker {
    /// Gives the guest its buffer for statistics back, for it to tell anew.
    fn ask_for_statistics(&mut self) {
        let Some(head) = self.held.take() else { return };
        if let Some((_, queue)) = self.queues.iter_mut().find(|(role, _)| *role == Role::Statistics) {
            queue.push(head, 0);
            queue.publish();
        }
    }

    /// Has the timer fire once, in one interval from now; until then its descriptor is quiet.
    fn set_timer(&mut self) -> Result<(), WorkerError> {
        let seconds = Duration::from_secs(self.interval.latest().into());
        let result = match seconds {
            Duration::ZERO => self.timer.clear(),
            seconds => self.timer.reset(seconds, None),
        };
        result.map_err(|error| WorkerError::host("set the balloon's timer")(error.into()))
    }
}

impl Worker for BalloonWorker {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        for (token, (_, queue)) in (0..).zip(&self.queues) {
            watch.add_kicks(queue, token)?;
        }
        watch.add(&self.timer, TIMER, EventSet::IN)?;
        watch.add(&self.interval, INTERVAL, EventSet::IN)?;
        self.set_timer()?;
        (0..self.queues.len()).try_for_each(|position| self.serve(position))
    }

    fn event(&mut self, token: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        match token {
            TIMER => {
                self.ask_for_statistics();
                self.set_timer()
            }
            INTERVAL => self.set_timer(),
            position => self.serve(position as usize),
        }
    }

    fn drain(&mut self) {
        self.ask_for_statistics();
    }

    fn queues(&self) -> Vec<QueueState> {
        self.queues.iter().map(|(_, queue)| queue.state()).collect()
    }
}

/// Takes the pages whose numbers are in the chain; returns how many it looked at.
fn inflate(chain: &mut Chain, metrics: &BalloonMetrics, memory: &GuestMemory) -> u64 {
    let dropped = chain.readable.len().saturating_sub(REQUEST_MAX) / 4;
    metrics.bad_pages.add(dropped.into());
    chain.readable.truncate(REQUEST_MAX);
    let looked_at = u64::from(chain.readable.len()) / 4;
    let mut bytes = [0; 4 * BATCH];
    let mut numbers = [0_u32; BATCH];
    loop {
        let len = chain.readable.read(&mut bytes);
        let mut count: usize = 0;
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(4)).take(len / 4) {
            *number = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
            count = count.saturating_add(1);
        }
        let Some(numbers) = numbers.get_mut(..count).filter(|numbers| !numbers.is_empty()) else {
            return looked_at;
        };
        // The guest takes its pages from anywhere, but those of one request are often neighbours.
        numbers.sort_unstable();
        for run in numbers.chunk_by(|first, second| first.checked_add(1) == Some(*second)) {
            let Some(first) = run.first() else { continue };
            let wanted = run.len() as u32;
            match pages::discard_run(memory, *first, wanted) {
                Ok(pages) => {
                    metrics.inflated.add(pages.into());
                    metrics.bad_pages.add(wanted.saturating_sub(pages).into());
                }
                Err(_) => metrics.discard_failures.increment(),
            }
        }
    }
}

/// Takes the memory of all writable buffers of the chain; returns how many bytes that were.
fn discard_all(chain: &Chain, metrics: &BalloonMetrics, memory: &GuestMemory) -> u64 {
    let mut bytes: u64 = 0;
    for buffer in chain.writable.iovecs() {
        match pages::discard_buffer(memory, buffer) {
            Ok(len) => bytes = bytes.saturating_add(len as u64),
            Err(_) => metrics.discard_failures.increment(),
        }
    }
    bytes
}
