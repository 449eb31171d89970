//! How connections begin, from both sides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Machine, Packet, is_closed, op, read_ok};

#[test]
fn a_host_program_reaches_a_port_of_the_guest() {
    let mut machine = Machine::new();
    machine.guest.listen(52);
    let stream = machine.connect(52);
    machine.run();
    let port = read_ok(&stream);
    assert!(port >= 1 << 30);
    let request = &machine.guest.log[0];
    assert_eq!((request.op, request.src_cid, request.dst_cid), (op::REQUEST, 2, common::CID.into()));
    assert_eq!((request.src_port, request.dst_port, request.kind, request.len), (port, 52, 1, 0));
    assert!(request.buf_alloc > 0);
    assert_eq!(machine.metric("connections_added"), 1);
}

#[test]
fn a_line_may_come_in_any_pieces_and_with_bytes_behind_it() {
    let line = b"CONNECT 52\nhello";
    for cut in 0..line.len() {
        let mut machine = Machine::new();
        machine.guest.listen(52);
        let mut stream = UnixStream::connect(machine.path()).unwrap();
        for piece in [&line[..cut], &line[cut..]] {
            stream.write_all(piece).unwrap();
            machine.run();
        }
        let port = read_ok(&stream);
        assert_eq!(machine.guest.socket(port, 52).received, b"hello", "cut at {cut}");
    }
}

#[test]
fn a_line_may_come_byte_by_byte_without_wake_ups_in_between() {
    let mut machine = Machine::new();
    machine.guest.listen(1);
    let mut stream = UnixStream::connect(machine.path()).unwrap();
    machine.run();
    let before = machine.metric("events");
    for byte in b"connect 1\r\n" {
        stream.write_all(&[*byte]).unwrap();
        machine.run_device();
    }
    assert!(machine.metric("events") - before <= 12);
    machine.run();
    read_ok(&stream);
}

#[test]
fn a_line_that_is_none_ends_the_connection() {
    for line in [
        "HELLO 52\n",
        "CONNECT\n",
        "CONNECT \n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "CONNECT 52 53\n",
        "\n",
        "CONNECT 52                      \n",
        "CONNECT 00000000000000000000000000000052\n",
        "no line feed, and yet far too long for a line",
    ] {
        let mut machine = Machine::new();
        machine.guest.listen(52);
        let mut stream = UnixStream::connect(machine.path()).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        machine.run();
        assert!(is_closed(&stream), "{line:?}");
        assert!(machine.guest.log.is_empty(), "{line:?}");
        assert_eq!(machine.metric("handshakes_failed"), 1);
    }
}

#[test]
fn a_line_of_32_bytes_is_not_too_long() {
    let mut machine = Machine::new();
    machine.guest.listen(52);
    let mut stream = UnixStream::connect(machine.path()).unwrap();
    stream.write_all(b"CONNECT 00000000000000000000052\n").unwrap();
    machine.run();
    read_ok(&stream);
}

#[test]
fn any_port_number_is_the_guests_to_judge() {
    for port in [0, u32::MAX] {
        let mut machine = Machine::new();
        machine.guest.listen(port);
        let (_stream, host_port) = machine.host_to_guest(port);
        assert!(machine.guest.socket(host_port, port).open);
    }
}

#[test]
fn a_guest_that_refuses_closes_the_unix_connection() {
    let mut machine = Machine::new();
    let stream = machine.connect(52);
    machine.run();
    assert!(is_closed(&stream));
    assert_eq!(machine.metric("connections_refused"), 1);
    assert_eq!(machine.metric("connections_added"), 0);
    assert_eq!(machine.guest.log.len(), 1, "a reset is not answered with a reset");
}

#[test]
fn a_guest_reaches_a_host_program_that_listens() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(1234, 5);
    assert_eq!(machine.guest.ops(1234, 5), [op::RESPONSE]);
    machine.guest.write(1234, 5, b"to the host");
    machine.run();
    let mut bytes = [0; 11];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the host");
    stream.write_all(b"to the guest").unwrap();
    machine.run();
    assert_eq!(machine.guest.socket(1234, 5).received, b"to the guest");
}

#[test]
fn a_guest_is_refused_when_nobody_listens() {
    let mut machine = Machine::new();
    machine.guest.connect(1234, 5);
    machine.run();
    assert!(machine.guest.socket(1234, 5).reset);
    // A file that is no socket, and a socket that nobody listens on any more.
    std::fs::write(machine.port_path(1), b"").unwrap();
    drop(machine.listen(2));
    for port in [1, 2] {
        machine.guest.connect(port, 5);
        machine.run();
        assert_eq!(machine.guest.ops(port, 5), [op::RST]);
    }
    assert_eq!(machine.metric("connections_refused"), 3);
}

#[test]
fn a_listener_with_a_full_queue_refuses_instead_of_holding_up_everyone() {
    let mut machine = Machine::new();
    let listener = machine.listen(9);
    // SAFETY: the call takes no pointers. It leaves room for one that waits.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let _waiting = UnixStream::connect(machine.port_path(9)).unwrap();
    machine.guest.connect(9, 5);
    machine.run();
    assert!(machine.guest.socket(9, 5).reset);
}

#[test]
fn a_host_program_that_says_nothing_is_dropped_in_time() {
    let mut machine = Machine::new();
    let silent = UnixStream::connect(machine.path()).unwrap();
    let mut slow = UnixStream::connect(machine.path()).unwrap();
    slow.write_all(b"CONN").unwrap();
    machine.run();
    assert!(!is_closed(&silent) && !is_closed(&slow));
    let (start, events) = (Instant::now(), machine.metric("events"));
    machine.run_until(|_| is_closed(&silent) && is_closed(&slow));
    assert!(start.elapsed() > Duration::from_secs(1));
    assert_eq!(machine.metric("handshakes_failed"), 2);
    assert!(machine.metric("events") - events <= 3, "it slept meanwhile");
}

#[test]
fn a_guest_that_does_not_answer_a_request_gets_a_reset_and_the_host_is_told() {
    let mut machine = Machine::new();
    let stream = machine.connect(52);
    machine.run_device();
    machine.guest.poll();
    machine.run_device();
    // What it has received, it never handles.
    assert_eq!(machine.guest.driver.queues[0].take_used().unwrap().written, 44);
    let start = Instant::now();
    while !is_closed(&stream) {
        machine.worker.as_mut().unwrap().step(100).unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    assert!(start.elapsed() > Duration::from_secs(1));
    machine.run();
    assert_eq!(machine.guest.log.last().unwrap().op, op::RST);
    assert_eq!(machine.metric("connections_refused"), 1);
}

#[test]
fn a_host_program_that_gives_up_takes_its_request_back() {
    let mut machine = Machine::new();
    // Before the guest has buffers, it hears nothing of it at all.
    drop(machine.connect(52));
    machine.run_device();
    machine.run();
    assert!(machine.guest.log.is_empty());
    // After it has heard of it, it hears of the end too.
    let stream = machine.connect(52);
    machine.run_device();
    drop(stream);
    machine.run_device();
    machine.run();
    let ops: Vec<u16> = machine.guest.log.iter().map(|packet| packet.op).collect();
    assert_eq!(ops, [op::REQUEST, op::RST]);
}

#[test]
fn host_programs_that_wait_to_be_accepted_are_served_when_others_have_failed() {
    let mut machine = Machine::new();
    machine.guest.listen(52);
    let silent: Vec<_> = (0..256).map(|_| UnixStream::connect(machine.path()).unwrap()).collect();
    machine.run();
    let stream = machine.connect(52);
    machine.run();
    assert!(machine.guest.log.is_empty(), "there is no room for another handshake");
    let events = machine.metric("events");
    machine.run_device();
    assert_eq!(machine.metric("events"), events, "and nothing spins meanwhile");
    drop(silent);
    machine.run();
    read_ok(&stream);
}

#[test]
fn beyond_the_limit_both_sides_are_refused() {
    let mut machine = Machine::with(2, kindling_virtio_device::COMMON_FEATURES);
    let _listener = machine.listen(9);
    let (first, first_port) = machine.host_to_guest(52);
    machine.guest.connect(9, 5);
    machine.run();
    assert!(machine.guest.socket(9, 5).open);
    let third = UnixStream::connect(machine.path()).unwrap();
    machine.run();
    assert!(is_closed(&third));
    machine.guest.connect(9, 6);
    machine.run();
    assert!(machine.guest.socket(9, 6).reset);
    // One leaves, one can come.
    drop(first);
    machine.run();
    assert!(machine.guest.socket(first_port, 52).reset);
    machine.guest.connect(9, 7);
    machine.run();
    assert!(machine.guest.socket(9, 7).open);
}

#[test]
fn a_second_request_with_the_same_ports_ends_the_connection() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(1234, 5);
    machine.guest.send(&Packet::new(op::REQUEST, 1234, 5, &[]));
    machine.run();
    assert_eq!(machine.guest.ops(1234, 5), [op::RESPONSE, op::RST]);
    assert!(is_closed(&stream));
}

#[test]
fn host_ports_do_not_clash_with_those_that_the_guest_uses() {
    let mut machine = Machine::new();
    // The guest has taken the port that would be the next.
    let _stream = machine.guest_to_host(1 << 30, 52);
    let (_other, port) = machine.host_to_guest(52);
    assert_eq!(port, (1 << 30) + 1);
    let ports: Vec<u32> = (0..20).map(|_| machine.host_to_guest(52).1).collect();
    let mut unique = ports.clone();
    unique.dedup();
    assert_eq!(unique, ports);
}
