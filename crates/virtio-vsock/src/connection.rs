//! One stream between a socket in the guest and a Unix socket of the host.
//!
//! ```text
//!   the host asks ──▶ Requested ──RESPONSE──┐
//!                                           ▼
//!   the guest asks ───────────────────────▶ Open ──both directions done──▶ Closing ──RST──▶ Gone
//!                                           │ │                               │               ▲
//!                   RST, with bytes left ◀──┘ └──the guest has closed────▶ Dead ──────────────┤
//!                         │                       or something is wrong    (owes a RST)       │
//!                         ▼                                                                   │
//!                     Lingering ─────────────────the host took the bytes──────────────────────┘
//! ```
//!
//! A connection does its own input and output, but knows neither queues nor descriptors that are watched: it says
//! what it waits for ([`Connection::interest`]) and whether it has something for the guest ([`Connection::has_output`]).

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use kindling_virtio_device::{Readable, Writable};
use vmm_sys_util::epoll::EventSet;

use crate::backlog::Backlog;
use crate::credit::{BUFFER_BYTES, Credit};
use crate::packet::{Header, op, shutdown};
use crate::{VsockMetrics, socket};

/// Most bytes of payload in a packet to the guest, whatever its buffers.
const MAX_PAYLOAD: u32 = 64 << 10;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The host asked for it, and the guest has not answered. The host's bytes wait in its socket.
    Requested,
    /// At least one direction is open.
    Open,
    /// Both directions are done, the Unix socket is not needed any more, and the guest has still to agree.
    Closing,
    /// The guest has reset the connection, and the host has still to take what the guest had sent before.
    Lingering,
    /// The guest has still to be sent a reset.
    Dead,
    /// Nothing is left.
    Gone,
}

/// A connection.
pub struct Connection {
    pub host_port: u32,
    pub guest_port: u32,
    pub phase: Phase,
    /// Whether it was ever open.
    pub opened: bool,
    /// When the guest should have answered, in the phases in which it has to.
    pub deadline: Option<Instant>,
    /// The Unix socket.
    pub stream: UnixStream,
    /// What the Unix socket is watched for; nothing at all when `None`.
    pub watched: Option<EventSet>,
    credit: Credit,
    /// Bytes for a host program that is too slow: at most `BUFFER_BYTES`.
    backlog: Backlog,
    /// The guest has still to be sent the request, or the response to its own.
    owes_opening: bool,
    owes_credit_update: bool,
    owes_credit_request: bool,
    /// The Unix socket may have something to be read.
    readable: bool,
    /// The host sends no more.
    host_finished: bool,
    /// The host takes no more.
    host_deaf: bool,
    /// The Unix socket reported a hang-up: nothing comes after what is still in it, and nothing can be sent.
    hung_up: bool,
    /// The Unix socket was told that no more comes.
    finished: bool,
    /// Bytes of the guest were lost, since the host did not take them.
    lost: bool,
    /// What the guest has shut down (`shutdown::*`).
    guest_shutdown: u32,
    /// What the guest was told that the host has shut down.
    told_shutdown: u32,
}

impl Connection {
    fn new(stream: UnixStream, phase: Phase, host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            phase,
            opened: phase == Phase::Open,
            deadline: None,
            stream,
            watched: None,
            credit: Credit::default(),
            backlog: Backlog::default(),
            owes_opening: true,
            owes_credit_update: false,
            owes_credit_request: false,
            readable: false,
            host_finished: false,
            host_deaf: false,
            hung_up: false,
            finished: false,
            lost: false,
            guest_shutdown: 0,
            told_shutdown: 0,
        }
    }

    /// A connection that a host program asked for on `stream`. The guest has to answer until `deadline`.
    pub fn requested(stream: UnixStream, host_port: u32, guest_port: u32, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::new(stream, Phase::Requested, host_port, guest_port) }
    }

    /// The connection that the guest asked for with `request`, and that a host program accepts on `stream`.
    pub fn accepted(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, Phase::Open, request.dst_port, request.src_port);
        connection.credit.learn(request);
        connection
    }

    /// Whether packets of the guest that bear the connection's ports are for it.
    pub fn is_known_to_guest(&self) -> bool {
        !matches!(self.phase, Phase::Lingering | Phase::Gone)
    }

    /// Whether there is a packet for the guest. It may turn out that there is none, when the Unix socket has nothing.
    pub fn has_output(&self) -> bool {
        match self.phase {
            Phase::Requested => self.owes_opening,
            Phase::Open | Phase::Closing => {
                self.owes_opening
                    || self.may_read()
                    || self.shutdown_flags() != self.told_shutdown
                    || self.owes_credit()
            }
            Phase::Dead => true,
            Phase::Lingering | Phase::Gone => false,
        }
    }

    /// What the Unix socket is to be watched for. Only what can make progress, since descriptors stay ready until it is
    /// made; and a hang-up, which is always reported, must make progress too where it is not `None`.
    pub fn interest(&self) -> Option<EventSet> {
        match self.phase {
            // A host program that gives up is a hang-up.
            Phase::Requested => Some(EventSet::empty()),
            Phase::Open => {
                let reads = self.reads();
                let mut events = EventSet::empty();
                // Once it is known to be readable, the guest's credit or its buffers are what is missing.
                events.set(EventSet::IN, reads && !self.readable && self.credit.available() > 0);
                events.set(EventSet::OUT, !self.backlog.is_empty());
                let hears_hang_up = !reads && !self.host_deaf;
                (!events.is_empty() || hears_hang_up).then_some(events)
            }
            Phase::Lingering => Some(EventSet::OUT),
            Phase::Closing | Phase::Dead | Phase::Gone => None,
        }
    }

    /// The Unix socket is ready.
    pub fn on_event(&mut self, events: EventSet) {
        let end = EventSet::HANG_UP | EventSet::ERROR;
        if events.intersects(end) {
            self.hung_up = true;
            if self.phase == Phase::Requested {
                self.reset();
            }
        }
        self.readable |= events.intersects(end | EventSet::IN);
        if events.intersects(end | EventSet::OUT) {
            self.flush();
        }
        self.advance();
    }

    /// Gives the connection up, whatever is on its way.
    pub fn reset(&mut self) {
        // A guest that has not heard of it need not.
        let unheard = self.phase == Phase::Requested && self.owes_opening;
        self.phase = if unheard { Phase::Gone } else { Phase::Dead };
        self.deadline = None;
        self.backlog.clear();
        // The host need not wait until the guest takes the reset. Fails when it is gone.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The guest sent a packet with this header, and `payload` behind it.
    pub fn on_packet(&mut self, header: &Header, payload: &mut Readable, metrics: &VsockMetrics) {
        self.credit.learn(header);
        match (self.phase, header.op) {
            (Phase::Open, op::RST) if !self.backlog.is_empty() => {
                self.phase = Phase::Lingering;
            }
            (_, op::RST) => self.phase = Phase::Gone,
            (Phase::Dead, _) | (Phase::Open | Phase::Closing, op::CREDIT_UPDATE) => (),
            (Phase::Requested, op::RESPONSE) => self.open(metrics),
            (Phase::Open, op::RW) => self.take(payload, metrics),
            (Phase::Open | Phase::Closing, op::CREDIT_REQUEST) => self.owes_credit_update = true,
            (Phase::Open | Phase::Closing, op::SHUTDOWN) => self.shut_down(header.flags),
            // Bytes that passed the news of the end are lost.
            (Phase::Closing, op::RW) => self.reset(),
            _ => {
                metrics.bad_packets.increment();
                self.reset();
            }
        }
        self.advance();
    }

    /// The next packet for the guest: what the connection has to say about it, while the worker knows the rest. A
    /// payload is read straight into `room`, which is not empty.
    pub fn next_packet(&mut self, room: &mut Writable, metrics: &VsockMetrics) -> Option<Header> {
        let mut header = Header::default();
        (header.op, header.len) = self.next_output(room, metrics)?;
        if header.op == op::SHUTDOWN {
            self.told_shutdown = self.shutdown_flags();
            header.flags = self.told_shutdown;
        }
        self.credit.tell(&mut header);
        self.owes_credit_update = false;
        Some(header)
    }

    /// Operation and length of the next packet.
    fn next_output(&mut self, room: &mut Writable, metrics: &VsockMetrics) -> Option<(u16, u32)> {
        if self.owes_opening && matches!(self.phase, Phase::Requested | Phase::Open | Phase::Closing) {
            self.owes_opening = false;
            return Some((if self.phase == Phase::Requested { op::REQUEST } else { op::RESPONSE }, 0));
        }
        if self.may_read()
            && let Some(len) = self.read(room, metrics)
        {
            return Some((op::RW, len));
        }
        match self.phase {
            Phase::Dead => {
                self.phase = Phase::Gone;
                Some((op::RST, 0))
            }
            Phase::Open | Phase::Closing if self.shutdown_flags() != self.told_shutdown => {
                Some((op::SHUTDOWN, 0))
            }
            Phase::Open | Phase::Closing if self.owes_credit_request => {
                self.owes_credit_request = false;
                Some((op::CREDIT_REQUEST, 0))
            }
            Phase::Open | Phase::Closing if self.owes_credit() => Some((op::CREDIT_UPDATE, 0)),
            _ => None,
        }
    }

    /// Reads what the host sent and the guest has credit for. Returns how much it was.
    fn read(&mut self, room: &mut Writable, metrics: &VsockMetrics) -> Option<u32> {
        room.truncate(self.credit.available().min(MAX_PAYLOAD));
        match room.read_from(&self.stream) {
            Ok(0) => self.host_finished = true,
            Ok(len) => {
                let len = len as u32;
                // Less than there was room for: that was all. More will be heard of.
                self.readable = len == room.len();
                self.credit.send(len);
                if self.credit.available() == 0 {
                    self.owes_credit_request = true;
                    metrics.credit_stalls.increment();
                }
                metrics.bytes_to_guest.add(len.into());
                return Some(len);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            // The host program is gone, and has not read all that the guest had sent.
            Err(_) => self.reset(),
        }
        self.advance();
        None
    }

    /// The guest accepts the connection.
    fn open(&mut self, metrics: &VsockMetrics) {
        let line = format!("OK {}\n", self.host_port);
        match socket::send_slices(&self.stream, &[IoSlice::new(line.as_bytes())]) {
            Ok(len) if len == line.len() => {
                self.phase = Phase::Open;
                self.opened = true;
                self.deadline = None;
                metrics.connections_added.increment();
            }
            _ => self.reset(),
        }
    }

    /// Passes bytes of the guest on, or keeps them when the host does not take them.
    fn take(&mut self, payload: &mut Readable, metrics: &VsockMetrics) {
        let room = BUFFER_BYTES.saturating_sub(self.backlog.len());
        if payload.len() > room || self.guest_shutdown & shutdown::SEND != 0 {
            metrics.bad_packets.increment();
            return self.reset();
        }
        metrics.bytes_from_guest.add(payload.len().into());
        if self.backlog.is_empty() && !self.host_deaf && !payload.is_empty() {
            match socket::send_readable(&self.stream, payload) {
                Ok(len) => self.credit.forward(payload.skip(len as u32)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(_) => self.host_deaf = true,
            }
        }
        if self.host_deaf {
            self.lost |= !payload.is_empty();
            self.credit.forward(payload.len());
        } else {
            self.backlog.append(payload);
        }
    }

    /// Passes on what was kept.
    fn flush(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        match self.backlog.send(&self.stream) {
            Ok(len) => self.credit.forward(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(_) => self.deafen(),
        }
    }

    /// The host takes no more.
    fn deafen(&mut self) {
        self.host_deaf = true;
        self.lost |= !self.backlog.is_empty();
        self.credit.forward(self.backlog.len());
        self.backlog.clear();
    }

    /// The guest shuts directions down.
    fn shut_down(&mut self, flags: u32) {
        let before = self.guest_shutdown;
        self.guest_shutdown |= flags & shutdown::BOTH;
        if self.phase == Phase::Open && self.guest_shutdown & !before & shutdown::RCV != 0 {
            // Fails when the host is gone, which shows elsewhere.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.phase == Phase::Closing && self.guest_shutdown == shutdown::BOTH {
            self.reset();
        }
    }

    /// Draws the conclusions from what has happened.
    fn advance(&mut self) {
        match self.phase {
            Phase::Open => {
                if !self.reads() && self.hung_up && !self.host_deaf {
                    self.deafen();
                }
                let guest_finished = self.guest_shutdown & shutdown::SEND != 0;
                if guest_finished && self.backlog.is_empty() && !self.finished {
                    // Fails when the host is gone, which shows elsewhere.
                    let _ = self.stream.shutdown(Shutdown::Write);
                    self.finished = true;
                }
                if self.reads() || !(self.finished || self.host_deaf) {
                    return;
                }
                if self.lost || self.guest_shutdown == shutdown::BOTH {
                    self.reset();
                } else {
                    self.phase = Phase::Closing;
                }
            }
            Phase::Lingering if self.backlog.is_empty() => self.phase = Phase::Gone,
            _ => (),
        }
    }

    /// Whether bytes of the host are for the guest.
    fn reads(&self) -> bool {
        self.phase == Phase::Open && !self.host_finished && self.guest_shutdown & shutdown::RCV == 0
    }

    /// Whether reading may bring something.
    fn may_read(&self) -> bool {
        self.readable && self.reads() && self.credit.available() > 0
    }

    fn owes_credit(&self) -> bool {
        self.owes_credit_update || self.owes_credit_request || self.credit.is_update_due()
    }

    /// What the guest ought to know that is shut down on the host's side.
    fn shutdown_flags(&self) -> u32 {
        if self.phase == Phase::Closing {
            return shutdown::BOTH;
        }
        let sends_no_more = if self.host_finished { shutdown::SEND } else { 0 };
        let receives_no_more = if self.host_deaf { shutdown::RCV } else { 0 };
        sends_no_more | receives_no_more
    }
}
