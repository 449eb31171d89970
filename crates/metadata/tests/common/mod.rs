//! A guest with a TCP/IP stack on the endpoint's network, and frames made by hand. Time passes only when a test says so.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_metadata::{
    DEFAULT_ADDRESS, DEFAULT_LIMIT, Endpoint, EndpointConfig, MAX_FRAME_BYTES, Service, Version,
};
use serde_json::Value;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

pub const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub fn service(version: Version, document: Value) -> Arc<Service> {
    let service = Service::new(DEFAULT_LIMIT).unwrap();
    service.put(document).unwrap();
    service.configure(version, false);
    service
}

pub fn endpoint(service: &Arc<Service>) -> Endpoint {
    Endpoint::new(EndpointConfig::default(), Arc::clone(service)).unwrap()
}

pub fn metric(service: &Service, name: &str) -> u64 {
    service.metrics().value(name).expect("a metric of that name").number()
}

/// The frames between guest and endpoint.
pub struct Wire {
    to_endpoint: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
}

pub struct Token<'a>(&'a mut VecDeque<Vec<u8>>);

impl smoltcp::phy::TxToken for Token<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

pub struct Frame(Vec<u8>);

impl smoltcp::phy::RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Token<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Frame, Token<'_>)> {
        let frame = self.to_guest.pop_front()?;
        Some((Frame(frame), Token(&mut self.to_endpoint)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Token<'_>> {
        Some(Token(&mut self.to_endpoint))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME_BYTES;
        capabilities
    }
}

pub struct Guest {
    pub service: Arc<Service>,
    pub endpoint: Endpoint,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    start: Instant,
    pub now: Instant,
    next_port: u16,
    /// Every so many frames one is lost, each way.
    pub loss: Option<usize>,
    /// Frames that went each way.
    pub frames: [usize; 2],
}

impl Guest {
    pub fn new(version: Version, document: Value) -> Self {
        let service = service(version, document);
        let start = Instant::now();
        let mut wire = Wire { to_endpoint: VecDeque::new(), to_guest: VecDeque::new() };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        // All addresses are on its link, as the service's is with `ip route add 169.254.169.254 dev eth0`.
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 0)).unwrap());
        Self {
            endpoint: endpoint(&service),
            service,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            start,
            now: start,
            next_port: 40_000,
            loss: None,
            frames: [0; 2],
        }
    }

    pub fn connect(&mut self) -> SocketHandle {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; 16_384]), SocketBuffer::new(vec![0; 65_536]));
        self.next_port += 1;
        socket.connect(self.interface.context(), (DEFAULT_ADDRESS, 80), self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn time(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros((self.now - self.start).as_micros() as i64)
    }

    /// Moves frames both ways until there are none; returns whether there were any.
    pub fn exchange(&mut self) -> bool {
        let mut is_any = false;
        loop {
            self.interface.poll(self.time(), &mut self.wire, &mut self.sockets);
            let mut is_quiet = true;
            while let Some(frame) = self.wire.to_endpoint.pop_front() {
                is_quiet = false;
                self.frames[0] += 1;
                if self.loss.is_none_or(|loss| !self.frames[0].is_multiple_of(loss)) {
                    assert!(self.endpoint.is_for_us(&frame));
                    self.endpoint.receive(self.now, &frame);
                }
            }
            let mut buffer = [0; MAX_FRAME_BYTES];
            while let Some(len) = self.endpoint.next_frame(self.now, &mut buffer) {
                is_quiet = false;
                self.frames[1] += 1;
                if self.loss.is_none_or(|loss| !self.frames[1].is_multiple_of(loss)) {
                    self.wire.to_guest.push_back(buffer[..len].to_vec());
                }
            }
            if is_quiet {
                return is_any;
            }
            is_any = true;
        }
    }

    /// Lets time pass, to the next timer of either side or by `most`.
    pub fn pass(&mut self, most: Duration) {
        self.exchange();
        let guest = self.interface.poll_delay(self.time(), &self.sockets).map(Duration::from);
        let endpoint = self.endpoint.next_timeout(self.now);
        assert_ne!(endpoint, Some(Duration::ZERO), "the endpoint has something to do and does not do it");
        let step = [guest, endpoint, Some(most)].into_iter().flatten().min().unwrap();
        self.now += step.max(Duration::from_micros(1));
    }

    /// Lets so much time pass.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.pass(end - self.now);
        }
        self.exchange();
    }

    pub fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        assert_eq!(self.socket(handle).send_slice(bytes), Ok(bytes.len()));
    }

    /// The next answer on a connection: head and body. Waits for a minute at most.
    pub fn answer(&mut self, handle: SocketHandle) -> (String, String) {
        let end = self.now + Duration::from_secs(60);
        let mut bytes = Vec::new();
        loop {
            assert!(self.now < end, "no answer in time, but {} bytes", bytes.len());
            let is_any = self.exchange();
            let taken = self.socket(handle).recv(|got| {
                // No more than belongs to it.
                let before = bytes.len();
                bytes.extend_from_slice(got);
                bytes.truncate(whole(&bytes).unwrap_or(usize::MAX));
                (bytes.len() - before, bytes.len() - before)
            });
            if whole(&bytes) == Some(bytes.len()) {
                let text = String::from_utf8(bytes).unwrap();
                let (head, body) = text.split_once("\r\n\r\n").unwrap();
                return (head.to_owned(), body.to_owned());
            }
            assert!(taken.is_ok(), "the connection ended with {} bytes", bytes.len());
            if taken == Ok(0) && !is_any {
                self.pass(Duration::from_secs(1));
            }
        }
    }

    /// Asks on a connection of its own, and returns status and body.
    pub fn ask(&mut self, request: &str) -> (u16, String) {
        let handle = self.connect();
        self.exchange();
        while self.socket(handle).state() == State::SynSent {
            self.pass(Duration::from_secs(1));
            self.exchange();
        }
        self.send(handle, request.as_bytes());
        let (head, body) = self.answer(handle);
        self.socket(handle).close();
        self.exchange();
        (head[9..12].parse().unwrap(), body)
    }
}

/// How many bytes the answer has that begins with `bytes`.
fn whole(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let field = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    Some(end + 4 + field.parse::<usize>().unwrap())
}

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;

/// A segment to port 80 of the service, without check sums.
pub fn segment(from: (Ipv4Addr, u16), seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    segment_to(80, from, seq, ack, flags, payload)
}

pub fn segment_to(
    port: u16,
    from: (Ipv4Addr, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = [from.1.to_be_bytes(), port.to_be_bytes()].concat();
    tcp.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    ipv4(from.0, 6, &tcp)
}

pub fn ipv4(from: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut frame = [&[0xff; 6][..], &GUEST_MAC, &[8, 0, 0x45, 0], &len.to_be_bytes()].concat();
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(from.octets());
    frame.extend(DEFAULT_ADDRESS.octets());
    frame.extend(payload);
    frame
}

/// What the endpoint sends, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub struct Got {
    pub to_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub payload: Vec<u8>,
}

/// The endpoint's next segment. Check sums are checked.
pub fn next(endpoint: &Endpoint, now: Instant) -> Option<Got> {
    let mut buffer = [0; MAX_FRAME_BYTES];
    let len = endpoint.next_frame(now, &mut buffer)?;
    let frame = &buffer[..len];
    assert_eq!(frame[12..14], [8, 0], "a frame of IPv4");
    let packet = smoltcp::wire::Ipv4Packet::new_checked(&frame[14..]).unwrap();
    assert!(packet.verify_checksum());
    assert_eq!(packet.src_addr(), DEFAULT_ADDRESS);
    let tcp = smoltcp::wire::TcpPacket::new_checked(packet.payload()).unwrap();
    assert!(tcp.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
    let payload = packet.payload();
    Some(Got {
        to_port: tcp.dst_port(),
        seq: tcp.seq_number().0 as u32,
        ack: tcp.ack_number().0 as u32,
        flags: payload[13],
        window: tcp.window_len(),
        payload: tcp.payload().to_vec(),
    })
}
