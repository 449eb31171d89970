#![no_main]
//! A guest sends any frames, and those of peers that know TCP more or less, takes frames or does not, and lets time pass.
//! Checked: what comes back is well-formed and for one of the peers; when there is nothing to send, there is nothing to do at
//! once either; when the guest falls silent, everything comes to an end; and then one that keeps to the rules is served.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use kindling_metadata::{DEFAULT_LIMIT, Endpoint, EndpointConfig, MAX_FRAME_BYTES, Service, Version};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

const PEERS: usize = 80;

/// More frames than there can be at once: replies, and what is in the buffers of all connections, in the smallest segments.
const MAX_FRAMES: usize = 64 + 64 * 100;

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

#[derive(Arbitrary, Debug)]
enum Payload {
    None,
    Bytes(Vec<u8>),
    /// So many bytes of no meaning.
    Fill(u16),
    Get(u8),
    Put,
}

#[derive(Arbitrary, Debug)]
enum Action {
    /// A frame as it is.
    Raw(Vec<u8>),
    /// What is behind the header of IPv4.
    Ipv4(u8, Vec<u8>),
    Arp,
    Syn {
        peer: u8,
        seq: u32,
        options: Vec<u8>,
    },
    /// All of a handshake, as it should be.
    Open(u8),
    /// A segment as it should be.
    Send {
        peer: u8,
        payload: Payload,
    },
    /// A segment with numbers that are off by so much, after which the peer goes on as if it had arrived.
    Segment {
        peer: u8,
        seq: i16,
        ack: i16,
        flags: u8,
        window: u16,
        payload: Payload,
    },
    /// The peer acknowledges what it got.
    Ack(u8),
    /// And wants no more.
    Finish(u8),
    Take(u8),
    /// Takes and acknowledges all that there is for the peer, up to so many segments.
    Read(u8, u8),
    Wait(u16),
    Document(u16),
    Version(bool),
}

impl Payload {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Fill(len) => vec![b'a'; usize::from(*len).min(65_000)],
            Self::Get(path) => {
                let path = ["/", "/id", "/large", "/none"][usize::from(path % 4)];
                format!("GET {path} HTTP/1.1\r\nAccept: application/json\r\n\r\n").into_bytes()
            }
            Self::Put => {
                b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 9\r\n\r\n".to_vec()
            }
        }
    }
}

/// Where a peer stands.
#[derive(Clone, Copy, Default)]
struct Peer {
    seq: u32,
    ack: u32,
}

struct Rig {
    service: Arc<Service>,
    endpoint: Endpoint,
    now: Instant,
    peers: [Peer; PEERS],
}

fn address(peer: usize) -> Ipv4Addr {
    // Some share an address.
    Ipv4Addr::new(10, 0, 0, 1 + peer as u8 / 4)
}

/// Mostly one of a few, and otherwise any.
fn which(peer: u8) -> usize {
    usize::from(peer.checked_sub(u8::MAX - PEERS as u8).unwrap_or(peer % 3)) % PEERS
}

fn ipv4(from: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()).min(65_535) as u16;
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0], &len.to_be_bytes()].concat();
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(from.octets());
    frame.extend([169, 254, 169, 254]);
    frame.extend(payload);
    frame
}

fn tcp(peer: usize, at: Peer, flags: u8, window: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let options = &options[..options.len().min(40) & !3];
    let mut segment = [(1_000 + peer as u16).to_be_bytes(), 80_u16.to_be_bytes()].concat();
    segment.extend([at.seq.to_be_bytes(), at.ack.to_be_bytes()].concat());
    segment.extend([((20 + options.len()) * 4) as u8, flags]);
    segment.extend(window.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(options);
    segment.extend(payload);
    ipv4(address(peer), 6, &segment)
}

/// The sum of RFC 1071, which is 0 over what includes its own complement.
fn check_sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| {
        part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Rig {
    fn receive(&self, frame: &[u8]) {
        self.endpoint.receive(self.now, frame);
    }

    /// Takes a frame if there is one, and tells its peer of it; returns whether there was one, and its payload.
    fn take(&mut self) -> Option<(usize, Vec<u8>)> {
        let mut buffer = [0; MAX_FRAME_BYTES];
        let Some(len) = self.endpoint.next_frame(self.now, &mut buffer) else {
            let timeout = self.endpoint.next_timeout(self.now);
            assert_ne!(timeout, Some(Duration::ZERO), "nothing to send, and yet something to do");
            return None;
        };
        let frame = &buffer[..len];
        assert_eq!(frame[6..12], [0x06, 0x01, 0x23, 0x45, 0x67, 0x01]);
        if frame[12..14] == [8, 6] {
            assert_eq!(len, 42);
            return Some((PEERS, Vec::new()));
        }
        let packet = &frame[14..];
        assert_eq!(check_sum(&[&packet[..20]]), 0);
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
        let segment = &packet[20..];
        let pseudo = (segment.len() as u16).to_be_bytes();
        assert_eq!(check_sum(&[&packet[12..20], &[0, 6], &pseudo, segment]), 0);
        let field =
            |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
        let peer = usize::from(u16::from_be_bytes([segment[2], segment[3]])).wrapping_sub(1_000);
        let payload = segment[usize::from(segment[12] >> 4) * 4..].to_vec();
        if let Some(known) = self.peers.get_mut(peer) {
            let flags = segment[13];
            let len = payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            known.ack = field(4).wrapping_add(len);
            if flags & SYN != 0 {
                known.seq = field(8);
            }
        }
        Some((peer, payload))
    }

    /// Takes frames up to one for a peer that is `wanted`. Without any from the guest and without time, they come to an end.
    fn take_until(&mut self, wanted: impl Fn(usize) -> bool) {
        for _ in 0..MAX_FRAMES {
            if self.take().is_none_or(|(peer, _)| wanted(peer)) {
                return;
            }
        }
        unreachable!("there are frames without end");
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Raw(frame) => {
                // It may be for us, or not.
                let _ = self.endpoint.is_for_us(frame);
                self.receive(frame);
            }
            Action::Ipv4(protocol, payload) => self.receive(&ipv4(address(0), *protocol, payload)),
            Action::Arp => {
                let from = [2, 0, 0, 0, 0, 1, 10, 0, 0, 1];
                let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &from, &[0; 6], &[169, 254, 169, 254]].concat();
                self.receive(&[&[0xff; 6][..], &from[..6], &[8, 6], &arp].concat());
            }
            Action::Syn { peer, seq, options } => {
                let peer = which(*peer);
                self.receive(&tcp(peer, Peer { seq: *seq, ack: 0 }, SYN, 0xffff, options, &[]));
            }
            Action::Open(peer) => {
                let number = which(*peer);
                let seq = self.peers[number].seq.wrapping_add(1_000_000);
                self.receive(&tcp(number, Peer { seq, ack: 0 }, SYN, 0xffff, &[], &[]));
                self.take_until(|to| to == number);
                self.act(&Action::Ack(*peer));
            }
            Action::Send { peer, payload } => {
                let bytes = payload.bytes();
                let peer = which(*peer);
                self.receive(&tcp(peer, self.peers[peer], ACK, 0xffff, &[], &bytes));
                self.peers[peer].seq = self.peers[peer].seq.wrapping_add(bytes.len() as u32);
            }
            Action::Segment { peer, seq, ack, flags, window, payload } => {
                let peer = which(*peer);
                let Peer { seq: next_seq, ack: next_ack } = self.peers[peer];
                let at = Peer {
                    seq: next_seq.wrapping_add_signed((*seq).into()),
                    ack: next_ack.wrapping_add_signed((*ack).into()),
                };
                let bytes = payload.bytes();
                self.receive(&tcp(peer, at, *flags, *window, &[], &bytes));
                self.peers[peer].seq = next_seq.wrapping_add(bytes.len() as u32 + u32::from(flags & FIN));
            }
            Action::Ack(peer) => {
                let peer = which(*peer);
                self.receive(&tcp(peer, self.peers[peer], ACK, 0xffff, &[], &[]));
            }
            Action::Finish(peer) => {
                let peer = which(*peer);
                self.receive(&tcp(peer, self.peers[peer], FIN | ACK, 0xffff, &[], &[]));
                self.peers[peer].seq = self.peers[peer].seq.wrapping_add(1);
            }
            Action::Read(peer, count) => {
                for _ in 0..*count {
                    if self.take().is_none() {
                        break;
                    }
                    self.act(&Action::Ack(*peer));
                }
            }
            Action::Take(count) => {
                for _ in 0..*count {
                    if self.take().is_none() {
                        break;
                    }
                }
            }
            Action::Wait(milliseconds) => self.now += Duration::from_millis((*milliseconds).into()),
            Action::Document(len) => {
                let len = usize::from(*len).min(50_000);
                assert!(self.service.put(json!({"id": "i-1", "large": "x".repeat(len)})).is_ok());
            }
            Action::Version(is_second) => {
                self.service.configure(if *is_second { Version::V2 } else { Version::V1 }, false);
            }
        }
    }

    /// A peer that keeps to the rules reads the document.
    fn read(&mut self) {
        let request = b"GET /id HTTP/1.1\r\n\r\n";
        self.peers[0] = Peer::default();
        self.receive(&tcp(0, Peer { seq: 5, ack: 0 }, SYN, 0xffff, &[], &[]));
        assert!(self.take().is_some_and(|(peer, _)| peer == 0));
        assert_eq!(self.peers[0].seq, 6);
        self.receive(&tcp(0, self.peers[0], ACK, 0xffff, &[], request));
        assert!(self.take().is_some_and(|(peer, payload)| peer == 0 && payload.ends_with(b"\r\n\r\ni-1")));
    }
}

fuzz_target!(|actions: Vec<Action>| {
    let Ok(service) = Service::new(DEFAULT_LIMIT) else { unreachable!() };
    let Ok(endpoint) = Endpoint::new(EndpointConfig::default(), Arc::clone(&service)) else { unreachable!() };
    assert!(service.put(json!({"id": "i-1", "large": "x".repeat(20_000)})).is_ok());
    let mut rig = Rig { service, endpoint, now: Instant::now(), peers: [Peer::default(); PEERS] };
    for action in actions.iter().take(512) {
        rig.act(action);
    }
    let end = rig.now + Duration::from_secs(120);
    for _ in 0..100_000 {
        rig.take_until(|_| false);
        match rig.endpoint.next_timeout(rig.now) {
            Some(time) => rig.now += time,
            None => break,
        }
    }
    assert_eq!(rig.endpoint.next_timeout(rig.now), None, "something never comes to an end");
    assert!(rig.now < end, "something takes too long to come to an end");
    rig.service.configure(Version::V1, false);
    rig.read();
});
