//! Bytes on their way, many of them, in both directions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Guest, Machine, RCV, Random, SEND, noise, read_ok};
use kindling_virtio_device::test_utils::MockDriver;
use kindling_virtio_device::{COMMON_FEATURES, Device, Interrupt, WorkerThread};
use kindling_virtio_vsock::{DEFAULT_MAX_CONNECTIONS, Vsock};

/// Writes and reads at the same time, in pieces of any size, until the other side ends.
fn exchange(mut stream: UnixStream, seed: u64, len: usize) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    let writes = thread::spawn(move || {
        let (bytes, mut random, mut at) = (noise(seed, len), Random(seed), 0);
        while at < bytes.len() {
            let end = bytes.len().min(at + 1 + random.below(9000) as usize);
            writer.write_all(&bytes[at..end]).unwrap();
            at = end;
        }
    });
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut buffer = [0; 5000];
    while bytes.len() < len {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            count => bytes.extend(&buffer[..count]),
        }
    }
    writes.join().unwrap();
    bytes
}

#[test]
fn a_hundred_streams_at_once_lose_change_and_reorder_nothing() {
    const STREAMS: u32 = 100;
    const BYTES: usize = 200_000;
    for features in [COMMON_FEATURES, 1 << 32] {
        let mut machine = Machine::with(DEFAULT_MAX_CONNECTIONS.get(), features);
        machine.guest.max_payload = 3000;
        let mut programs = Vec::new();
        let mut ports = Vec::new();
        for index in 0..STREAMS {
            let (stream, port) = if index % 2 == 0 {
                let (stream, port) = machine.host_to_guest(52);
                (stream, (port, 52))
            } else {
                (machine.guest_to_host(1000 + index, index), (1000 + index, index))
            };
            ports.push(port);
            programs.push(thread::spawn(move || exchange(stream, u64::from(index), BYTES)));
        }
        for (index, port) in (0..).zip(&ports) {
            machine.guest.write(port.0, port.1, &noise(1000 + index, BYTES));
        }
        machine.run_until(|machine| {
            ports.iter().all(|port| machine.guest.socket(port.0, port.1).received.len() == BYTES)
                && programs.iter().all(|program| program.is_finished())
        });
        for (index, (port, program)) in (0..).zip(ports.iter().zip(programs)) {
            assert!(machine.guest.socket(port.0, port.1).received == noise(index, BYTES));
            assert!(program.join().unwrap() == noise(1000 + index, BYTES));
        }
        assert_eq!(machine.metric("bad_packets"), 0);
        assert_eq!(machine.metric("bytes_to_guest"), u64::from(STREAMS) * BYTES as u64);
        assert_eq!(machine.metric("bytes_from_guest"), u64::from(STREAMS) * BYTES as u64);
    }
}

#[test]
fn a_thousand_connections_at_once_all_work() {
    const CONNECTIONS: u64 = 1000;
    // Both ends of all are here, beside the other tests.
    common::limit_descriptors(8192);
    let mut machine = Machine::new();
    let mut streams: Vec<(UnixStream, u32, u32)> = Vec::new();
    for index in 0..CONNECTIONS as u32 / 2 {
        let (stream, port) = machine.host_to_guest(52);
        streams.push((stream, port, 52));
        streams.push((machine.guest_to_host(5, index), 5, index));
    }
    for (stream, host_port, guest_port) in &mut streams {
        stream.write_all(&noise(u64::from(*host_port ^ *guest_port), 1000)).unwrap();
        machine.guest.write(*host_port, *guest_port, &guest_port.to_le_bytes());
    }
    machine.run();
    for (stream, host_port, guest_port) in &mut streams {
        let expected = noise(u64::from(*host_port ^ *guest_port), 1000);
        assert_eq!(machine.guest.socket(*host_port, *guest_port).received, expected);
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, guest_port.to_le_bytes());
    }
    assert_eq!(machine.metric("connections_added"), CONNECTIONS);
    drop(streams);
    machine.run();
    assert_eq!(machine.metric("connections_closed"), CONNECTIONS);
    // The places are free again.
    for index in 0..CONNECTIONS as u32 {
        let _stream = machine.guest_to_host(6, index);
    }
}

#[test]
fn connections_get_turns_whatever_one_of_them_sends() {
    let mut machine = Machine::new();
    machine.guest.buffers = (8, 4096);
    let (mut greedy, greedy_port) = machine.host_to_guest(52);
    let (mut modest, modest_port) = machine.host_to_guest(52);
    greedy.write_all(&noise(1, 100_000)).unwrap();
    modest.write_all(b"a few bytes").unwrap();
    while machine.guest.socket(modest_port, 52).received.is_empty() {
        machine.run_device();
        machine.guest.poll();
    }
    assert!(machine.guest.socket(greedy_port, 52).received.len() <= 64 << 10);
    machine.run();
    assert_eq!(machine.guest.socket(greedy_port, 52).received, noise(1, 100_000));
}

#[test]
fn buffers_and_packets_may_be_cut_in_any_way() {
    for cut in [vec![], vec![1; 43], vec![20, 30], vec![44, 1, 1, 1], vec![100]] {
        for size in [45, 46, 100, 5000] {
            let mut machine = Machine::new();
            machine.guest.cut = cut.clone();
            machine.guest.buffers.1 = size;
            let mut stream = machine.guest_to_host(9, 5);
            machine.guest.write(9, 5, &noise(3, 5000));
            stream.write_all(&noise(4, 5000)).unwrap();
            machine.run();
            let mut bytes = vec![0; 5000];
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes == noise(3, 5000) && machine.guest.socket(9, 5).received == noise(4, 5000));
        }
    }
}

#[test]
fn indirect_receive_buffers_of_many_pieces_are_filled_in_order() {
    use kindling_virtio_device::test_utils::Buffer::Writable;
    let mut machine = Machine::new();
    let mut stream = machine.guest_to_host(9, 5);
    // Uses up what is there first.
    machine.guest.receives = false;
    while machine.guest.driver.queues[0].outstanding() > 0 {
        stream.write_all(b"x").unwrap();
        machine.run();
    }
    let before = machine.guest.socket(9, 5).received.len();
    stream.write_all(&noise(5, 300)).unwrap();
    machine.run();
    let rx = &mut machine.guest.driver.queues[0];
    rx.add_indirect(&[Writable(1), Writable(40), Writable(2), Writable(50)]);
    rx.add_indirect(&[Writable(43), Writable(1), Writable(7), Writable(300)]);
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received[before..], noise(5, 300));
}

#[test]
fn a_worker_on_its_thread_carries_streams_both_ways() {
    const STREAMS: u32 = 16;
    const BYTES: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let mut device = Vsock::new(common::CID, &path, DEFAULT_MAX_CONNECTIONS).unwrap();
    let mut guest = Guest::new(MockDriver::new(&device));
    let interrupt = Arc::clone(&guest.driver.interrupt) as Arc<dyn Interrupt>;
    let thread = WorkerThread::spawn("io vsock", || Ok(())).unwrap();
    let slot = thread.slot();
    let mut workers = device.activate(guest.driver.activation()).unwrap();
    slot.start(workers.pop().unwrap(), Arc::clone(&interrupt));
    guest.listen(52);
    let begin = Arc::new(Barrier::new(STREAMS as usize));
    let finished = Arc::new(AtomicUsize::new(0));
    let programs: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (path, begin, finished) = (path.clone(), Arc::clone(&begin), Arc::clone(&finished));
            thread::spawn(move || {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(b"CONNECT 52\n").unwrap();
                let port = read_ok(&stream);
                begin.wait();
                let bytes = exchange(stream, port.into(), BYTES);
                finished.fetch_add(1, Ordering::SeqCst);
                (port, bytes)
            })
        })
        .collect();
    let (end, mut begun, mut naps) = (Instant::now() + Duration::from_secs(60), 0, 0);
    while finished.load(Ordering::SeqCst) < STREAMS as usize
        || guest.sockets.values().any(|socket| socket.received.len() < BYTES)
    {
        assert!(Instant::now() < end, "it takes too long");
        if !guest.poll() {
            thread::sleep(Duration::from_micros(100));
        }
        // Each socket sends as soon as it is there.
        let new: Vec<_> = guest.sockets.keys().copied().collect();
        if new.len() > begun {
            begun = new.len();
            for (host_port, guest_port) in new {
                if guest.socket(host_port, guest_port).sent() == 0 {
                    guest.write(host_port, guest_port, &noise(u64::from(host_port) + 1, BYTES));
                }
            }
        }
        // Now and then, the machine is paused.
        if naps < 5 && guest.log.len() > 200 * (naps + 1) {
            naps += 1;
            let worker = slot.stop().wait(Instant::now() + Duration::from_secs(10)).unwrap().unwrap();
            slot.start(worker, Arc::clone(&interrupt));
        }
    }
    assert_eq!(naps, 5);
    for program in programs {
        let (port, bytes) = program.join().unwrap();
        assert!(bytes == noise(u64::from(port) + 1, BYTES));
        assert!(guest.socket(port, 52).received == noise(port.into(), BYTES));
        guest.shut_down(port, 52, RCV | SEND);
    }
    while guest.sockets.values().any(|socket| !socket.reset) {
        assert!(Instant::now() < end, "it takes too long");
        guest.poll();
    }
    assert!(!guest.driver.interrupt.is_reset_needed());
}
