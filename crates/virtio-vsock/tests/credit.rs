//! Credit, and that the worker sleeps while it is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::{Machine, Packet, is_closed, noise, op};
use kindling_virtio_device::COMMON_FEATURES;
use vm_memory::{Bytes, GuestAddress};

/// What the device says that it can buffer for a connection.
const BUFFER: u32 = 256 << 10;

/// Writes until the socket takes no more.
fn fill(mut stream: &UnixStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(len) => written += len,
            Err(_) => break,
        }
    }
    stream.set_nonblocking(false).unwrap();
    written
}

#[test]
fn a_guest_that_takes_nothing_gets_no_more_than_it_has_room_for() {
    let mut machine = Machine::new();
    machine.guest.buf_alloc = 50_000;
    let stream = machine.guest_to_host(9, 5);
    machine.guest.socket(9, 5).stalled = true;
    let bytes = noise(1, 1 << 20);
    let mut written = fill(&stream, &bytes);
    machine.run();
    let socket = machine.guest.socket(9, 5);
    // More than that is an assertion of the guest.
    assert_eq!(socket.received.len(), 50_000);
    assert_eq!(socket.credit_requests, 1, "it asks once");
    assert_eq!(machine.metric("credit_stalls"), 1);
    // More bytes of the host do not wake the device: there is nothing it could do with them.
    let before = machine.metric("events");
    written += fill(&stream, &bytes[written..]);
    assert_eq!((machine.run_device(), machine.metric("events")), (0, before));
    machine.guest.resume(9, 5);
    while machine.guest.socket(9, 5).received.len() < bytes.len() {
        machine.run();
        written += fill(&stream, &bytes[written..]);
    }
    assert!(machine.guest.socket(9, 5).received == bytes);
}

#[test]
fn a_guest_without_room_at_first_gets_its_bytes_later() {
    let mut machine = Machine::new();
    machine.guest.buf_alloc = 0;
    let mut stream = machine.guest_to_host(9, 5);
    stream.write_all(b"hello").unwrap();
    machine.run();
    assert!(machine.guest.socket(9, 5).received.is_empty());
    let socket = machine.guest.socket(9, 5);
    (socket.buf_alloc, socket.stalled) = (3, true);
    machine.guest.post(op::CREDIT_UPDATE, 9, 5, 0, &[]);
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, b"hel");
    machine.guest.resume(9, 5);
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, b"hello");
}

#[test]
fn a_slow_host_program_loses_nothing_and_stops_the_guest_in_time() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    let bytes = noise(2, 3 << 20);
    machine.guest.write(9, 5, &bytes);
    machine.run();
    let socket = machine.guest.socket(9, 5);
    assert_eq!(socket.credit(), 0, "the device's buffer is full");
    assert!(socket.sent() >= BUFFER && socket.sent() < bytes.len() as u32);
    // Nobody reads, nothing happens.
    let before = machine.metric("events");
    assert_eq!((machine.run_device(), machine.metric("events")), (0, before));
    let (mut read, mut reads) = (Vec::<u8>::new(), 0);
    let mut buffer = vec![0; 20_000];
    while read.len() < bytes.len() {
        let len = stream.read(&mut buffer).unwrap();
        read.extend(&buffer[..len]);
        reads += 1;
        machine.run();
    }
    assert!(read == bytes);
    let events = machine.metric("events") - before;
    assert!(events < 4 * reads, "{events} wake-ups for {reads} reads");
    let updates = machine.guest.socket(9, 5).credit_updates;
    assert!(updates <= bytes.len() / (BUFFER as usize / 4) + 1, "{updates} updates");
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset_and_no_other() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    let (other, port) = machine.host_to_guest(52);
    machine.guest.write(9, 5, &noise(3, 2 << 20));
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).credit(), 0);
    assert_eq!(machine.metric("bad_packets"), 0, "so far it was all right");
    machine.guest.send(&Packet::new(op::RW, 9, 5, b"x"));
    machine.run();
    assert!(machine.guest.socket(9, 5).reset);
    assert_eq!(machine.metric("bad_packets"), 1);
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest).unwrap();
    assert!(noise(3, 2 << 20).starts_with(&rest), "what it got was right");
    assert!(!is_closed(&other) && machine.guest.socket(port, 52).open);
}

#[test]
fn a_packet_that_is_bigger_than_all_credit_is_a_reset() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    machine.guest.send(&Packet::new(op::RW, 9, 5, &vec![0; BUFFER as usize + 1]));
    machine.run();
    assert!(machine.guest.socket(9, 5).reset && is_closed(&stream));
}

#[test]
fn a_packet_of_all_credit_is_taken() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.max_payload = BUFFER as usize;
    machine.guest.write(9, 5, &noise(4, BUFFER as usize));
    machine.run();
    let mut bytes = vec![0; BUFFER as usize];
    for piece in bytes.chunks_mut(1 << 16) {
        stream.read_exact(piece).unwrap();
        machine.run();
    }
    assert!(bytes == noise(4, BUFFER as usize));
}

#[test]
fn a_request_for_credit_is_answered() {
    let mut machine = Machine::new();
    let _stream = machine.guest_to_host(9, 5);
    machine.guest.write(9, 5, b"12345");
    machine.guest.post(op::CREDIT_REQUEST, 9, 5, 0, &[]);
    machine.run();
    let update = machine.guest.packets(9, 5).pop().unwrap();
    assert_eq!((update.op, update.buf_alloc, update.fwd_cnt), (op::CREDIT_UPDATE, BUFFER, 5));
}

#[test]
fn bytes_wait_for_receive_buffers_without_wake_ups() {
    let mut machine = Machine::new();
    let mut streams: Vec<_> = (0..10).map(|index| machine.guest_to_host(9, index)).collect();
    machine.guest.receives = false;
    for (index, stream) in (0..).zip(&mut streams) {
        stream.write_all(&noise(index, 100_000)).unwrap();
    }
    machine.run_device();
    while machine.guest.driver.queues[0].outstanding() > 0 {
        machine.guest.poll();
        machine.run_device();
    }
    let starved = machine.metric("rx_starved");
    assert!(starved > 0);
    // A socket that had nothing left is noticed once, and then no more, as little as the others.
    for piece in [b"mo", b"re"] {
        let before = machine.metric("events");
        for stream in &mut streams {
            stream.write_all(piece).unwrap();
        }
        machine.run_device();
        let expected = if piece == b"mo" { 0..=10 } else { 0..=0 };
        assert!(expected.contains(&(machine.metric("events") - before)));
    }
    assert_eq!(machine.metric("rx_starved"), starved, "it is one hunger");
    // What the guest sends goes through all the same.
    machine.guest.write(9, 0, b"through");
    machine.guest.transmit();
    machine.run_device();
    streams[0].read_exact(&mut [0; 7]).unwrap();
    drop(streams);
    machine.guest.receives = true;
    machine.run();
    for index in 0..10 {
        let mut expected = noise(index.into(), 100_000);
        expected.extend(b"more");
        assert!(machine.guest.socket(9, index).received == expected);
    }
}

#[test]
fn a_hungry_device_asks_to_be_told_of_buffers() {
    for (features, buffers) in [(COMMON_FEATURES, 3), (COMMON_FEATURES, 256), (1 << 32, 3), (1 << 32, 256)] {
        let mut machine = Machine::with(10, features);
        machine.guest.buffers = (buffers, 100);
        let mut stream = machine.guest_to_host(9, 5);
        machine.guest.receives = false;
        stream.write_all(&noise(6, 60_000)).unwrap();
        machine.run_device();
        // All buffers once more: as many as it takes at once, when they are 256.
        machine.guest.receives = true;
        machine.guest.poll();
        machine.guest.receives = false;
        machine.run_device();
        let driver = &machine.guest.driver;
        let config = driver.queues[0].state.config;
        let word = |address| driver.memory.read_obj::<u16>(GuestAddress(address)).unwrap();
        if features == COMMON_FEATURES {
            let event = word(config.used_ring + 4 + 8 * u64::from(config.size));
            assert_eq!(event, word(config.available_ring + 2), "it wants to hear of the next buffer");
        } else {
            assert_eq!(word(config.used_ring), 0, "kicks are not suppressed");
        }
        machine.guest.receives = true;
        machine.run();
        assert!(machine.guest.socket(9, 5).received == noise(6, 60_000));
    }
}

#[test]
fn an_idle_device_sleeps() {
    let mut machine = Machine::new();
    let _streams: Vec<_> = (0..100).map(|index| machine.guest_to_host(9, index)).collect();
    let before = machine.metric("events");
    for _ in 0..10 {
        machine.worker.as_mut().unwrap().step(10).unwrap();
    }
    assert_eq!(machine.metric("events"), before);
}
