//! One connection of a guest: its socket, the request that comes in and the answer that goes out.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::TcpSeqNumber;

use super::frame::Mac;
use crate::http::{self, Answer, MAX_REQUEST_BYTES};
use crate::{MetadataMetrics, Service};

/// The port that the service listens on.
pub(super) const PORT: u16 = 80;

const RECEIVE_BYTES: usize = 2_048;
const SEND_BYTES: usize = 4_096;

/// For how long a connection is safe from giving way to a new one, which is asked for again later, when it has just begun or
/// was just used. Long enough for a guest that asks for many at once to go on with those that it has got.
const GRACE: Duration = Duration::from_millis(250);

/// What a connection is at, and so what it waits for its peer to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Handshake,
    Idle,
    Request,
    Answer,
    Closing,
}

impl Phase {
    /// How long it may take. Not from byte to byte, but in all: a peer that is slow on purpose gets no more.
    fn limit(self) -> Duration {
        let seconds = match self {
            Self::Handshake | Self::Closing => 5,
            Self::Request => 10,
            Self::Answer => 30,
            Self::Idle => 60,
        };
        Duration::from_secs(seconds)
    }
}

pub(super) struct Connection {
    pub peer: SocketAddrV4,
    /// Where the peer's last frame came from.
    pub mac: Mac,
    /// The sequence number that the peer began with.
    pub initial_sequence: TcpSeqNumber,
    /// The socket, alone: whose turn it is, is the endpoint's business.
    pub sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The beginning of a request, and how many bytes it had when there was last looked whether it is whole.
    request: Vec<u8>,
    seen: usize,
    /// What is on its way, and how much of it the socket has.
    answer: Option<Arc<[u8]>>,
    sent: usize,
    /// Whether nothing more is answered.
    close: bool,
    phase: Phase,
    since: Instant,
}

impl Connection {
    /// One that waits for the peer's first segment.
    pub fn new(peer: SocketAddrV4, mac: Mac, initial_sequence: TcpSeqNumber, now: Instant) -> Self {
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(RECEIVE_BYTES), buffer(SEND_BYTES));
        socket.set_ack_delay(None);
        // An answer is written as it fits, and none of its pieces is to wait for more.
        socket.set_nagle_enabled(false);
        // The socket is new, and the port is not 0.
        let _ = socket.listen(PORT);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            peer,
            mac,
            initial_sequence,
            sockets,
            handle,
            request: Vec::new(),
            seen: 0,
            answer: None,
            sent: 0,
            close: false,
            phase: Phase::Handshake,
            since: now,
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    /// Whether nothing more than a last segment will come of it. What the peer may have missed of the end, it is told when it
    /// asks.
    pub fn is_over(&self) -> bool {
        matches!(self.state(), State::Closed | State::Listen | State::TimeWait)
    }

    /// The answer that is on its way.
    pub fn answer(&self) -> Option<&Arc<[u8]>> {
        self.answer.as_ref()
    }

    /// Moves on what can be moved on, and takes a request if it is time for one; returns the answer, which is to be given to
    /// [`start`](Self::start).
    pub fn next_answer(&mut self, service: &Service, now: Instant) -> Option<Answer> {
        self.send();
        let mut next = None;
        if self.answer.is_none() && !self.close {
            self.take_in();
            if self.request.len() > self.seen {
                next = http::answer(service, now, &self.request);
                self.seen = self.request.len();
            }
            if let Some(answer) = &next {
                self.request.drain(..answer.consumed.min(self.request.len()));
                self.request.shrink_to_fit();
                self.seen = 0;
            } else if self.state() == State::CloseWait {
                // Nothing more will come.
                self.end();
            }
        }
        self.enter(self.phase_now(), now);
        next
    }

    /// Starts to send an answer.
    pub fn start(&mut self, answer: Arc<[u8]>, close: bool, now: Instant) {
        self.answer = Some(answer);
        self.sent = 0;
        self.close = close;
        (self.phase, self.since) = (Phase::Answer, now);
    }

    /// Gives the socket as much of the answer as it has room for.
    fn send(&mut self) {
        let Some(answer) = &self.answer else { return };
        let rest = answer.get(self.sent..).unwrap_or_default();
        // Fails when the peer has ended the connection, and then there is nobody to send to.
        let sent = self.sockets.get_mut::<Socket<'_>>(self.handle).send_slice(rest).unwrap_or(0);
        self.sent = self.sent.saturating_add(sent);
        if self.sent == answer.len() {
            self.answer = None;
            if self.close {
                self.end();
            }
        }
    }

    /// Takes over what the socket has received, up to the largest request.
    fn take_in(&mut self) {
        let mut room = MAX_REQUEST_BYTES.saturating_sub(self.request.len());
        let (request, socket) = (&mut self.request, self.sockets.get_mut::<Socket<'static>>(self.handle));
        // Twice, since what the socket has may begin at the end of its buffer.
        for _ in 0..2 {
            let taken = socket.recv(|bytes| {
                let bytes = bytes.get(..room).unwrap_or(bytes);
                request.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            });
            // Fails when nothing more will come.
            room = room.saturating_sub(taken.unwrap_or(0));
        }
    }

    fn end(&mut self) {
        self.close = true;
        self.socket().close();
    }

    /// Ends the connection at once. The peer is told by the next segment.
    pub fn abort(&mut self) {
        self.socket().abort();
    }

    fn phase_now(&self) -> Phase {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        if socket.state() == State::SynReceived {
            Phase::Handshake
        } else if self.answer.is_some() || socket.send_queue() > 0 {
            Phase::Answer
        } else if self.close {
            Phase::Closing
        } else if self.request.is_empty() {
            Phase::Idle
        } else {
            Phase::Request
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        if self.phase != phase {
            (self.phase, self.since) = (phase, now);
        }
    }

    /// When the peer's time is up.
    pub fn deadline(&self) -> Instant {
        let limit = self.phase.limit();
        self.since.checked_add(limit).unwrap_or(self.since)
    }

    /// Ends the connection if the peer's time is up.
    pub fn expire(&mut self, now: Instant, metrics: &MetadataMetrics) {
        if now < self.deadline() || self.is_over() {
            return;
        }
        metrics.connections_timed_out.increment();
        if self.phase == Phase::Idle {
            self.end();
        } else {
            self.abort();
        }
        self.enter(Phase::Closing, now);
    }

    /// How ready the connection is to give way to a new one: the least first. `None` if it is not.
    pub fn readiness_to_go(&self, now: Instant) -> Option<(u8, Instant)> {
        let class = match self.phase {
            _ if self.is_over() => return Some((0, self.since)),
            Phase::Handshake | Phase::Closing => 1,
            Phase::Idle => 2,
            Phase::Request | Phase::Answer => return None,
        };
        (now.saturating_duration_since(self.since) >= GRACE).then_some((class, self.since))
    }
}
