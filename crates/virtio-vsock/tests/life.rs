//! The device's life: its socket's file, its drivers, and pauses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use common::{Guest, Machine, is_closed, noise, op, read_ok};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{ActivateError, COMMON_FEATURES, Device, Workers};
use kindling_virtio_vsock::{DEFAULT_MAX_CONNECTIONS, Error, Vsock};

fn device(path: &std::path::Path) -> Result<Vsock, Error> {
    Vsock::new(3, path, DEFAULT_MAX_CONNECTIONS)
}

#[test]
fn the_driver_reads_its_cid_and_sees_what_is_offered() {
    let machine = Machine::new();
    let mut bytes = [0xff; 8];
    machine.device.config().read(0, &mut bytes);
    assert_eq!(u64::from_le_bytes(bytes), u64::from(common::CID));
    assert_eq!(machine.device.device_type(), 19);
    assert_eq!(machine.device.features(), 1);
    assert_eq!(machine.device.queue_sizes(), [256, 256, 256]);
    assert_eq!(machine.device.workers(), Workers::Own(1));
}

#[test]
fn reserved_cids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    for cid in [0, 1, 2, u32::MAX] {
        let error = Vsock::new(cid, &path, DEFAULT_MAX_CONNECTIONS).err().unwrap();
        assert_eq!(error.to_string(), format!("guest CID {cid} is not between 3 and 4294967294"));
        assert!(!path.exists());
    }
    for cid in [3, u32::MAX - 1] {
        Vsock::new(cid, &path, DEFAULT_MAX_CONNECTIONS).unwrap();
    }
}

#[test]
fn the_sockets_file_lives_as_long_as_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let first = device(&path).unwrap();
    assert!(path.exists());
    drop(first);
    assert!(!path.exists());
    device(&path).unwrap();
}

#[test]
fn the_sockets_file_stays_when_it_is_told_to_whoever_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    for device_goes_first in [true, false] {
        let device = device(&path).unwrap();
        let file = device.socket_file();
        file.leave();
        if device_goes_first {
            drop(device)
        } else {
            drop(file)
        }
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_is_at_the_path_already_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = device(&path).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot listen on {}", path.display()));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_file_that_is_not_the_devices_any_more_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let device = device(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // Kept, so that the number of the first is not given to the second.
    let _other = UnixListener::bind(dir.path().join("other")).unwrap();
    let _listener = UnixListener::bind(&path).unwrap();
    drop(device);
    assert!(path.exists());
}

#[test]
fn queues_for_packets_are_needed_and_the_one_for_events_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = device(&dir.path().join("v.sock")).unwrap();
    let driver = MockDriver::new(&device);
    for missing in 0..2 {
        let mut activation = driver.activation();
        activation.queues.remove(missing);
        let error = device.activate(activation).err().unwrap();
        assert!(matches!(error, ActivateError::Missing(index) if usize::from(index) == missing));
    }
    let mut activation = driver.activation();
    activation.queues.remove(2);
    let workers = device.activate(activation).unwrap();
    assert_eq!(workers[0].queues().len(), 2);
    Inline::start(workers).unwrap().run(10).unwrap();
}

#[test]
fn a_pause_in_the_middle_of_a_transfer_loses_nothing() {
    for features in [COMMON_FEATURES, 1 << 32] {
        let mut machine = Machine::with(100, features);
        machine.guest.buffers = (4, 2000);
        machine.guest.max_payload = 2000;
        let mut first = machine.guest_to_host(9, 5);
        let (mut second, port) = machine.host_to_guest(52);
        for stream in [&mut first, &mut second] {
            stream.write_all(&noise(1, 100_000)).unwrap();
        }
        machine.guest.write(9, 5, &noise(2, 1_000_000));
        machine.guest.write(port, 52, &noise(3, 1_000_000));
        let (mut of_first, mut of_second) = (Vec::<u8>::new(), Vec::<u8>::new());
        let mut buffer = [0; 10_000];
        let mut rounds = 0;
        while of_first.len() < 1_000_000 || of_second.len() < 1_000_000 {
            rounds += 1;
            machine.guest.poll();
            // The device stops wherever it is.
            machine.worker.as_mut().unwrap().run(rounds % 3).unwrap();
            machine.sleep_and_wake();
            for (stream, bytes) in [(&mut first, &mut of_first), (&mut second, &mut of_second)] {
                stream.set_nonblocking(true).unwrap();
                if let Ok(len) = stream.read(&mut buffer) {
                    bytes.extend(&buffer[..len]);
                }
            }
        }
        machine.run();
        assert!(of_first == noise(2, 1_000_000) && of_second == noise(3, 1_000_000));
        assert!(machine.guest.socket(9, 5).received == noise(1, 100_000));
        assert!(machine.guest.socket(port, 52).received == noise(1, 100_000));
    }
}

#[test]
fn what_happens_during_a_pause_is_seen_afterwards() {
    let mut machine = Machine::new();
    machine.guest.listen(53);
    let mut stream = machine.guest_to_host(9, 5);
    let (gone, gone_port) = machine.host_to_guest(52);
    let mut half = UnixStream::connect(machine.path()).unwrap();
    half.write_all(b"CONNECT ").unwrap();
    machine.run();
    let workers = machine.worker.take().unwrap().stop();
    stream.write_all(b"hello").unwrap();
    drop(gone);
    half.write_all(b"53\n").unwrap();
    let new = machine.connect(53);
    machine.guest.write(9, 5, b"hello");
    machine.guest.transmit();
    machine.worker = Some(Inline::start(workers).unwrap());
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, b"hello");
    assert!(machine.guest.socket(gone_port, 52).reset);
    stream.read_exact(&mut [0; 5]).unwrap();
    read_ok(&half);
    read_ok(&new);
}

#[test]
fn a_guest_that_was_paused_has_its_time_to_answer_anew() {
    let mut machine = Machine::new();
    machine.guest.listen(52);
    let stream = machine.connect(52);
    machine.run_device();
    let workers = machine.worker.take().unwrap().stop();
    std::thread::sleep(Duration::from_millis(2500));
    machine.worker = Some(Inline::start(workers).unwrap());
    machine.worker.as_mut().unwrap().step(500).unwrap();
    machine.run();
    read_ok(&stream);
}

#[test]
fn a_reset_closes_all_connections_and_a_new_driver_finds_a_working_device() {
    let mut machine = Machine::new();
    let first = machine.guest_to_host(9, 5);
    let (second, _) = machine.host_to_guest(52);
    let waiting = UnixStream::connect(machine.path()).unwrap();
    machine.run();
    drop(machine.worker.take().unwrap().stop());
    machine.device.reset();
    for stream in [&first, &second, &waiting] {
        assert!(is_closed(stream));
    }
    assert_eq!(machine.metric("connections_closed"), 2);
    // A host program that comes while there is no driver waits.
    let early = machine.connect(52);
    let driver = MockDriver::new(&machine.device);
    let workers = machine.device.activate(driver.activation()).unwrap();
    machine.worker = Some(Inline::start(workers).unwrap());
    machine.guest = Guest::new(driver);
    machine.guest.listen(52);
    machine.run();
    read_ok(&early);
    let mut stream = machine.guest_to_host(9, 5);
    stream.write_all(b"again").unwrap();
    machine.run();
    assert_eq!(machine.guest.socket(9, 5).received, b"again");
}

#[test]
fn a_restored_guest_is_told_once_that_its_connections_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = device(&dir.path().join("v.sock")).unwrap();
    assert!(device.restore(b"something").is_err());
    device.restore(&device.save()).unwrap();
    let mut driver = MockDriver::new(&device);
    let mut worker = Inline::start(device.activate(driver.activation()).unwrap()).unwrap();
    worker.run(100).unwrap();
    // A pause before the guest has a buffer for it changes nothing; nor does a buffer that is too small.
    let mut worker = Inline::start(worker.stop()).unwrap();
    driver.queues[2].add(&[Buffer::Writable(3)]);
    worker.run(100).unwrap();
    assert_eq!(driver.queues[2].take_used().unwrap().written, 0);
    driver.queues[2].add(&[Buffer::Writable(2), Buffer::Writable(2)]);
    driver.queues[2].add(&[Buffer::Writable(4)]);
    worker.run(100).unwrap();
    let used = driver.queues[2].take_used().unwrap();
    assert_eq!((used.written, &used.data[..]), (4, &[0; 4][..]));
    assert!(driver.queues[2].take_used().is_none());
    assert_eq!(driver.interrupt.queue(2), 2);
}

#[test]
fn a_driver_that_starts_from_scratch_has_no_connections_to_be_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = device(&dir.path().join("v.sock")).unwrap();
    device.announce_transport_reset();
    device.reset();
    let mut driver = MockDriver::new(&device);
    driver.queues[2].add(&[Buffer::Writable(4)]);
    let mut worker = Inline::start(device.activate(driver.activation()).unwrap()).unwrap();
    worker.run(100).unwrap();
    assert!(driver.queues[2].take_used().is_none());
}

#[test]
fn a_driver_whose_worker_was_replaced_without_a_reset_is_told_that_connections_are_gone() {
    let mut machine = Machine::new();
    let stream = machine.guest_to_host(9, 5);
    let event = machine.guest.driver.queues[2].add(&[Buffer::Writable(4)]);
    machine.run();
    assert!(machine.guest.driver.queues[2].take_used().is_none());
    let states: Vec<_> =
        machine.worker.take().unwrap().stop().iter().flat_map(|worker| worker.queues()).collect();
    for (queue, state) in machine.guest.driver.queues.iter_mut().zip(states) {
        queue.state = state;
    }
    let workers = machine.device.activate(machine.guest.driver.activation()).unwrap();
    machine.worker = Some(Inline::start(workers).unwrap());
    machine.run();
    assert!(is_closed(&stream));
    let used = machine.guest.driver.queues[2].take_used().unwrap();
    assert_eq!((used.head, used.data), (event, vec![0; 4]));
}

#[test]
fn a_host_out_of_descriptors_accepts_again_when_it_has_some() {
    // The limit is the process's, and so is this test: it runs in a process of its own.
    if std::env::var_os("DESCRIPTORS").is_none() {
        let name = "a_host_out_of_descriptors_accepts_again_when_it_has_some";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact"])
            .env("DESCRIPTORS", "few")
            .status()
            .unwrap();
        return assert!(status.success());
    }
    common::limit_descriptors(100);
    let mut machine = Machine::new();
    machine.guest.listen(52);
    machine.run();
    let stream = machine.connect(52);
    let mut hogs = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hogs.push(file);
    }
    let (start, before) = (Instant::now(), machine.metric("events"));
    while start.elapsed() < Duration::from_millis(550) {
        machine.worker.as_mut().unwrap().step(50).unwrap();
    }
    let events = machine.metric("events") - before;
    assert!(events < 20, "it tries again now and then, not all the time: {events}");
    assert!(machine.guest.log.is_empty());
    // A guest's request is refused meanwhile.
    machine.guest.connect(9, 5);
    machine.run();
    assert_eq!(machine.guest.ops(9, 5), [op::RST]);
    drop(hogs);
    machine
        .run_until(|machine| !machine.guest.sockets.is_empty() && machine.metric("connections_added") == 1);
    read_ok(&stream);
}
