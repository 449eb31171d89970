//! The device on real taps. These tests need root, for network namespaces and taps in them; nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod net;

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use common::{EVENT_IDX, GUEST_CSUM, LARGE, MRG_RXBUF, Random, metric};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use kindling_virtio_net::{Backend, Error, Net};
use net::{GUEST, GUEST_MAC, HOST, in_namespace};

const PLAIN: [u8; 12] = [0; 12];
/// The check sum of UDP, or of TCP, is to be completed.
const UDP_SUM: [u8; 12] = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
const TCP_SUM: [u8; 12] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];

/// A guest on a tap of the host, which has an address.
struct Guest {
    device: Net,
    driver: MockDriver,
    inline: Inline,
    host_mac: [u8; 6],
}

impl Guest {
    /// With so many queue pairs, of which the first is active, and everything accepted but `refused`.
    fn new(pairs: usize, refused: u64) -> Self {
        let backend = Backend::tap("tap0", pairs).unwrap();
        net::set_address("tap0");
        net::set_up("tap0", true);
        let mut device = Net::new(backend, Some(GUEST_MAC), None).unwrap();
        let features = (device.features() | COMMON_FEATURES) & !refused;
        let driver = MockDriver::with_features(&device, features);
        let inline = Inline::start(device.activate(driver.activation()).unwrap()).unwrap();
        let mut guest = Self { device, driver, inline, host_mac: [0; 6] };
        guest.fill();
        guest.transmit(&PLAIN, &net::arp_request());
        let reply = guest.wait("an ARP reply", |_, frame| frame[12..14] == [8, 6] && frame[21] == 2);
        guest.host_mac = reply.2[6..12].try_into().unwrap();
        guest
    }

    /// Gives the device buffers to receive in.
    fn fill(&mut self) {
        let pairs = self.driver.queues.len() / 2;
        for queue in self.driver.queues.iter_mut().take(2 * pairs).step_by(2) {
            while queue.outstanding() < 64 {
                queue.add(&[Buffer::Writable(70_000)]);
            }
        }
    }

    fn transmit(&mut self, header: &[u8; 12], frame: &[u8]) {
        self.transmit_by(0, header, frame);
    }

    fn transmit_by(&mut self, pair: usize, header: &[u8; 12], frame: &[u8]) {
        let queue = &mut self.driver.queues[2 * pair + 1];
        queue.add(&[Buffer::Readable(header), Buffer::Readable(frame)]);
        let end = Instant::now() + Duration::from_secs(5);
        while queue.take_used().is_none() {
            assert!(Instant::now() < end, "the frame is not taken");
            self.inline.step(10).unwrap();
        }
    }

    /// The next frame that is `wanted`, its header, and the queue pair that it came by. Others are dropped.
    fn wait(&mut self, what: &str, wanted: impl Fn(&[u8], &[u8]) -> bool) -> (usize, Vec<u8>, Vec<u8>) {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            for index in (0..self.driver.queues.len() & !1).step_by(2) {
                while let Some(used) = self.driver.queues[index].take_used() {
                    let (header, frame) = used.data[..used.written as usize].split_at(12);
                    if wanted(header, frame) {
                        return (index / 2, header.to_vec(), frame.to_vec());
                    }
                }
            }
            assert!(Instant::now() < end, "no {what} comes");
            self.fill();
            self.inline.step(10).unwrap();
        }
    }

    /// Waits for a packet of `protocol` to `port`; returns what [`Guest::wait`] does.
    fn wait_ip(&mut self, protocol: u8, port: u16) -> (usize, Vec<u8>, Vec<u8>) {
        let is_wanted = |_: &[u8], frame: &[u8]| {
            frame[12..14] == [8, 0] && frame[23] == protocol && frame[36..38] == port.to_be_bytes()
        };
        self.wait("packet", is_wanted)
    }
}

#[test]
fn the_host_answers_arp_and_ping() {
    in_namespace(|| {
        for refused in [0, EVENT_IDX, MRG_RXBUF, LARGE] {
            let mut guest = Guest::new(1, refused);
            for size in [0, 56, 1_472] {
                let payload = Random(size as u64 + 1).frame(size);
                guest.transmit(&PLAIN, &net::icmp_echo(guest.host_mac, &payload));
                let (_, _, frame) = guest.wait("echo", |_, frame| frame[12..14] == [8, 0] && frame[23] == 1);
                assert_eq!((frame[34], &frame[42..42 + size]), (0, &payload[..]));
            }
        }
    });
}

#[test]
fn datagrams_of_random_sizes_pass_both_ways() {
    in_namespace(|| {
        let mut guest = Guest::new(1, 0);
        let socket = UdpSocket::bind((HOST, 5_000)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut random = Random(17);
        let mut buffer = [0; 2_000];
        for _ in 0..200 {
            let payload = random.frame_up_to(1_472);
            guest.transmit(&UDP_SUM, &net::udp(guest.host_mac, 6_000, 5_000, &payload));
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (&payload[..], (GUEST, 6_000).into()));
            let payload = random.frame_up_to(1_472);
            socket.send_to(&payload, (GUEST, 6_000)).unwrap();
            let (_, _, frame) = guest.wait_ip(17, 6_000);
            assert_eq!(frame[42..], payload);
        }
        assert_eq!(metric(&guest.device, "tx_refused"), 0);
    });
}

/// The guest connects to the host, and both send more than a packet takes. Returns the frames of the host's data.
fn stream(guest: &mut Guest) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (syn, ack) = (2, 16);
    let ports = (7_000, 5_000);
    let listener = TcpListener::bind((HOST, ports.1)).unwrap();
    guest.transmit(&TCP_SUM, &net::tcp(guest.host_mac, ports, (100, 0), syn, &[]));
    let (_, _, frame) = guest.wait_ip(6, ports.0);
    assert_eq!(frame[47] & 0x12, 0x12, "SYN and ACK");
    let theirs = u32::from_be_bytes(frame[38..42].try_into().unwrap()).wrapping_add(1);
    guest.transmit(&TCP_SUM, &net::tcp(guest.host_mac, ports, (101, theirs), ack, &[]));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();

    // One frame, to be cut by the host into segments of 1,460 bytes (VIRTIO 1.2, 5.1.6.2).
    let sent = Random(31).frame(40_000);
    let header = [1, 1, 54, 0, 0xb4, 0x05, 34, 0, 16, 0, 0, 0];
    guest.transmit(&header, &net::tcp(guest.host_mac, ports, (101, theirs), ack | 8, &sent));
    let mut got = vec![0; sent.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == sent);

    let sent = Random(32).frame(5_000);
    stream.write_all(&sent).unwrap();
    let (mut got, mut frames) = (Vec::<u8>::new(), Vec::new());
    while got.len() < sent.len() {
        let (_, header, frame) = guest.wait_ip(6, ports.0);
        // As far as its packet goes: short ones are filled up.
        let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let data = &frame[34 + usize::from(frame[46] >> 4) * 4..end];
        let at = u32::from_be_bytes(frame[38..42].try_into().unwrap()).wrapping_sub(theirs);
        if at as usize == got.len() && !data.is_empty() {
            got.extend(data);
            frames.push((header, frame));
        }
    }
    assert!(got == sent);
    frames
}

#[test]
fn large_segments_are_cut_by_whom_they_are_meant_for() {
    in_namespace(|| {
        let frames = stream(&mut Guest::new(1, 0));
        // A guest that does not name its largest segment gets 536 bytes.
        let is_large = |(header, frame): &(Vec<u8>, Vec<u8>)| {
            header[..2] == [1, 1] && header[4..6] == 536_u16.to_le_bytes() && frame.len() > 54 + 536
        };
        assert!(frames.iter().any(is_large), "none is TCP over IPv4 to be cut");
    });
}

#[test]
fn a_guest_that_wants_no_offloads_gets_whole_packets() {
    in_namespace(|| {
        for (header, frame) in stream(&mut Guest::new(1, LARGE | GUEST_CSUM)) {
            assert!(frame.len() <= 54 + 536);
            assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        }
    });
}

#[test]
fn wrong_headers_and_frames_are_refused_and_hurt_nobody() {
    in_namespace(|| {
        let mut guest = Guest::new(1, 0);
        let frame = net::icmp_echo(guest.host_mac, &[0; 56]);
        let before = metric(&guest.device, "tx_refused");
        for header in [
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            [0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            guest.transmit(&header, &frame);
        }
        assert_eq!(metric(&guest.device, "tx_refused"), before + 3);
        let mut random = Random(41);
        for _ in 0..2_000 {
            let header = random.frame(12).try_into().unwrap();
            let frame = random.frame_up_to(3_000);
            guest.transmit(&header, &frame);
        }
        guest.transmit(&PLAIN, &frame);
        guest.wait("echo", |_, frame| frame[12..14] == [8, 0] && frame[23] == 1);
    });
}

#[test]
fn a_tap_that_is_down_refuses_frames_until_it_is_up() {
    in_namespace(|| {
        let mut guest = Guest::new(1, 0);
        let frame = net::icmp_echo(guest.host_mac, &[0; 56]);
        net::set_up("tap0", false);
        let before = metric(&guest.device, "tx_refused");
        guest.transmit(&PLAIN, &frame);
        assert_eq!(metric(&guest.device, "tx_refused"), before + 1);
        assert!(guest.device.control().is_link_up());
        net::set_up("tap0", true);
        guest.transmit(&PLAIN, &net::arp_request());
        guest.transmit(&PLAIN, &frame);
        guest.wait("echo", |_, frame| frame[12..14] == [8, 0] && frame[23] == 1);
    });
}

#[test]
fn a_tap_that_is_deleted_takes_the_link_down_and_nothing_spins() {
    in_namespace(|| {
        for (pairs, is_receiving) in [(1, true), (1, false), (2, true)] {
            let mut guest = Guest::new(pairs, 0);
            if !is_receiving {
                // Out of buffers, so that the tap is not watched.
                let socket = UdpSocket::bind((HOST, 5_000)).unwrap();
                for _ in 0..100 {
                    socket.send_to(&[1; 100], (GUEST, 6_000)).unwrap();
                }
                guest.inline.run(1_000).unwrap();
                assert!(metric(&guest.device, "rx_starved") > 0);
            }
            net::delete("tap0");
            assert!(guest.inline.run(1_000).unwrap() < 20, "busy with nothing");
            let frame = net::icmp_echo(guest.host_mac, &[0; 56]);
            let before = metric(&guest.device, "tx_dropped_link_down");
            for _ in 0..100 {
                guest.transmit(&PLAIN, &frame);
            }
            assert_eq!(metric(&guest.device, "tx_dropped_link_down"), before + 100);
            assert!(!guest.device.control().is_link_up());
            guest.fill();
            assert!(guest.inline.run(1_000).unwrap() < 20, "busy with nothing");
            // Another driver finds the link down.
            drop(guest.inline.stop());
            guest.device.reset();
            let driver = MockDriver::new(&guest.device);
            let workers = guest.device.activate(driver.activation()).unwrap();
            assert!(Inline::start(workers).unwrap().run(1_000).unwrap() < 20);
            assert!(!guest.device.control().is_link_up());
        }
    });
}

#[test]
fn a_tap_that_is_deleted_before_there_is_a_driver_is_a_link_that_is_down() {
    in_namespace(|| {
        for pairs in [1, 2] {
            let mut device = Net::new(Backend::tap("tap0", pairs).unwrap(), None, None).unwrap();
            // Another driver left both pairs active.
            device.restore(&[pairs as u8, 0]).unwrap();
            net::delete("tap0");
            let driver = MockDriver::new(&device);
            let mut inline = Inline::start(device.activate(driver.activation()).unwrap()).unwrap();
            assert!(inline.run(1_000).unwrap() < 20);
            assert!(!device.control().is_link_up());
        }
    });
}

#[test]
fn frames_come_by_the_queue_pairs_that_the_driver_chose() {
    in_namespace(|| {
        let mut guest = Guest::new(2, 0);
        let socket = UdpSocket::bind((HOST, 5_000)).unwrap();
        let mut buffer = [0; 100];
        for (pairs, expected) in [(1_u8, 0), (2, 1), (1, 0), (2, 1)] {
            guest.driver.queues[4].add(&[Buffer::Readable(&[4, 0, pairs, 0]), Buffer::Writable(1)]);
            guest.inline.run(1_000).unwrap();
            assert_eq!(guest.driver.queues[4].take_used().unwrap().data, [0], "{pairs} pairs");
            // The host answers by the queue pair that the question came by, if it may.
            for port in 6_000..6_010 {
                guest.transmit_by(1, &UDP_SUM, &net::udp(guest.host_mac, port, 5_000, b"question"));
                let (_, from) = socket.recv_from(&mut buffer).unwrap();
                socket.send_to(b"answer", from).unwrap();
                assert_eq!(guest.wait_ip(17, port).0, expected, "{pairs} pairs");
            }
        }
        // It resets a queue of the second pair, and enables it again.
        let workers = guest.inline.stop();
        for state in workers.iter().flat_map(|worker| worker.queues()) {
            guest.driver.queues[usize::from(state.index)].state = state;
        }
        drop(workers);
        let mut activation = guest.driver.activation();
        activation.queues.retain(|queue| queue.index() != 2);
        drop(guest.device.activate(activation).unwrap());
        guest.inline = Inline::start(guest.device.activate(guest.driver.activation()).unwrap()).unwrap();
        guest.transmit_by(1, &UDP_SUM, &net::udp(guest.host_mac, 6_000, 5_000, b"question"));
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(b"answer", from).unwrap();
        assert_eq!(guest.wait_ip(17, 6_000).0, 1);
        // A new driver begins with one.
        drop(guest.inline.stop());
        guest.device.reset();
        guest.driver = MockDriver::new(&guest.device);
        guest.inline = Inline::start(guest.device.activate(guest.driver.activation()).unwrap()).unwrap();
        guest.fill();
        guest.transmit_by(1, &UDP_SUM, &net::udp(guest.host_mac, 6_000, 5_000, b"question"));
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(b"answer", from).unwrap();
        assert_eq!(guest.wait_ip(17, 6_000).0, 0);
    });
}

#[test]
fn a_tap_that_cannot_be_had_is_refused_with_the_reason() {
    in_namespace(|| {
        let single = Backend::tap("tap0", 1).unwrap();
        let multi = Backend::tap("tap1", 3).unwrap();
        let error = Backend::tap("tap0", 2).unwrap_err();
        assert!(matches!(error, Error::MultiQueue { multi_queue: false, .. }), "{error}");
        let error = Backend::tap("tap1", 1).unwrap_err();
        assert!(matches!(error, Error::MultiQueue { multi_queue: true, .. }), "{error}");
        let error = Backend::tap("tap0", 1).unwrap_err();
        let Error::Attach { name, source } = error else { panic!("{error}") };
        assert_eq!((&name[..], source.raw_os_error()), ("tap0", Some(libc::EBUSY)));
        let error = Backend::tap("lo", 1).unwrap_err();
        let Error::Attach { name, source } = error else { panic!("{error}") };
        assert_eq!((&name[..], source.raw_os_error()), ("lo", Some(libc::EINVAL)));
        // What is given up can be had again.
        drop((single, multi));
        Backend::tap("tap0", 2).unwrap();
        Backend::tap("tap1", 1).unwrap();
    });
}
