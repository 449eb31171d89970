//! The console behind a pseudo-terminal and behind a Unix socket, whose other sides come and go.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use common::{Loop, PATIENCE, machine, mode, open_slave, pattern, readable, serve_until, settle};
use kindling_serial::Backend;
use tempfile::TempDir;

const MIB: usize = 1024 * 1024;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read_exactly(mut reader: impl Read, count: usize) -> Vec<u8> {
    let mut all = vec![0; count];
    reader.read_exact(&mut all).unwrap();
    all
}

/// A client that gives up before the test suite does.
fn connect(path: &std::path::Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

#[test]
fn a_pty_carries_bytes_both_ways_as_they_are() {
    let (guest, mut console) = machine(Backend::pty().unwrap());
    let path = console.backend().pty_path().unwrap().to_owned();
    let mut user = open_slave(&path);
    let all: Vec<u8> = (0..=255).collect();
    guest.send(&all);
    settle(&mut console);
    assert_eq!(read_exactly(&user, 256), all);

    user.write_all(&all).unwrap();
    let mut received = Vec::new();
    serve_until(&mut console, || {
        received.extend(guest.receive_all());
        received.len() == 256
    });
    assert_eq!(received, all);
    assert!(!readable(&user, Duration::ZERO), "no echo");
}

#[test]
fn a_pty_that_nobody_opens_keeps_the_first_output_and_does_not_spin() {
    let (guest, mut console) = machine(Backend::pty().unwrap());
    let path = console.backend().pty_path().unwrap().to_owned();
    let event_loop = Loop::start(console);
    let sent = pattern(MIB);
    guest.send(&sent);
    assert!(guest.lost() > 0);
    (console, _) = event_loop.stop();
    settle(&mut console);

    // Somebody comes, reads what was kept, and finds the guest listening.
    let kept = MIB - usize::try_from(guest.lost()).unwrap();
    let user = open_slave(&path);
    let reader = std::thread::spawn(move || read_exactly(user, kept));
    serve_until(&mut console, || reader.is_finished());
    assert!(reader.join().unwrap() == sent[..kept]);
}

#[test]
fn a_pty_outlives_its_users_and_stays_raw() {
    let (guest, mut console) = machine(Backend::pty().unwrap());
    let path = console.backend().pty_path().unwrap().to_owned();
    let raw = mode(&open_slave(&path));
    for _ in 0..3 {
        let mut user = open_slave(&path);
        assert_eq!(mode(&user), raw);
        user.write_all(b"q").unwrap();
        settle(&mut console);
        assert_eq!(guest.receive(), Some(b'q'));
        guest.send(b"a");
        settle(&mut console);
        assert_eq!(read_exactly(&user, 1), b"a");
        drop(user);
        settle(&mut console);
    }
}

#[test]
fn a_mebibyte_arrives_whole_through_a_pty_and_through_a_socket() {
    let folder = folder();
    for socket in [false, true] {
        let path = folder.path().join("console");
        let backend = if socket { Backend::socket(&path) } else { Backend::pty() };
        let (guest, mut console) = machine(backend.unwrap());
        let user: Box<dyn Read + Send> = match console.backend().pty_path() {
            Some(path) => Box::new(open_slave(path)),
            None => Box::new(connect(&path)),
        };
        settle(&mut console);
        let reader = std::thread::spawn(move || read_exactly(user, MIB));
        let event_loop = Loop::start(console);
        let sent = pattern(MIB);
        guest.send(&sent);
        assert!(reader.join().unwrap() == sent);
        event_loop.stop();
        assert_eq!(guest.lost(), 0);
    }
}

#[test]
fn a_socket_serves_one_client_after_the_other_and_discards_in_between() {
    let folder = folder();
    let path = folder.path().join("console");
    let (guest, mut console) = machine(Backend::socket(&path).unwrap());
    for lost in 1..4 {
        guest.send(b"?");
        settle(&mut console);
        assert_eq!(guest.lost(), lost);
        let mut client = connect(&path);
        settle(&mut console);
        guest.send(b"hello");
        client.write_all(b"hi").unwrap();
        settle(&mut console);
        assert_eq!(read_exactly(&client, 5), b"hello");
        assert_eq!([guest.receive(), guest.receive()], [Some(b'h'), Some(b'i')]);
        drop(client);
        settle(&mut console);
    }
}

#[test]
fn a_second_client_is_turned_away_and_the_first_goes_on() {
    let folder = folder();
    let path = folder.path().join("console");
    let (guest, mut console) = machine(Backend::socket(&path).unwrap());
    let first = connect(&path);
    settle(&mut console);
    let mut second = connect(&path);
    settle(&mut console);
    assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);
    guest.send(b"hello");
    settle(&mut console);
    assert_eq!(read_exactly(&first, 5), b"hello");
}

#[test]
fn a_client_that_comes_just_after_another_has_gone_is_served() {
    let folder = folder();
    let path = folder.path().join("console");
    let (guest, mut console) = machine(Backend::socket(&path).unwrap());
    for _ in 0..3 {
        // The former client leaves and this one comes before the console is served.
        let client = connect(&path);
        settle(&mut console);
        guest.send(b"hello");
        settle(&mut console);
        assert_eq!(read_exactly(&client, 5), b"hello");
    }
}

#[test]
fn a_client_that_only_stops_sending_still_receives() {
    let folder = folder();
    let path = folder.path().join("console");
    let (guest, mut console) = machine(Backend::socket(&path).unwrap());
    let mut client = connect(&path);
    client.write_all(b"q").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    settle(&mut console);
    assert_eq!(guest.receive(), Some(b'q'));
    guest.send(b"answer");
    settle(&mut console);
    assert_eq!(read_exactly(&client, 6), b"answer");
    drop(client);
    settle(&mut console);
    assert_eq!(console.backend().output_fd(), None);
}

#[test]
fn the_input_of_a_client_that_has_gone_still_arrives() {
    let folder = folder();
    let path = folder.path().join("console");
    let (guest, mut console) = machine(Backend::socket(&path).unwrap());
    let sent = pattern(1000);
    let mut client = connect(&path);
    client.write_all(&sent).unwrap();
    drop(client);
    assert_eq!(settle(&mut console), None);
    let mut received = Vec::new();
    serve_until(&mut console, || {
        received.extend(guest.receive_all());
        received.len() == 1000
    });
    assert!(received == sent);
}

#[test]
fn a_client_that_has_gone_gives_way_even_when_the_guest_reads_nothing() {
    let folder = folder();
    let path = folder.path().join("console");
    let (guest, mut console) = machine(Backend::socket(&path).unwrap());
    let mut first = connect(&path);
    first.write_all(&[b'x'; 1000]).unwrap();
    settle(&mut console);
    drop(first);
    settle(&mut console);
    let second = connect(&path);
    settle(&mut console);
    guest.send(b"hello");
    settle(&mut console);
    assert_eq!(read_exactly(&second, 5), b"hello");
}

#[test]
fn a_client_that_reads_nothing_stops_neither_the_guest_nor_the_loop() {
    let folder = folder();
    let path = folder.path().join("console");
    let (guest, mut console) = machine(Backend::socket(&path).unwrap());
    let client = connect(&path);
    settle(&mut console);
    let event_loop = Loop::start(console);
    guest.send(&pattern(MIB));
    assert!(guest.lost() > 0);
    let (mut console, _) = event_loop.stop();
    assert_eq!(settle(&mut console), None);
    drop(client);
    settle(&mut console);
    assert!(guest.may_send());
    assert_eq!(console.drain(PATIENCE), 0);
}

#[test]
fn a_socket_does_not_take_a_path_that_exists_and_removes_only_its_own() {
    let folder = folder();
    let path = folder.path().join("console");
    std::fs::write(&path, "precious").unwrap();
    let error = Backend::socket(&path).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();

    drop(Backend::socket(&path).unwrap());
    assert!(!path.exists());

    let backend = Backend::socket(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(backend);
    assert!(path.exists());
}
