//! A guest's TCP/IP stack reads the metadata service through the device's queues.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/metadata.rs"]
mod metadata;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::{CTRL_VQ, EVENT_IDX, Host, LARGE, MQ, MRG_RXBUF, device, metric};
use kindling_metadata::{DEFAULT_ADDRESS, Version};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use kindling_virtio_net::Net;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// The queues of a device as a network card of the guest's stack.
struct Card {
    driver: MockDriver,
    /// Where frames are sent by in turn, and where they were taken from last.
    pairs: usize,
    turn: usize,
    received: VecDeque<Vec<u8>>,
    buffer_size: u32,
}

impl Card {
    /// Gives the device buffers, and takes what it has put into them.
    fn poll(&mut self) {
        for pair in 0..self.pairs {
            while self.driver.queues[2 * pair + 1].take_used().is_some() {}
            let queue = &mut self.driver.queues[2 * pair];
            while let Some(first) = queue.take_used() {
                assert_eq!(first.data[..10], [0; 10], "nothing is left to the guest");
                let num_buffers = u16::from_le_bytes([first.data[10], first.data[11]]);
                let mut frame = first.data[12..first.written as usize].to_vec();
                for _ in 1..num_buffers {
                    let next = queue.take_used().unwrap();
                    frame.extend(&next.data[..next.written as usize]);
                }
                self.received.push_back(frame);
            }
            while queue.outstanding() < 32 {
                queue.add(&[Buffer::Writable(self.buffer_size)]);
            }
        }
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sending<'a>(&'a mut Card);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut message = vec![0; 12 + len];
        let result = write(&mut message[12..]);
        self.0.turn = (self.0.turn + 1) % self.0.pairs;
        self.0.driver.queues[2 * self.0.turn + 1].add(&[Buffer::Readable(&message)]);
        result
    }
}

impl smoltcp::phy::Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sending(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        let queue = &self.driver.queues[2 * ((self.turn + 1) % self.pairs) + 1];
        (queue.outstanding() < 100).then_some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1_514;
        capabilities
    }
}

struct Guest {
    net: Net,
    hosts: Vec<Host>,
    inline: Option<Inline>,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
}

impl Guest {
    fn new(net: Net, hosts: Vec<Host>, refused: u64, buffer_size: u32) -> Self {
        let mut net = net;
        let pairs = if refused & MQ == 0 { hosts.len() } else { 1 };
        let driver = MockDriver::with_features(&net, (net.features() | COMMON_FEATURES) & !refused);
        let inline = Inline::start(net.activate(driver.activation()).unwrap()).unwrap();
        let mut card = Card { driver, pairs, turn: 0, received: VecDeque::new(), buffer_size };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 1])));
        let mut interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        let address = Ipv4Addr::new(172, 16, 0, 2);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address.into(), 0)).unwrap());
        let sockets = SocketSet::new(Vec::new());
        Self { net, hosts, inline: Some(inline), card, interface, sockets, start: Instant::now() }
    }

    fn step(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.start.elapsed().as_micros() as i64);
        self.card.poll();
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        self.inline.as_mut().unwrap().step(1).unwrap();
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 8_192]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.connect(self.interface.context(), (DEFAULT_ADDRESS, 80), port).unwrap();
        self.sockets.add(socket)
    }

    /// Sends a request on each connection, and returns what comes until the service closes it. `each` is called now and then.
    fn ask(
        &mut self,
        handles: &[SocketHandle],
        request: &str,
        mut each: impl FnMut(&mut Self),
    ) -> Vec<String> {
        let mut answers = vec![Vec::new(); handles.len()];
        let mut sent = vec![false; handles.len()];
        let end = Instant::now() + Duration::from_secs(60);
        while handles.iter().any(|handle| self.sockets.get::<Socket<'_>>(*handle).is_active()) {
            assert!(Instant::now() < end, "{:?}", answers.iter().map(Vec::len).collect::<Vec<_>>());
            self.step();
            for (index, handle) in handles.iter().enumerate() {
                let socket = self.sockets.get_mut::<Socket<'_>>(*handle);
                if socket.can_send() && !sent[index] {
                    socket.send_slice(request.as_bytes()).unwrap();
                    sent[index] = true;
                }
                while let Ok(1..) = socket.recv(|got| {
                    answers[index].extend_from_slice(got);
                    (got.len(), got.len())
                }) {}
                if sent[index] && !socket.may_recv() {
                    socket.close();
                }
            }
            each(self);
        }
        answers.into_iter().map(|answer| String::from_utf8(answer).unwrap()).collect()
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n")
}

#[test]
fn documents_come_through_queues_of_every_kind() {
    for (connections, pairs, refused, buffer_size) in [
        (50, 1, 0, 1_536),
        (10, 1, 0, 70_000),
        (10, 1, 0, 200),
        (10, 1, MRG_RXBUF, 2_000),
        (10, 1, LARGE | MRG_RXBUF | EVENT_IDX, 2_000),
        (20, 2, 0, 1_536),
        (10, 2, MQ | CTRL_VQ, 1_536),
    ] {
        let service = metadata::service();
        let (net, hosts) = device(pairs);
        let net = net.with_detour(metadata::detour(&service));
        let mut guest = Guest::new(net, hosts, refused, buffer_size);
        let handles: Vec<_> = (0..connections).map(|index| guest.connect(1_000 + index)).collect();
        for answer in guest.ask(&handles, &get("/large"), |_| ()) {
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:.100}");
            assert!(answer.ends_with(&"0123456789".repeat(5_000)), "{} bytes", answer.len());
        }
        let net = &guest.net;
        let host_frames: usize =
            guest.hosts.iter().map(|host| std::iter::from_fn(|| host.receive()).count()).sum();
        assert_eq!(host_frames, 0, "nothing of it reaches the host");
        assert_eq!(metric(net, "tx_frames"), metric(net, "tx_detoured"));
        assert_eq!(metric(net, "rx_frames"), metric(net, "rx_detoured"));
        assert_eq!(metric(net, "rx_dropped_no_room") + metric(net, "rx_dropped_size"), 0);
    }
}

#[test]
fn a_token_opens_the_document_amid_sleeps_and_other_traffic() {
    let service = metadata::service();
    service.configure(Version::V2, false);
    let (net, hosts) = device(1);
    let mut guest = Guest::new(net.with_detour(metadata::detour(&service)), hosts, 0, 1_536);
    let handle = guest.connect(999);
    assert!(guest.ask(&[handle], &get("/large"), |_| ())[0].starts_with("HTTP/1.1 401 "));
    let handle = guest.connect(1_000);
    let put =
        "PUT /latest/api/token HTTP/1.1\r\nConnection: close\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let answer = guest.ask(&[handle], put, |_| ()).remove(0);
    let token = answer.split_once("\r\n\r\n").unwrap().1;
    let request = get("/large").replace("Connection", &format!("X-metadata-token: {token}\r\nConnection"));
    let handles: Vec<_> = (0..10).map(|index| guest.connect(2_000 + index)).collect();
    let mut round = 0_u64;
    let answers = guest.ask(&handles, &request, |guest| {
        round += 1;
        if round.is_multiple_of(3) {
            let workers = guest.inline.take().unwrap().stop();
            if round.is_multiple_of(2) {
                guest.inline = Some(Inline::start(workers).unwrap());
            } else {
                // As another process goes on, with the endpoint that this one has.
                for state in workers.iter().flat_map(|worker| worker.queues()) {
                    guest.card.driver.queues[usize::from(state.index)].state = state;
                }
                drop(workers);
                let workers = guest.net.activate(guest.card.driver.activation()).unwrap();
                guest.inline = Some(Inline::start(workers).unwrap());
            }
        }
        guest.hosts[0].try_send(&[0; 12], &[7; 60]);
    });
    assert!(answers.iter().all(|answer| answer.ends_with(&"0123456789".repeat(5_000))));
    let net = &guest.net;
    assert!(metric(net, "rx_frames") > metric(net, "rx_detoured"), "the host's frames came too");
}
