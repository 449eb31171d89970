//! The worker: it owns the queues and all connections.
//!
//! | direction | how | where |
//! |---|---|---|
//! | guest to host | transmit queue → Unix socket, or a connection's buffer | [`from_guest`] |
//! | host to guest | Unix socket → receive queue | [`to_guest`] |
//! | new connections of host programs, time-outs | listening socket, timer | [`from_host`] |
//!
//! # Why it cannot come to a deadlock
//!
//! The guest may stop taking packets until its own are taken (VIRTIO 1.2, 5.10.6.1.2), so the device must not do the
//! same. It never does: the transmit queue is processed whatever the state of the receive queue and of the host
//! programs. What that asks for and cannot be sent at once is not queued but remembered in bounded places:
//!
//! - replies for a connection are flags of the connection, and connections are bounded;
//! - bytes for a slow host program are in its connection's buffer, which the guest's credit bounds;
//! - resets for what is no connection are in a list of at most [`MAX_RESETS`]. Beyond, they are dropped and counted: a
//!   guest that has left so many packets unread learns of the refusal by its own time-out.
//!
//! # Why it does not spin
//!
//! A socket is watched only for what can make progress (`Connection::interest`), and the listening socket only while
//! it can be accepted from. While packets wait for receive buffers, only the guest's kick goes on with them.

mod from_guest;
mod from_host;
mod timer;
mod to_guest;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kindling_virtio_device::{
    ActivateError, Activation, Chain, Queue, QueueState, Watch, Worker, WorkerError,
};
use vmm_sys_util::epoll::EventSet;

use crate::connection::Phase;
use crate::device::Backend;
use crate::packet::Header;
use crate::table::{Entry, Table};
use timer::Timer;

/// Indices of the queues, and their tokens (VIRTIO 1.2, 5.10.2).
const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;

const RX_TOKEN: u32 = RX as u32;
const TX_TOKEN: u32 = TX as u32;
const EVENT_TOKEN: u32 = EVENT as u32;
const LISTENER_TOKEN: u32 = 3;
/// The last token that is not a connection's: those begin at 2^16.
const TIMER_TOKEN: u32 = 4;

/// How long a host program may take to say where it wants to go, and a guest to answer a request or a shutdown.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The moment that is `by` behind `moment`; that one itself, should the clock have none.
fn later(moment: Instant, by: Duration) -> Instant {
    moment.checked_add(by).unwrap_or(moment)
}

/// Most resets that wait for the guest.
const MAX_RESETS: usize = 1024;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (VIRTIO 1.2, 5.10.6.6).
const TRANSPORT_RESET: u32 = 0;

/// The worker of a socket device.
pub struct VsockWorker {
    backend: Backend,
    rx: Queue,
    tx: Queue,
    /// The driver can do without.
    event: Option<Queue>,
    chain: Chain,
    table: Table,
    /// Packets for the guest that belong to no connection.
    resets: VecDeque<Header>,
    /// Packets wait for receive buffers, and the guest will kick.
    starving: bool,
    /// Host programs that have not said yet where they want to go.
    handshakes: usize,
    /// The listening socket is watched.
    listening: bool,
    /// The host was out of something, and nothing is accepted before this.
    accept_after: Option<Instant>,
    timer: Timer,
    /// The guest has still to be told that its connections are gone.
    transport_reset: bool,
}

impl VsockWorker {
    /// The worker for a new driver.
    pub fn new(
        backend: Backend,
        mut activation: Activation,
        transport_reset: bool,
    ) -> Result<Self, ActivateError> {
        let rx = activation.take_queue(RX)?;
        let tx = activation.take_queue(TX)?;
        let event = activation.take_queue(EVENT).ok();
        let chain = Chain::new(&activation.memory);
        let table = Table::new(backend.max_connections.get());
        Ok(Self {
            backend,
            rx,
            tx,
            event,
            chain,
            table,
            resets: VecDeque::new(),
            starving: false,
            handshakes: 0,
            listening: false,
            accept_after: None,
            timer: Timer::new()?,
            transport_reset,
        })
    }

    /// A socket is ready.
    fn on_socket(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) {
        let Some(index) = self.table.find_token(token) else { return };
        match self.table.entry(index) {
            Some(Entry::Connection(connection)) => {
                connection.on_event(events);
                self.changed(index);
            }
            Some(Entry::Handshake(_)) => self.proceed(index, watch),
            None => (),
        }
    }

    /// Something about the connection at `index` may have changed.
    fn changed(&mut self, index: u16) {
        if self.table.connection(index).is_some_and(|connection| !connection.is_known_to_guest()) {
            self.table.forget_ports(index);
        }
        self.table.touch(index);
    }

    /// Ends whatever woke the worker: sends what there is for the guest, and draws the conclusions for all connections of
    /// which something changed.
    fn finish(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        self.send_packets()?;
        while let Some(index) = self.table.next_touched() {
            self.settle(index, watch);
        }
        if self.has_output() && !self.starving {
            self.rx.kick_worker();
        }
        self.watch_listener(watch)
    }

    /// Watches a connection's socket for what it now waits for, or lets go of the connection.
    fn settle(&mut self, index: u16, watch: &mut Watch<'_>) {
        let token = self.table.token(index);
        let Some(connection) = self.table.connection(index) else { return };
        let interest = connection.interest();
        let watched = match (connection.watched, interest) {
            (None, Some(events)) => watch.add(&connection.stream, token, events),
            (Some(old), Some(events)) if old != events => watch.modify(&connection.stream, token, events),
            (Some(_), None) => {
                watch.remove(&connection.stream);
                Ok(())
            }
            _ => Ok(()),
        };
        connection.watched = interest;
        if watched.is_err() {
            // The host is out of watches. Nothing is lost but this connection.
            watch.remove(&connection.stream);
            connection.watched = None;
            connection.reset();
            return self.changed(index);
        }
        match connection.phase {
            Phase::Gone => {
                let metrics = &self.backend.metrics;
                if connection.opened {
                    metrics.connections_closed.increment();
                } else {
                    metrics.connections_refused.increment();
                }
                self.table.remove(index);
            }
            Phase::Closing if connection.deadline.is_none() => {
                let deadline = later(Instant::now(), TIMEOUT);
                connection.deadline = Some(deadline);
                self.timer.set(deadline);
            }
            _ => {
                if let Some(deadline) = connection.deadline {
                    self.timer.set(deadline);
                }
            }
        }
    }

    /// Tells the guest that its connections are gone, when it has to be told and has a buffer for it.
    fn send_event(&mut self) -> Result<(), WorkerError> {
        let Some(queue) = &mut self.event else { return Ok(()) };
        queue.begin_batch();
        for _ in 0..queue.size() {
            if !self.transport_reset {
                break;
            }
            if !queue.pop(&mut self.chain).map_err(WorkerError::queue(EVENT))? {
                queue.end_batch();
                return Ok(());
            }
            let id = TRANSPORT_RESET.to_le_bytes();
            let mut written = 0;
            if self.chain.writable.len() as usize >= id.len() {
                written = self.chain.writable.write(&id) as u32;
                self.transport_reset = false;
            } else {
                self.backend.metrics.bad_buffers.increment();
            }
            queue.push(self.chain.head(), written);
        }
        if self.transport_reset {
            queue.end_batch()
        } else {
            queue.publish()
        }
        Ok(())
    }

    /// Has what was there before a sleep watched again, with as much time to answer as it had in the beginning.
    fn resume(&mut self, watch: &mut Watch<'_>) {
        let deadline = later(Instant::now(), TIMEOUT);
        self.timer.stop();
        for index in self.table.indices() {
            match self.table.entry(index) {
                Some(Entry::Handshake(handshake)) => {
                    handshake.watched = false;
                    handshake.deadline = deadline;
                    self.timer.set(deadline);
                    self.proceed(index, watch);
                }
                Some(Entry::Connection(connection)) => {
                    connection.watched = None;
                    connection.deadline = connection.deadline.map(|_| deadline);
                    self.table.touch(index);
                }
                None => (),
            }
        }
    }
}

impl Worker for VsockWorker {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add_kicks(&self.rx, RX_TOKEN)?;
        watch.add_kicks(&self.tx, TX_TOKEN)?;
        if let Some(event) = &self.event {
            watch.add_kicks(event, EVENT_TOKEN)?;
        }
        watch.add(self.timer.fd(), TIMER_TOKEN, EventSet::IN)?;
        (self.listening, self.accept_after) = (false, None);
        self.resume(watch);
        self.send_event()?;
        self.receive_packets()?;
        self.rx.begin_batch();
        self.finish(watch)
    }

    fn event(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        self.backend.metrics.events.increment();
        match token {
            RX_TOKEN => self.rx.begin_batch(),
            TX_TOKEN => self.receive_packets()?,
            EVENT_TOKEN => self.send_event()?,
            LISTENER_TOKEN => self.accept(watch),
            TIMER_TOKEN => self.expire(watch),
            _ => self.on_socket(token, events, watch),
        }
        self.finish(watch)
    }

    fn queues(&self) -> Vec<QueueState> {
        [Some(&self.rx), Some(&self.tx), self.event.as_ref()]
            .into_iter()
            .flatten()
            .map(Queue::state)
            .collect()
    }
}

impl Drop for VsockWorker {
    fn drop(&mut self) {
        for index in self.table.indices() {
            if self.table.connection(index).is_some_and(|connection| connection.opened) {
                self.backend.metrics.connections_closed.increment();
            }
        }
    }
}
