//! Guests that do not keep to the protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::{CID, Machine, Packet, Random, is_closed, noise, op};
use kindling_virtio_device::test_utils::Buffer;

#[test]
fn packets_for_no_connection_are_refused_and_resets_are_not() {
    let mut machine = Machine::new();
    for operation in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, 999] {
        machine.guest.send(&Packet::new(operation, 9, 5, b""));
        machine.run();
        let reset = machine.guest.log.pop().unwrap();
        assert_eq!((reset.op, reset.src_port, reset.dst_port, reset.kind), (op::RST, 9, 5, 1), "{operation}");
        assert_eq!((reset.src_cid, reset.dst_cid), (2, CID.into()));
        assert!(machine.guest.log.is_empty());
    }
    machine.guest.send(&Packet::new(op::RST, 9, 5, b""));
    machine.run();
    assert!(machine.guest.log.is_empty());
}

#[test]
fn packets_of_a_wrong_type_or_address_are_refused_on_their_way_back() {
    let mut machine = Machine::new();
    let _stream = machine.guest_to_host(9, 5);
    let right = Packet::new(op::RW, 9, 5, b"bytes");
    let wrong = [
        Packet { kind: 2, ..right.clone() },
        Packet { kind: 0, ..right.clone() },
        Packet { dst_cid: 77, ..right.clone() },
        Packet { dst_cid: 2 | 1 << 32, ..right.clone() },
        Packet { src_cid: 78, ..right.clone() },
    ];
    for packet in wrong {
        let bad = machine.metric("bad_packets");
        machine.guest.log.clear();
        machine.guest.send(&packet);
        machine.guest.send(&Packet { op: op::RST, ..packet.clone() });
        machine.guest.sockets.clear();
        machine.run();
        assert_eq!(machine.guest.log.len(), 1);
        let reset = &machine.guest.log[0];
        assert_eq!((reset.op, reset.kind), (op::RST, packet.kind));
        assert_eq!((reset.src_cid, reset.dst_cid), (packet.dst_cid, packet.src_cid));
        assert_eq!(machine.metric("bad_packets"), bad + 2);
    }
    assert_eq!(machine.metric("bytes_from_guest"), 0);
    assert_eq!(machine.metric("connections_closed"), 0, "the connection of these ports is another");
}

#[test]
fn what_is_no_packet_is_dropped() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    let mut short = Packet::new(op::RW, 9, 5, b"bytes");
    short.len = 6;
    let mut huge = short.clone();
    huge.len = u32::MAX;
    let bytes = short.to_bytes();
    for bytes in [short.to_bytes(), huge.to_bytes(), bytes[..43].to_vec(), bytes[..1].to_vec()] {
        machine.guest.send_bytes(bytes);
    }
    machine.run();
    assert_eq!(machine.metric("bad_packets"), 4);
    // A chain with nothing to read at all.
    machine.guest.driver.queues[1].add(&[Buffer::Writable(100)]);
    machine.run();
    assert_eq!(machine.metric("bad_packets"), 5);
    assert_eq!(machine.guest.ops(9, 5), [op::RESPONSE]);
    // Bytes behind the payload are no part of it.
    let mut long = Packet::new(op::RW, 9, 5, b"bytes");
    long.payload.extend(b" and more");
    machine.guest.send(&long);
    machine.run();
    machine.guest.write(9, 5, b"!");
    machine.run();
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"bytes!");
}

#[test]
fn an_operation_that_does_not_fit_the_state_ends_the_connection() {
    for operation in [op::REQUEST, op::RESPONSE, 0, 8, 0xffff] {
        let mut machine = Machine::new();
        let stream = machine.guest_to_host(9, 5);
        machine.guest.send(&Packet::new(operation, 9, 5, b""));
        machine.run();
        assert!(is_closed(&stream), "{operation}");
        assert_eq!(machine.guest.ops(9, 5), [op::RESPONSE, op::RST]);
    }
    // The guest has not accepted yet.
    for operation in [op::REQUEST, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST] {
        let mut machine = Machine::new();
        let stream = machine.connect(52);
        machine.run_device();
        machine.guest.send(&Packet::new(operation, 1 << 30, 52, b""));
        machine.guest.transmit();
        machine.run_device();
        assert!(is_closed(&stream), "{operation}");
    }
}

#[test]
fn receive_buffers_that_are_too_small_are_given_back_empty() {
    let mut machine = Machine::new();
    machine.guest.buffers = (8, 44);
    machine.guest.connect(9, 5);
    machine.guest.poll();
    for _ in 0..10 {
        machine.run_device();
        machine.guest.poll();
    }
    assert!(machine.guest.log.is_empty());
    assert!(machine.metric("bad_buffers") >= 8);
    machine.guest.buffers = (8, 45);
    machine.run();
    assert!(machine.guest.socket(9, 5).reset);
}

#[test]
fn a_flood_without_receive_buffers_is_bounded_and_holds_up_nobody() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.receives = false;
    for port in 0..3000 {
        machine.guest.send(&Packet::new(op::REQUEST, 1, port, b""));
        machine.guest.post(op::CREDIT_REQUEST, 9, 5, 0, &[]);
    }
    machine.guest.write(9, 5, b"behind all that");
    while machine.guest.transmit() {
        machine.run_device();
    }
    stream.read_exact(&mut [0; 15]).unwrap();
    let dropped = machine.metric("resets_dropped");
    assert!(dropped > 1000);
    machine.guest.receives = true;
    machine.run();
    let resets = machine.guest.log.iter().filter(|packet| packet.op == op::RST).count();
    assert_eq!(resets as u64 + dropped, 3000);
    let updates = machine.guest.socket(9, 5).credit_updates;
    assert!(updates < 20, "answers for one connection do not pile up");
}

#[test]
fn connections_that_come_and_go_without_receive_buffers_are_bounded() {
    let mut machine = Machine::new();
    let listener = machine.listen(9);
    machine.guest.receives = false;
    for port in 0..2000 {
        machine.guest.connect(9, port);
        machine.guest.transmit();
        machine.run_device();
        let (stream, _) = listener.accept().unwrap();
        machine.guest.post(op::RST, 9, port, 0, &[]);
        machine.guest.transmit();
        machine.run_device();
        assert!(is_closed(&stream));
    }
    assert_eq!(machine.metric("connections_closed"), 2000);
    machine.guest.receives = true;
    machine.run();
    assert!(machine.guest.log.is_empty(), "nothing of all that is still to be said");
}

#[test]
fn a_broken_ring_ends_the_worker() {
    let mut machine = Machine::new();
    machine.guest.driver.queues[1].offer(9999);
    machine.guest.driver.queues[1].kick();
    assert!(machine.worker.as_mut().unwrap().run(10).is_err());
}

#[test]
fn random_packets_leave_honest_connections_alone() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut machine = Machine::new();
        let _listener = machine.listen(9);
        let (mut honest, honest_port) = machine.host_to_guest(52);
        let mut streams: BTreeMap<u64, UnixStream> = BTreeMap::new();
        for round in 0..300 {
            match random.below(10) {
                0 => drop(streams.insert(random.below(8), machine.connect(53))),
                1 => drop(streams.remove(&random.below(8))),
                2 => {
                    if let Some(stream) = streams.get_mut(&random.below(8)) {
                        stream.set_nonblocking(true).unwrap();
                        let _ = stream.write(&noise(round, random.below(100_000) as usize));
                    }
                }
                3 => {
                    if let Some(stream) = streams.get_mut(&random.below(8)) {
                        stream.set_nonblocking(true).unwrap();
                        let _ = stream.read(&mut vec![0; random.below(100_000) as usize]);
                    }
                }
                _ => {
                    let (host_port, guest_port) = match random.below(3) {
                        0 => (9, random.below(4) as u32),
                        // Ports of connections that host programs asked for.
                        1 => ((1 << 30) + random.below(16) as u32, 53),
                        _ => (random.below(20) as u32, random.below(4) as u32),
                    };
                    let len = random.below(3) * random.below(70_000);
                    let operation = random.below(9) as u16;
                    let mut packet =
                        Packet::new(operation, host_port, guest_port, &noise(round, len as usize));
                    packet.flags = random.below(4) as u32;
                    packet.buf_alloc = [0, 1000, 1 << 20, u32::MAX][random.below(4) as usize];
                    packet.fwd_cnt = [0, random.next() as u32][random.below(2) as usize];
                    machine.guest.send(&packet);
                }
            }
            // The guest's side of these ports is what the packets make of it.
            machine.guest.sockets.retain(|ports, _| ports.1 == 52);
            if random.below(3) == 0 {
                machine.run();
            }
            if random.below(50) == 0 {
                machine.sleep_and_wake();
            }
        }
        machine.run();
        honest.write_all(&noise(seed, 50_000)).unwrap();
        machine.guest.write(honest_port, 52, &noise(!seed, 50_000));
        machine.run();
        let mut bytes = vec![0; 50_000];
        honest.read_exact(&mut bytes).unwrap();
        assert!(bytes == noise(!seed, 50_000));
        assert!(machine.guest.socket(honest_port, 52).received == noise(seed, 50_000));
    }
}
