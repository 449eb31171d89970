//! A TCP/IP endpoint on a guest's network: frames in, frames out, no socket of the host.
//!
//! It is a link of one host, so that the endpoint does Ethernet itself: what comes from a MAC is answered to it. TCP and IPv4
//! are `smoltcp`'s. Each connection is a set of sockets of its own, so that each gets its turn, and so that the endpoint
//! decides who has to go. Nothing here grows with what a guest sends: there are so many connections, each has two small buffers,
//! a request at most, and answers together have a few times as many bytes as the document can have.

mod connection;
mod frame;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol, Ipv4Cidr, Ipv4Packet, TcpPacket};

use crate::http::{self, Answer};
use crate::service::random;
use crate::{Error, MetadataMetrics, Service};

use connection::{Connection, PORT};
use frame::{ETHERNET_BYTES, Head, Mac, Port};
pub use frame::{HEAD_BYTES, MAX_FRAME_BYTES};

/// Where guests expect the service.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The MAC that the service has unless it is given another one.
pub const DEFAULT_MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];

/// Most connections at once.
const MAX_CONNECTIONS: usize = 64;

/// Most replies to segments of no connection, and to ARP requests, that wait for the guest to take them.
const MAX_REPLIES: usize = 64;

/// Bytes of the largest such reply: headers of IPv4 and TCP with all options.
const REPLY_BYTES: usize = 80;

/// Bytes of answers on their way, beyond four times the document's limit. Connections with the same answer share it.
const SPARE_ANSWER_BYTES: usize = 64 << 10;

/// How guests reach the service by one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// The MAC that frames come from.
    pub mac: [u8; 6],
    /// The address that the service has.
    pub address: Ipv4Addr,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self { mac: DEFAULT_MAC, address: DEFAULT_ADDRESS }
    }
}

/// The service on one network interface of a guest.
///
/// Threads may share it. Only [`is_for_us`](Self::is_for_us) takes no lock.
pub struct Endpoint {
    config: EndpointConfig,
    service: Arc<Service>,
    stack: Mutex<Stack>,
}

struct Stack {
    mac: Mac,
    interface: Interface,
    /// Where the time of `interface` begins, and the latest that has been seen.
    start: Instant,
    latest: Instant,
    connections: Vec<Connection>,
    /// Whose turn it is to send.
    turn: usize,
    replies: VecDeque<Vec<u8>>,
}

impl Endpoint {
    /// An endpoint without connections.
    ///
    /// # Errors
    ///
    /// [`Error::Address`] for an address that is none of a single host, [`Error::Random`].
    pub fn new(config: EndpointConfig, service: Arc<Service>) -> Result<Self, Error> {
        let EndpointConfig { mac, address } = config;
        if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
            return Err(Error::Address(address));
        }
        let mut link = Config::new(HardwareAddress::Ip);
        link.random_seed = u64::from_ne_bytes(random()?);
        let start = Instant::now();
        let begin = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(link, &mut Port::new(None, &mut []), begin);
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, 32)));
        });
        let stack = Stack {
            mac,
            interface,
            start,
            latest: start,
            connections: Vec::new(),
            turn: 0,
            replies: VecDeque::new(),
        };
        Ok(Self { config, service, stack: Mutex::new(stack) })
    }

    /// Whether a frame that begins with `head` is for the service: an ARP request for its address, or a packet of IPv4 to it.
    /// [`HEAD_BYTES`] suffice to tell, and fewer do if the frame has no more.
    pub fn is_for_us(&self, head: &[u8]) -> bool {
        Head::read(head, self.config.address).is_some()
    }

    /// Takes a frame from the guest, of any length. Check sums need not be right: a guest may leave them to others.
    pub fn receive(&self, now: Instant, frame: &[u8]) {
        self.service.counters().rx_frames.increment();
        let is_good = match Head::read(frame, self.config.address) {
            Some(Head::ArpRequest { from, from_address }) => {
                let EndpointConfig { mac, address } = self.config;
                let reply = frame::arp_reply(mac, address, from, from_address);
                self.lock().reply(reply, self.service.counters());
                true
            }
            Some(Head::Ipv4 { from }) => {
                let packet = frame.get(ETHERNET_BYTES..).unwrap_or_default();
                self.lock().receive(now, from, packet, &self.service).is_some()
            }
            None => false,
        };
        if !is_good {
            self.service.counters().rx_dropped_malformed.increment();
        }
    }

    /// The next frame for the guest, if there is one at this time: writes it to `buffer`, which has [`MAX_FRAME_BYTES`] at
    /// least, and returns how long it is.
    pub fn next_frame(&self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        let len = self.lock().next_frame(now, buffer, self.service.counters())?;
        self.service.counters().tx_frames.increment();
        Some(len)
    }

    /// How long it takes until there may be a frame for the guest even if it sends none, or something is to be done about time;
    /// `None` if neither ever happens. [`next_frame`](Self::next_frame) does it.
    pub fn next_timeout(&self, now: Instant) -> Option<Duration> {
        self.lock().next_timeout(now)
    }

    /// A lock that outlives a panic, after which connections may be broken, but no more than a guest could break them.
    fn lock(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stack {
    /// The time, which does not go back when threads come here in another order than that in which they have read the clock;
    /// also as `interface` has it, in microseconds.
    fn clock(&mut self, now: Instant) -> (Instant, smoltcp::time::Instant) {
        self.latest = self.latest.max(now);
        let time = self.latest.saturating_duration_since(self.start).as_micros();
        (self.latest, smoltcp::time::Instant::from_micros(i64::try_from(time).unwrap_or(i64::MAX)))
    }

    /// Takes a packet; `None` if it is malformed, a fragment, or not TCP.
    fn receive(&mut self, now: Instant, from: Mac, packet: &[u8], service: &Service) -> Option<()> {
        let (now, time) = self.clock(now);
        let ipv4 = Ipv4Packet::new_checked(packet).ok().filter(|ipv4| ipv4.version() == 4)?;
        if ipv4.next_header() != IpProtocol::Tcp || ipv4.more_frags() || ipv4.frag_offset() != 0 {
            return None;
        }
        let tcp = TcpPacket::new_checked(ipv4.payload()).ok()?;
        let peer = SocketAddrV4::new(ipv4.src_addr(), tcp.src_port());
        let at = self.connections.iter().position(|connection| connection.peer == peer);
        let known = at.and_then(|at| self.connections.get_mut(at));
        let mut room = [0; REPLY_BYTES];
        let mut port = Port::new(Some(packet), &mut room);

        let is_first = tcp.syn() && !tcp.ack() && tcp.dst_port() == PORT;
        let sequence = tcp.seq_number();
        if is_first && known.as_ref().is_none_or(|known| known.initial_sequence != sequence) {
            let mut new = Connection::new(peer, from, sequence, now);
            self.interface.poll_ingress_single(time, &mut port, &mut new.sockets);
            if new.is_over() {
                return None;
            }
            // A peer that has forgotten its connection was restarted.
            if let Some(at) = at {
                self.connections.remove(at);
            } else if !self.make_room(now, service.counters()) {
                service.counters().rx_dropped_busy.increment();
                return Some(());
            }
            service.counters().connections.increment();
            self.connections.push(new);
            return Some(());
        }

        let mut nobody = SocketSet::new([]);
        let sockets = match known {
            Some(connection) => {
                connection.mac = from;
                &mut connection.sockets
            }
            None => &mut nobody,
        };
        self.interface.poll_ingress_single(time, &mut port, sockets);
        if let Some(reply) = port.sent().and_then(|len| room.get(..len)) {
            self.reply([&frame::ipv4_header(self.mac, from), reply].concat(), service.counters());
        }
        if let Some(at) = at {
            self.serve(at, now, service);
        }
        Some(())
    }

    /// Makes sure that there can be one more connection; returns whether there can.
    fn make_room(&mut self, now: Instant, metrics: &MetadataMetrics) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let candidates = self.connections.iter().enumerate();
        let ready = candidates.filter_map(|(at, connection)| Some((connection.readiness_to_go(now)?, at)));
        let Some((_, at)) = ready.min() else { return false };
        let mut connection = self.connections.remove(at);
        if !connection.is_over() {
            metrics.connections_evicted.increment();
            connection.abort();
        }
        let (_, time) = self.clock(now);
        let mut room = [0; REPLY_BYTES];
        let mut port = Port::new(None, &mut room);
        self.interface.poll_egress(time, &mut port, &mut connection.sockets);
        if let Some(last) = port.sent().and_then(|len| room.get(..len)) {
            self.reply([&frame::ipv4_header(self.mac, connection.mac), last].concat(), metrics);
        }
        true
    }

    fn reply(&mut self, frame: Vec<u8>, metrics: &MetadataMetrics) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(frame);
        } else {
            metrics.tx_dropped.increment();
        }
    }

    /// Has connection `at` do what there is to do: requests are answered one after the other, as the socket takes the answers.
    fn serve(&mut self, at: usize, now: Instant, service: &Service) {
        while let Some(connection) = self.connections.get_mut(at) {
            let Some(Answer { bytes, close, .. }) = connection.next_answer(service, now) else { break };
            let shared = self.share(&bytes, service);
            if shared.is_none() {
                service.counters().requests_busy.increment();
            }
            if let Some(connection) = self.connections.get_mut(at) {
                let close = close || shared.is_none();
                connection.start(shared.unwrap_or_else(|| http::busy().into()), close, now);
            }
        }
    }

    /// The answer that others have too, if there is one like it, or else a new one, if there may be.
    fn share(&self, bytes: &[u8], service: &Service) -> Option<Arc<[u8]>> {
        let answers = || self.connections.iter().filter_map(Connection::answer);
        if let Some(same) = answers().find(|answer| ***answer == *bytes) {
            return Some(Arc::clone(same));
        }
        let part = |answer: &Arc<[u8]>| answer.len().checked_div(Arc::strong_count(answer)).unwrap_or(0);
        let held = answers().map(part).fold(bytes.len(), usize::saturating_add);
        let most = service.limit().saturating_mul(4).saturating_add(SPARE_ANSWER_BYTES);
        (held <= most).then(|| bytes.into())
    }

    fn next_frame(&mut self, now: Instant, buffer: &mut [u8], metrics: &MetadataMetrics) -> Option<usize> {
        let (now, time) = self.clock(now);
        let (header, room) = buffer.split_first_chunk_mut::<ETHERNET_BYTES>()?;
        let room = room.get_mut(..MAX_FRAME_BYTES.saturating_sub(ETHERNET_BYTES))?;
        if let Some(reply) = self.replies.pop_front() {
            let frame = buffer.get_mut(..reply.len())?;
            frame.copy_from_slice(&reply);
            return Some(reply.len());
        }
        self.replies = VecDeque::new();
        for _ in 0..self.connections.len() {
            if self.turn >= self.connections.len() {
                self.turn = 0;
            }
            let turn = self.turn;
            let connection = self.connections.get_mut(turn)?;
            connection.expire(now, metrics);
            let mut port = Port::new(None, room);
            self.interface.poll_egress(time, &mut port, &mut connection.sockets);
            let sent = port.sent();
            if sent.is_none() && connection.is_over() {
                // The next has its place, and its turn.
                self.connections.remove(turn);
                continue;
            }
            self.turn = turn.saturating_add(1);
            if let Some(len) = sent {
                *header = frame::ipv4_header(self.mac, connection.mac);
                return Some(len.saturating_add(ETHERNET_BYTES));
            }
        }
        None
    }

    fn next_timeout(&mut self, now: Instant) -> Option<Duration> {
        if !self.replies.is_empty() {
            return Some(Duration::ZERO);
        }
        let (now, time) = self.clock(now);
        let interface = &mut self.interface;
        let timeouts = self.connections.iter().map(|connection| {
            let deadline = connection.deadline().saturating_duration_since(now);
            match interface.poll_delay(time, &connection.sockets) {
                Some(delay) => deadline.min(delay.into()),
                None => deadline,
            }
        });
        timeouts.min()
    }
}
