//! How connections end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{Machine, Packet, RCV, SEND, is_closed, noise, op};

/// A connection with these ports, from the guest.
const PORTS: (u32, u32) = (9, 5);

#[test]
fn the_host_ends_its_direction_and_still_receives() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    stream.write_all(b"all I have").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    machine.run();
    let socket = machine.guest.socket(9, 5);
    assert_eq!((&socket.received[..], socket.shutdown), (&b"all I have"[..], SEND));
    machine.guest.write(9, 5, b"but I have more");
    machine.run();
    let mut bytes = [0; 15];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"but I have more");
    machine.guest.shut_down(9, 5, SEND);
    machine.run();
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
    assert!(machine.guest.socket(9, 5).reset, "both directions are done");
    assert_eq!(machine.metric("connections_closed"), 1);
}

#[test]
fn the_guest_ends_its_direction_and_still_receives() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.write(9, 5, b"all I have");
    machine.guest.shut_down(9, 5, SEND);
    machine.run();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"all I have");
    stream.write_all(b"but I have more").unwrap();
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, b"but I have more");
    drop(stream);
    machine.run();
    assert!(machine.guest.socket(9, 5).reset);
    assert_eq!(machine.metric("connections_closed"), 1);
}

#[test]
fn a_guest_that_receives_no_more_can_still_send() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.shut_down(9, 5, RCV);
    machine.run();
    assert_eq!(stream.write(b"too late").unwrap_err().kind(), ErrorKind::BrokenPipe);
    machine.guest.write(9, 5, b"listen");
    machine.guest.shut_down(9, 5, SEND);
    machine.run();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"listen");
    assert!(machine.guest.socket(9, 5).received.is_empty());
    assert_eq!(machine.guest.ops(9, 5), [op::RESPONSE, op::RST], "closed both ways, in two steps");
}

#[test]
fn a_host_program_that_receives_no_more_can_still_send() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    stream.shutdown(Shutdown::Read).unwrap();
    machine.guest.write(9, 5, b"nobody listens");
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).shutdown, RCV);
    stream.write_all(b"listen").unwrap();
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, b"listen");
    drop(stream);
    machine.run();
    // Bytes were lost: that is no orderly end.
    assert_eq!(machine.guest.ops(9, 5).last(), Some(&op::RST));
}

#[test]
fn a_host_program_that_closes_ends_the_connection_in_order() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    stream.write_all(&noise(1, 100_000)).unwrap();
    drop(stream);
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, noise(1, 100_000));
    let end = machine.guest.packets(9, 5).pop().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, RCV | SEND), "the guest's reset is not answered");
    assert_eq!(machine.metric("connections_closed"), 1);
}

#[test]
fn a_guest_that_closes_ends_the_connection_in_order() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.write(9, 5, &noise(2, 100_000));
    machine.guest.shut_down(9, 5, RCV | SEND);
    machine.run();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes == noise(2, 100_000));
    assert_eq!(machine.guest.ops(9, 5).last(), Some(&op::RST));
    assert_eq!(machine.metric("connections_closed"), 1);
}

#[test]
fn what_a_slow_host_program_has_not_taken_survives_the_guests_close() {
    for abort in [false, true] {
        let mut machine = Machine::new();
        let mut stream = machine.guest_to_host(9, 5);
        // More than a Unix socket takes by itself.
        machine.guest.write(9, 5, &noise(3, 400_000));
        machine.run();
        assert!(machine.guest.socket(9, 5).unsent.is_empty(), "the device has taken all");
        if abort {
            machine.guest.post(op::RST, 9, 5, 0, &[]);
        } else {
            machine.guest.shut_down(9, 5, RCV | SEND);
        }
        machine.run();
        assert!(!machine.guest.socket(9, 5).reset, "the device is not done yet");
        let mut bytes = vec![0; 400_000];
        for piece in bytes.chunks_mut(10_000) {
            stream.read_exact(piece).unwrap();
            machine.run();
        }
        assert!(bytes == noise(3, 400_000));
        assert!(is_closed(&stream));
        assert_eq!(machine.guest.socket(9, 5).reset, !abort, "a reset is not answered");
        assert_eq!(machine.metric("connections_closed"), 1);
    }
}

#[test]
fn ports_can_be_used_again_while_the_host_still_reads_from_the_last_connection() {
    let mut machine = Machine::new();
    let mut old = machine.guest_to_host(9, 5);
    machine.guest.write(9, 5, &noise(3, 400_000));
    machine.run();
    machine.guest.post(op::RST, 9, 5, 0, &[]);
    machine.run();
    let mut new = machine.guest_to_host(9, 5);
    machine.guest.write(9, 5, b"new");
    machine.run();
    let mut bytes = vec![0; 400_000];
    for piece in bytes.chunks_mut(10_000) {
        old.read_exact(piece).unwrap();
        machine.run();
    }
    assert!(bytes == noise(3, 400_000) && is_closed(&old));
    let mut bytes = [0; 3];
    new.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"new");
    machine.guest.write(9, 5, b"still there");
    machine.run();
    new.read_exact(&mut [0; 11]).unwrap();
}

#[test]
fn what_the_guest_has_no_credit_for_survives_the_hosts_close() {
    let mut machine = Machine::new();
    machine.guest.buf_alloc = 10_000;
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.socket(9, 5).stalled = true;
    stream.write_all(&noise(4, 100_000)).unwrap();
    drop(stream);
    machine.run();
    let before = machine.metric("events");
    assert_eq!(machine.guest.socket(9, 5).received.len(), 10_000);
    machine.run_device();
    assert_eq!(machine.metric("events"), before, "a hang-up that has to wait does not spin");
    machine.guest.resume(9, 5);
    machine.run();
    let socket = machine.guest.socket(9, 5);
    assert!(socket.received == noise(4, 100_000));
    assert_eq!(socket.shutdown, RCV | SEND);
}

#[test]
fn a_host_program_that_dies_with_unread_bytes_is_a_reset_behind_its_last_words() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.write(9, 5, b"unread");
    machine.run();
    stream.write_all(b"last words").unwrap();
    drop(stream);
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, b"last words");
    assert_eq!(machine.guest.ops(9, 5), [op::RESPONSE, op::RW, op::RST]);
}

#[test]
fn a_host_program_that_dies_with_bytes_in_the_devices_buffer_is_a_reset() {
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    machine.guest.write(9, 5, &noise(5, 400_000));
    machine.run();
    // It has read what the socket had, and not what the device still has.
    let mut taken = vec![0; 100_000];
    stream.read_exact(&mut taken).unwrap();
    drop(stream);
    machine.run();
    assert_eq!(machine.guest.ops(9, 5).last(), Some(&op::RST));
    assert_eq!(machine.metric("connections_closed"), 1);
}

#[test]
fn a_guest_program_that_dies_closes_the_unix_connection() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    let (other, port) = machine.host_to_guest(52);
    machine.guest.post(op::RST, 9, 5, 0, &[]);
    machine.run();
    assert!(is_closed(&stream));
    assert!(!is_closed(&other) && machine.guest.socket(port, 52).open);
}

#[test]
fn a_guest_that_does_not_agree_to_the_end_gets_a_reset_after_two_seconds() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    // The guest stops handling what it receives.
    machine.guest.sockets.remove(&PORTS);
    drop(stream);
    machine.run();
    assert_eq!(machine.guest.ops(9, 5).last(), Some(&op::SHUTDOWN));
    let (start, events) = (Instant::now(), machine.metric("events"));
    machine.run_until(|machine| machine.guest.ops(9, 5).last() == Some(&op::RST));
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_millis(1500) && elapsed < Duration::from_secs(6), "{elapsed:?}");
    assert!(machine.metric("events") - events <= 3, "it slept meanwhile");
    assert_eq!(machine.metric("connections_closed"), 1);
}

#[test]
fn both_may_close_at_the_same_time() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    drop(stream);
    // The device's shutdown is on its way, the guest's passes it.
    machine.run_device();
    machine.guest.post(op::SHUTDOWN, 9, 5, RCV | SEND, &[]);
    machine.guest.transmit();
    machine.run_device();
    machine.run();
    assert_eq!(machine.guest.ops(9, 5), [op::RESPONSE, op::SHUTDOWN, op::RST]);
    assert_eq!(machine.metric("connections_closed"), 1);
}

#[test]
fn bytes_that_pass_the_news_of_the_hosts_end_are_a_reset() {
    let mut machine = Machine::new();
    drop(machine.guest_to_host(9, 5));
    machine.run_device();
    machine.guest.send(&Packet::new(op::RW, 9, 5, b"too late"));
    machine.guest.transmit();
    machine.run_device();
    machine.run();
    assert_eq!(machine.guest.ops(9, 5), [op::RESPONSE, op::SHUTDOWN, op::RST]);
    assert_eq!(machine.metric("bad_packets"), 0, "the guest could not know");
}

#[test]
fn bytes_after_the_guests_own_end_are_a_reset() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    machine.guest.shut_down(9, 5, SEND);
    machine.guest.send(&Packet::new(op::RW, 9, 5, b"more"));
    machine.run();
    assert!(is_closed(&stream));
    assert_eq!(machine.guest.ops(9, 5), [op::RESPONSE, op::RST]);
}

#[test]
fn a_half_closed_connection_whose_host_dies_is_ended() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    stream.shutdown(Shutdown::Write).unwrap();
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).shutdown, SEND);
    let events = machine.metric("events");
    machine.run_device();
    assert_eq!(machine.metric("events"), events, "half an end does not spin");
    drop(stream);
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).shutdown, RCV | SEND);
}
