//! Frames made by hand, by peers that keep to no rules.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    ACK, FIN, GUEST, Got, PSH, RST, SYN, endpoint, ipv4, metric, next, segment, segment_to, service,
};
use kindling_metadata::{
    DEFAULT_ADDRESS, Endpoint, EndpointConfig, Error, MAX_DEPTH, MAX_FRAME_BYTES, Service, Version,
};
use serde_json::json;

struct Rig {
    service: Arc<Service>,
    endpoint: Endpoint,
    now: Instant,
}

/// A connection made by hand.
#[derive(Clone, Copy)]
struct Peer {
    from: (Ipv4Addr, u16),
    seq: u32,
    ack: u32,
}

impl Rig {
    fn new() -> Self {
        let service = service(Version::V1, json!({"id": "i-1", "data": "x".repeat(40_000)}));
        Self { endpoint: endpoint(&service), service, now: Instant::now() }
    }

    fn receive(&self, frame: &[u8]) {
        self.endpoint.receive(self.now, frame);
    }

    fn next(&self) -> Option<Got> {
        next(&self.endpoint, self.now)
    }

    fn drain(&self) -> Vec<Got> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn metric(&self, name: &str) -> u64 {
        metric(&self.service, name)
    }

    fn connect(&self, port: u16) -> Peer {
        let from = (GUEST, port);
        self.receive(&segment(from, 1_000, 0, SYN, &[]));
        let got = self.next().expect("a reply to SYN");
        assert_eq!((got.to_port, got.ack, got.flags), (port, 1_001, SYN | ACK));
        let peer = Peer { from, seq: 1_001, ack: got.seq.wrapping_add(1) };
        self.receive(&peer.segment(ACK, &[]));
        assert_eq!(self.next(), None);
        peer
    }

    /// Whether there is a connection that answers.
    fn is_open(&self, peer: &mut Peer) -> bool {
        let request = b"GET /id HTTP/1.1\r\n\r\n";
        self.receive(&peer.segment(PSH | ACK, request));
        let is_answer = |got: &Got| got.payload.ends_with(b"i-1");
        let Some(got) = self.drain().into_iter().find(is_answer) else { return false };
        peer.seq = peer.seq.wrapping_add(request.len() as u32);
        peer.ack = got.seq.wrapping_add(got.payload.len() as u32);
        self.receive(&peer.segment(ACK, &[]));
        true
    }
}

impl Peer {
    fn segment(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        segment(self.from, self.seq, self.ack, flags, payload)
    }
}

#[test]
fn an_address_of_no_single_host_is_refused() {
    let service = service(Version::V1, json!({}));
    for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
        let config = EndpointConfig { address, ..EndpointConfig::default() };
        let error = Endpoint::new(config, Arc::clone(&service)).err();
        assert!(matches!(error, Some(Error::Address(at)) if at == address));
    }
}

#[test]
fn what_is_cut_or_malformed_is_dropped_and_counted() {
    let rig = Rig::new();
    let syn = segment((GUEST, 1), 5, 0, SYN, &[]);
    let mut bad: Vec<Vec<u8>> = (0..syn.len()).map(|len| syn[..len].to_vec()).collect();
    // Version, header length, total length, fragments, protocol, length of the TCP header.
    for (at, value) in [
        (14, 0x65),
        (14, 0x44),
        (14, 0x4f),
        (16, 0xff),
        (17, 19),
        (20, 0x20),
        (21, 1),
        (23, 17),
        (46, 0),
        (46, 0xf0),
    ] {
        let mut frame = syn.clone();
        frame[at] = value;
        bad.push(frame);
    }
    bad.push(ipv4(GUEST, 1, &[8, 0, 0, 0, 0, 0, 0, 0]));
    for frame in &bad {
        rig.receive(frame);
        assert_eq!(rig.next(), None, "{frame:02x?}");
    }
    assert_eq!(rig.metric("rx_frames"), bad.len() as u64);
    assert_eq!(rig.metric("rx_dropped_malformed"), bad.len() as u64);
    assert_eq!(rig.metric("connections"), 0);
    rig.connect(1);
}

#[test]
fn senders_that_cannot_be_answered_get_no_connection() {
    let rig = Rig::new();
    for from in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1), DEFAULT_ADDRESS] {
        rig.receive(&segment((from, 5), 5, 0, SYN, &[]));
        rig.receive(&segment((from, 0), 5, 0, SYN, &[]));
        let got = rig.drain();
        assert!(got.is_empty() || from == DEFAULT_ADDRESS, "{from}: {got:?}");
    }
}

#[test]
fn segments_of_no_connection_are_reset_but_resets_are_not() {
    let rig = Rig::new();
    let from = (GUEST, 7);
    for (frame, seq, ack) in [
        (segment(from, 100, 555, ACK, b"GET"), 555, 0),
        (segment(from, 100, 555, FIN | ACK, &[]), 555, 0),
        (segment_to(81, from, 100, 0, SYN, &[]), 0, 101),
    ] {
        rig.receive(&frame);
        let got = rig.next().expect("a reset");
        assert_eq!((got.flags & RST, got.seq, got.ack), (RST, seq, ack));
    }
    rig.receive(&segment(from, 100, 555, RST, &[]));
    rig.receive(&segment(from, 100, 555, SYN | RST, &[]));
    assert_eq!(rig.next(), None);
    assert_eq!(rig.endpoint.next_timeout(rig.now), None);
}

#[test]
fn a_segment_of_64_kib_as_offloads_make_it_is_taken_as_far_as_the_window_goes() {
    let rig = Rig::new();
    let mut peer = rig.connect(1);
    let fill = format!("GET /id HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(3_000));
    let mut bytes = fill.repeat(22).into_bytes();
    bytes.truncate(65_495);
    let (mut sent, mut answers) = (0, 0);
    while sent < bytes.len() {
        rig.receive(&peer.segment(PSH | ACK, &bytes[sent..]));
        for got in rig.drain() {
            sent += got.ack.wrapping_sub(peer.seq) as usize;
            peer.seq = got.ack;
            peer.ack = got.seq.wrapping_add(got.payload.len() as u32);
            answers += usize::from(got.payload.ends_with(b"i-1"));
        }
    }
    assert_eq!(answers, bytes.len() / fill.len());
}

#[test]
fn segments_outside_the_window_change_nothing() {
    let rig = Rig::new();
    let mut peer = rig.connect(1);
    for seq in [peer.seq.wrapping_sub(70_000), peer.seq.wrapping_add(70_000), peer.seq ^ 0x8000_0000] {
        for flags in [ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, SYN, SYN | ACK] {
            let other = Peer { seq, ..peer };
            // A SYN alone is another matter: it is that of a peer that was restarted.
            if flags != SYN {
                rig.receive(&other.segment(flags, b"GET /data HTTP/1.1\r\n\r\n"));
            }
        }
    }
    for ack in [peer.ack.wrapping_add(100_000), peer.ack.wrapping_sub(100_000)] {
        rig.receive(&Peer { ack, ..peer }.segment(PSH | ACK, b"GET /data HTTP/1.1\r\n\r\n"));
    }
    assert!(rig.drain().iter().all(|got| got.payload.is_empty() && got.flags == ACK));
    assert!(rig.is_open(&mut peer));
    assert_eq!(rig.metric("requests"), 1);
}

#[test]
fn bytes_come_in_order_whatever_order_their_segments_have() {
    let rig = Rig::new();
    let peer = rig.connect(1);
    let request = b"GET /id HTTP/1.1\r\nx: 0123456789\r\n\r\n";
    let pieces: Vec<_> = request.chunks(9).enumerate().collect();
    for at in [2, 1, 2, 3, 0, 1] {
        let (index, piece) = pieces[at];
        let seq = peer.seq + 9 * index as u32;
        rig.receive(&Peer { seq, ..peer }.segment(ACK, piece));
    }
    assert!(rig.drain().iter().any(|got| got.payload.ends_with(b"i-1")));
}

#[test]
fn a_peer_that_was_restarted_gets_a_new_connection_by_the_same_port() {
    let rig = Rig::new();
    let mut old = rig.connect(1);
    assert!(rig.is_open(&mut old));
    rig.receive(&segment((GUEST, 1), 90_000, 0, SYN, &[]));
    let got = rig.drain();
    assert_eq!((got.len(), got[0].flags, got[0].ack), (1, SYN | ACK, 90_001));
    let mut new = Peer { from: (GUEST, 1), seq: 90_001, ack: got[0].seq.wrapping_add(1) };
    rig.receive(&new.segment(ACK, &[]));
    assert!(rig.is_open(&mut new));
    assert_eq!(rig.metric("connections"), 2);
    // The same SYN again is a frame that came twice.
    rig.receive(&segment((GUEST, 1), 90_000, 0, SYN, &[]));
    assert!(rig.is_open(&mut new));
    assert_eq!(rig.metric("connections"), 2);
}

#[test]
fn a_flood_of_syns_stops_no_connection_and_new_ones_for_a_moment_only() {
    let mut rig = Rig::new();
    let mut old = rig.connect(1);
    let mut flood = 0_u32;
    let mut more = |rig: &Rig| {
        for _ in 0..1_000 {
            flood += 1;
            let from = (Ipv4Addr::from(0x0a00_0000 + flood), flood as u16 | 1);
            rig.receive(&segment(from, flood, 0, SYN, &[]));
            rig.drain();
        }
    };
    let syn = segment((GUEST, 2), 1_000, 0, SYN, &[]);
    more(&rig);
    assert!(rig.is_open(&mut old));
    rig.receive(&syn);
    assert_eq!(rig.drain(), []);
    // It is sent again, while others come too.
    rig.now += Duration::from_secs(1);
    assert!(rig.is_open(&mut old));
    rig.receive(&syn);
    let got = rig.drain().into_iter().find(|got| got.to_port == 2 && got.flags == SYN | ACK).unwrap();
    more(&rig);
    let mut peer = Peer { from: (GUEST, 2), seq: 1_001, ack: got.seq.wrapping_add(1) };
    rig.receive(&peer.segment(ACK, &[]));
    more(&rig);
    assert!(rig.is_open(&mut peer) && rig.is_open(&mut old));
    assert_eq!(rig.metric("connections_evicted"), 63);
}

#[test]
fn connections_in_use_do_not_give_way_and_idle_ones_do_oldest_first() {
    let mut rig = Rig::new();
    let mut peers: Vec<_> = (1..=64).map(|port| rig.connect(port)).collect();
    rig.receive(&segment((GUEST, 100), 5, 0, SYN, &[]));
    assert_eq!(rig.next(), None, "all are new");
    assert_eq!(rig.metric("rx_dropped_busy"), 1);
    rig.now += Duration::from_millis(200);
    for peer in &mut peers[1..] {
        assert!(rig.is_open(peer));
    }
    rig.now += Duration::from_millis(100);
    rig.receive(&segment((GUEST, 100), 5, 0, SYN, &[]));
    let got = rig.drain();
    let flags: Vec<_> = got.iter().map(|got| (got.to_port, got.flags & !ACK)).collect();
    assert_eq!(flags, [(1, RST), (100, SYN)]);
    assert!(!rig.is_open(&mut peers[0]));
    for peer in &mut peers[1..] {
        assert!(rig.is_open(peer));
    }
}

#[test]
fn who_ends_a_connection_is_not_waited_for() {
    let rig = Rig::new();
    for port in 1..=500 {
        let peer = rig.connect(port);
        match port % 3 {
            0 => rig.receive(&peer.segment(RST | ACK, &[])),
            1 => {
                rig.receive(&peer.segment(FIN | ACK, &[]));
                let fin = rig.next().unwrap();
                assert_eq!(fin.flags, FIN | ACK);
                let last = Peer { seq: peer.seq + 1, ack: peer.ack.wrapping_add(1), ..peer };
                rig.receive(&last.segment(ACK, &[]));
            }
            _ => {
                let request = b"GET /id HTTP/1.0\r\n\r\n";
                rig.receive(&peer.segment(PSH | ACK, request));
                let got = rig.next().unwrap();
                let ack = got.seq.wrapping_add(got.payload.len() as u32 + 1);
                let last = Peer { seq: peer.seq + request.len() as u32, ack, ..peer };
                rig.receive(&last.segment(FIN | ACK, &[]));
                assert_eq!(rig.next().unwrap().flags, ACK);
            }
        }
        assert_eq!(rig.next(), None);
        assert_eq!(rig.endpoint.next_timeout(rig.now), None, "nothing is left of {port}");
    }
    assert_eq!(rig.metric("connections_evicted"), 0);
}

#[test]
fn answers_that_differ_are_held_up_to_a_bound_only() {
    // Each level is nearly as long as the one around it.
    let mut document = json!("x".repeat(45_000));
    for level in (0..20).rev() {
        document = json!({format!("k{level}"): document});
    }
    let rig = Rig::new();
    rig.service.put(document).unwrap();
    let mut path = String::new();
    let (mut whole, mut busy) = (0, 0);
    for level in 0..20_u16 {
        let peer = rig.connect(level + 1);
        let request = format!("GET {path}/ HTTP/1.1\r\nAccept: application/json\r\n\r\n");
        rig.receive(&peer.segment(PSH | ACK, request.as_bytes()));
        path += &format!("/k{level}");
        let first = rig.drain().remove(0).payload;
        whole += usize::from(first.starts_with(b"HTTP/1.1 200 "));
        busy += usize::from(first.starts_with(b"HTTP/1.1 503 "));
    }
    assert_eq!((whole, busy), (5, 15));
    assert_eq!(rig.metric("requests_busy"), 15);
    // What others have already costs nothing.
    for port in 100..120 {
        let peer = rig.connect(port);
        rig.receive(&peer.segment(PSH | ACK, b"GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n"));
        assert!(rig.drain()[0].payload.starts_with(b"HTTP/1.1 200 "));
    }
}

#[test]
fn replies_that_nobody_takes_do_not_pile_up() {
    let rig = Rig::new();
    for port in 1..=10_000 {
        rig.receive(&segment((GUEST, port), 5, 5, ACK, &[]));
    }
    assert_eq!(rig.metric("tx_dropped"), 10_000 - 64);
    assert_eq!(rig.drain().len(), 64);
}

#[test]
fn a_buffer_too_small_for_any_frame_gets_none() {
    let rig = Rig::new();
    rig.receive(&segment((GUEST, 1), 5, 0, SYN, &[]));
    assert_eq!(rig.endpoint.next_frame(rig.now, &mut [0; MAX_FRAME_BYTES - 1]), None);
    assert_eq!(rig.endpoint.next_frame(rig.now, &mut []), None);
    assert!(rig.endpoint.next_frame(rig.now, &mut [0; MAX_FRAME_BYTES]).is_some());
}

#[test]
fn the_deepest_document_is_answered_with_little_stack() {
    // A device's worker has 128 KiB.
    const STACK_BYTES: usize = 112 << 10;
    let rig = Rig::new();
    let _service = Arc::clone(&rig.service);
    rig.service.put((0..MAX_DEPTH).fold(json!(1), |value, _| json!({"a": value}))).unwrap();
    let peer = rig.connect(1);
    let read = move || {
        rig.receive(&peer.segment(PSH | ACK, b"GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n"));
        rig.drain().into_iter().flat_map(|got| got.payload).collect::<Vec<_>>()
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(read).unwrap();
    assert!(thread.join().unwrap().ends_with(&"}".repeat(MAX_DEPTH).into_bytes()));
}

#[test]
fn a_tiny_segment_size_gets_an_answer_all_the_same() {
    let rig = Rig::new();
    for size in [0_u16, 1, 47, 65_535] {
        let from = (GUEST, size | 1);
        let mut syn = segment(from, 1_000, 0, SYN, &[2, 4, size.to_be_bytes()[0], size.to_be_bytes()[1]]);
        syn[46] = 6 << 4;
        rig.receive(&syn);
        let got = rig.next().unwrap();
        let mut peer = Peer { from, seq: 1_001, ack: got.seq.wrapping_add(1) };
        rig.receive(&peer.segment(PSH | ACK, b"GET /id HTTP/1.1\r\n\r\n"));
        peer.seq += 20;
        let answer = rig.drain();
        assert!(answer.iter().all(|got| got.payload.len() <= 1_460));
        let bytes: Vec<u8> = answer.into_iter().flat_map(|got| got.payload).collect();
        assert!(bytes.ends_with(b"i-1"), "{size}");
        rig.receive(&peer.segment(RST, &[]));
        rig.drain();
    }
}
