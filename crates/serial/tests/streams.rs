//! The console between standard streams and files: pipes, terminals, regular files, devices.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Loop, PATIENCE, flags, machine, pattern, serve_until, settle, terminal};
use kindling_rate_limiter::BucketConfig;
use kindling_serial::terminal::RawMode;
use kindling_serial::{Backend, ConsoleEvent, STALL_LIMIT, WriteOutcome};

const MIB: usize = 1024 * 1024;

fn null() -> File {
    OpenOptions::new().read(true).write(true).open("/dev/null").unwrap()
}

fn streams(input: &impl AsFd, output: &impl AsFd) -> Backend {
    Backend::streams(input.as_fd(), output.as_fd()).unwrap()
}

/// Makes the terminal raw until the test ends; there is one raw terminal at a time.
fn raw(terminal: &File) -> (RawMode, MutexGuard<'static, ()>) {
    static ONE: Mutex<()> = Mutex::new(());
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    (RawMode::enable_on(terminal.try_clone().unwrap().into()).unwrap(), turn)
}

/// Reads in small bites with pauses.
fn read_slowly(mut reader: impl Read) -> Vec<u8> {
    let (mut all, mut bite) = (Vec::new(), [0; 5000]);
    loop {
        match reader.read(&mut bite).unwrap() {
            0 => return all,
            count => all.extend_from_slice(&bite[..count]),
        }
        if all.len() % 11 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_mebibyte_of_output_arrives_whole_at_a_slow_reader() {
    for socket in [false, true] {
        let (reader, writer): (OwnedFd, OwnedFd) = if socket {
            let (reader, writer) = UnixStream::pair().unwrap();
            (reader.into(), writer.into())
        } else {
            let (reader, writer) = pipe().unwrap();
            (reader.into(), writer.into())
        };
        let (guest, console) = machine(streams(&null(), &writer));
        drop(writer);
        let reader = std::thread::spawn(move || read_slowly(File::from(reader)));
        let event_loop = Loop::start(console);
        let sent = pattern(MIB);
        guest.send(&sent);
        let (mut console, _) = event_loop.stop();
        assert_eq!(console.drain(PATIENCE), 0);
        drop(console);
        assert!(reader.join().unwrap() == sent);
        assert_eq!(guest.lost(), 0);
    }
}

#[test]
fn a_byte_after_a_silence_wakes_the_loop_and_of_a_stream_not_every_byte_does() {
    let (guest, mut console) = machine(streams(&null(), &null()));
    settle(&mut console);
    let mut woken_and_served = || {
        let woken = guest.port.lock().unwrap().write(0, b'x');
        console.service().unwrap();
        woken
    };
    assert!(woken_and_served());
    assert!(woken_and_served(), "the first byte may have been all there was");
    let start = Instant::now();
    while woken_and_served() {
        assert!(start.elapsed() < PATIENCE, "every byte wakes the loop");
    }
}

#[test]
fn ten_mebibytes_through_a_pipe_arrive_whole_and_the_writer_never_waits() {
    let (reader, writer) = pipe().unwrap();
    let mut backend = streams(&null(), &writer);
    drop(writer);
    let reader = std::thread::spawn(move || read_slowly(reader));
    let sent = pattern(10 * MIB);
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        match backend.write(rest).unwrap() {
            WriteOutcome::Taken(count) => rest = &rest[count..],
            WriteOutcome::NotReady => std::thread::sleep(Duration::from_micros(100)),
            WriteOutcome::Closed => panic!("the reader is there"),
        }
    }
    drop(backend);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_reader_that_never_reads_stalls_neither_the_guest_nor_the_loop() {
    let (_reader, writer) = pipe().unwrap();
    let (_master, slave) = terminal();
    for output in [writer.as_fd(), slave.as_fd()] {
        let (guest, console) = machine(Backend::streams(null().as_fd(), output).unwrap());
        let event_loop = Loop::start(console);
        let start = Instant::now();
        guest.send(&pattern(MIB));
        assert!(start.elapsed() < STALL_LIMIT * 5, "one stall, and no more");
        assert!(guest.lost() > 0);
        std::thread::sleep(Duration::from_millis(100));
        let (mut console, calls) = event_loop.stop();
        assert!(calls < 5000, "served {calls} times");
        // Nor does it hold up the exit.
        let start = Instant::now();
        assert!(console.drain(Duration::from_millis(50)) > 0);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_closed_pipe_turns_output_to_discard() {
    let (reader, writer) = pipe().unwrap();
    let (guest, mut console) = machine(streams(&null(), &writer));
    settle(&mut console);
    drop(reader);
    guest.send(b"hello");
    settle(&mut console);
    guest.send(&pattern(MIB));
    assert_eq!(settle(&mut console), None);
    assert_eq!(guest.lost(), 5 + u64::try_from(MIB).unwrap());
    assert_eq!(console.backend().output_fd(), None);
    assert_eq!(console.drain(PATIENCE), 0);
}

#[test]
fn descriptors_shared_with_others_keep_their_flags() {
    let (pipe_reader, pipe_writer) = pipe().unwrap();
    let (_master, slave) = terminal();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let input: [OwnedFd; 3] =
        [pipe_reader.into(), slave.try_clone().unwrap().into(), socket.try_clone().unwrap().into()];
    let output: [OwnedFd; 3] = [pipe_writer.into(), slave.into(), socket.into()];
    for (input, output) in input.iter().zip(&output) {
        let before = [flags(input), flags(output)];
        let (guest, mut console) = machine(streams(input, output));
        guest.send(b"hello");
        settle(&mut console);
        assert_eq!([flags(input), flags(output)], before);
        assert_eq!(before[0] & libc::O_NONBLOCK, 0);
    }
}

#[test]
fn a_mebibyte_of_input_arrives_whole_at_a_slow_guest() {
    let (reader, mut writer) = pipe().unwrap();
    let (guest, console) = machine(streams(&reader, &null()));
    let sent = pattern(MIB);
    let input = sent.clone();
    let typist = std::thread::spawn(move || writer.write_all(&input).unwrap());
    let event_loop = Loop::start(console);
    let (mut received, start) = (Vec::new(), Instant::now());
    while received.len() < sent.len() {
        assert!(start.elapsed() < PATIENCE * 2, "{} bytes arrived", received.len());
        match guest.receive() {
            Some(byte) => received.push(byte),
            None => std::thread::yield_now(),
        }
    }
    typist.join().unwrap();
    assert!(received == sent);
    let (console, _) = event_loop.stop();
    assert_eq!(console.backend().input_fd(), None, "the end of the input was seen");
}

#[test]
fn input_waits_in_the_pipe_while_the_guest_reads_nothing() {
    let (reader, mut writer) = pipe().unwrap();
    let (guest, mut console) = machine(streams(&reader, &null()));
    writer.write_all(&[b'i'; 1000]).unwrap();
    assert_eq!(settle(&mut console), None);
    let mut left: i32 = 0;
    // SAFETY: FIONREAD writes one int, which lives across the call.
    unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::FIONREAD, &raw mut left) };
    assert!(left > 900, "{left} bytes are left");
    let mut received = 0;
    serve_until(&mut console, || {
        received += guest.receive_all().count();
        received == 1000
    });
}

#[test]
fn the_end_of_the_input_leaves_the_output_alone() {
    let (reader, writer) = pipe().unwrap();
    drop(writer);
    let (mut out, output) = pipe().unwrap();
    let (guest, mut console) = machine(streams(&reader, &output));
    settle(&mut console);
    assert_eq!(console.backend().input_fd(), None);
    guest.send(b"hello");
    settle(&mut console);
    let mut received = [0; 5];
    out.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hello");
}

#[test]
fn regular_files_and_devices_that_epoll_refuses_are_served_without_spinning() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::write(&input, pattern(1000)).unwrap();
    let (guest, mut console) =
        machine(streams(&File::open(&input).unwrap(), &File::create(&output).unwrap()));
    assert!(!console.backend().input_pollable() && !console.backend().output_pollable());
    let mut received = Vec::new();
    serve_until(&mut console, || {
        received.extend(guest.receive_all());
        received.len() == 1000
    });
    assert!(received == pattern(1000));
    let event_loop = Loop::start(console);
    guest.send(&pattern(MIB));
    let (mut console, _) = event_loop.stop();
    settle(&mut console);
    assert_eq!(console.backend().input_fd(), None);
    assert!(std::fs::read(&output).unwrap() == pattern(MIB));

    let (guest, mut console) = machine(streams(&null(), &null()));
    guest.send(&pattern(1000));
    settle(&mut console);
    assert_eq!((guest.lost(), guest.port.lock().unwrap().output_len()), (0, 0));
}

#[test]
fn endless_input_that_the_guest_does_not_read_does_not_spin() {
    let (_guest, mut console) = machine(streams(&File::open("/dev/zero").unwrap(), &null()));
    assert_eq!(settle(&mut console), None);
}

#[test]
fn a_full_disk_loses_output_and_nothing_else() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (guest, mut console) = machine(streams(&null(), &full));
    guest.send(&[b'x'; 1000]);
    settle(&mut console);
    assert_eq!(guest.lost(), 1000);
    assert!(console.backend().output_fd().is_some(), "there may be room again some time");
}

#[test]
fn a_file_is_created_or_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.log");
    for line in ["one\n", "two\n"] {
        let (guest, mut console) = machine(Backend::file(&path).unwrap());
        guest.send(line.as_bytes());
        assert_eq!(console.drain(PATIENCE), 0);
        assert_eq!(console.backend().input_fd(), None);
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
}

#[test]
fn readers_of_a_fifo_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the call reads a string that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let (guest, mut console) = machine(Backend::file(&path).unwrap());
    for line in ["before anybody reads\n", "for another one\n"] {
        guest.send(line.as_bytes());
        settle(&mut console);
        let mut received = vec![0; line.len()];
        File::open(&path).unwrap().read_exact(&mut received).unwrap();
        assert_eq!(received, line.as_bytes());
    }
    assert_eq!(guest.lost(), 0);
}

#[test]
fn a_directory_and_a_missing_folder_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("missing/log")] {
        let error = Backend::file(&path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn drain_brings_the_last_words_to_a_slow_reader() {
    let (reader, writer) = pipe().unwrap();
    let (guest, mut console) = machine(streams(&null(), &writer));
    drop(writer);
    let sent = pattern(60_000);
    guest.send(&sent);
    // The pipe is full half-way without a reader.
    // SAFETY: F_SETPIPE_SZ takes a number.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::F_SETPIPE_SZ, 4096) };
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        read_slowly(reader)
    });
    assert_eq!(console.drain(PATIENCE), 0);
    drop(console);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn drain_is_patient_as_long_as_the_reader_takes_something() {
    let (mut reader, writer) = pipe().unwrap();
    let (guest, mut console) = machine(streams(&null(), &writer));
    drop(writer);
    let sent = pattern(60_000);
    guest.send(&sent);
    // SAFETY: F_SETPIPE_SZ takes a number.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::F_SETPIPE_SZ, 4096) };
    let reader = std::thread::spawn(move || {
        let (mut received, mut buffer) = (Vec::new(), [0; 2048]);
        loop {
            std::thread::sleep(Duration::from_millis(40));
            match reader.read(&mut buffer).unwrap() {
                0 => return received,
                count => received.extend_from_slice(&buffer[..count]),
            }
        }
    });
    let (start, patience) = (std::time::Instant::now(), Duration::from_millis(500));
    assert_eq!(console.drain(patience), 0);
    assert!(start.elapsed() > patience, "the reader took too little time to show anything");
    drop(console);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn at_a_terminal_the_escapes_work_even_when_the_guest_reads_nothing() {
    let (mut master, slave) = terminal();
    let _raw = raw(&slave);
    let (guest, mut console) = machine(streams(&slave, &null()));
    assert!(console.backend().is_interactive());
    master.write_all(&[b'z'; 500]).unwrap();
    master.write_all(b"\x01\x01\x01b").unwrap();
    assert_eq!(settle(&mut console), None);
    master.write_all(b"\x01d").unwrap();
    assert_eq!(settle(&mut console), Some(ConsoleEvent::CtrlAltDel));
    master.write_all(b"\x01x").unwrap();
    assert_eq!(settle(&mut console), Some(ConsoleEvent::Quit));

    let mut received = Vec::new();
    serve_until(&mut console, || {
        received.extend(guest.receive_all());
        received.len() == 503
    });
    assert_eq!(received[500..], *b"\x01\x01b");
}

#[test]
fn without_escapes_all_that_is_typed_is_the_guests() {
    let (mut master, slave) = terminal();
    let _raw = raw(&slave);
    let (guest, mut console) = machine(streams(&slave, &null()));
    console.disable_escapes();
    master.write_all(b"\x01x\x01d\x01\x01").unwrap();
    let mut received = Vec::new();
    serve_until(&mut console, || {
        received.extend(guest.receive_all());
        received.len() == 6
    });
    assert_eq!(received, *b"\x01x\x01d\x01\x01");
}

#[test]
fn a_long_paste_into_the_terminal_arrives_whole_at_a_slow_guest() {
    let (mut master, slave) = terminal();
    let _raw = raw(&slave);
    let (guest, mut console) = machine(streams(&slave, &null()));
    let sent: Vec<u8> = pattern(50_000).iter().map(|byte| b'a' + byte % 26).collect();
    let paste = sent.clone();
    let typist = std::thread::spawn(move || master.write_all(&paste).map(|()| master).unwrap());
    assert_eq!(settle(&mut console), None);
    let mut received = Vec::new();
    serve_until(&mut console, || {
        received.extend(guest.receive_all());
        received.len() == sent.len()
    });
    assert!(received == sent);
    typist.join().unwrap();
}

#[test]
fn what_a_guest_that_reads_nothing_leaves_of_a_paste_is_counted_and_the_rest_is_in_order() {
    const KEPT: usize = 64 << 10;
    let (mut master, slave) = terminal();
    let _raw = raw(&slave);
    let (guest, mut console) = machine(streams(&slave, &null()));
    let sent: Vec<u8> = pattern(100_000).iter().map(|byte| b'a' + byte % 26).collect();
    let paste = sent.clone();
    let typist = std::thread::spawn(move || master.write_all(&paste).map(|()| master).unwrap());
    while !typist.is_finished() {
        assert_eq!(settle(&mut console), None);
    }
    typist.join().unwrap();
    assert_eq!(settle(&mut console), None);
    let lost = usize::try_from(console.lost_input()).unwrap();
    assert!(lost > 0 && lost <= sent.len() - KEPT, "{lost}");
    let mut received = Vec::new();
    serve_until(&mut console, || {
        received.extend(guest.receive_all());
        received.len() == sent.len() - lost
    });
    assert!(received == sent[..received.len()]);
}

#[test]
fn ctrl_a_x_through_a_pipe_is_input_like_any_other() {
    let (reader, mut writer) = pipe().unwrap();
    let (guest, mut console) = machine(streams(&reader, &null()));
    assert!(!console.backend().is_interactive());
    writer.write_all(b"\x01x").unwrap();
    assert_eq!(settle(&mut console), None);
    assert_eq!([guest.receive(), guest.receive()], [Some(0x01), Some(b'x')]);
}

#[test]
fn output_beyond_its_limit_is_lost_and_counted() {
    let (reader, writer) = pipe().unwrap();
    let (guest, mut console) = machine(streams(&null(), &writer));
    drop(writer);
    let day = Duration::from_secs(24 * 60 * 60);
    console.limit_output(BucketConfig { size: 1000, refill_time: day, one_time_burst: 500 }).unwrap();
    let sent = pattern(4000);
    guest.send(&sent);
    settle(&mut console);
    assert_eq!(guest.lost(), 2500);
    drop(console);
    let mut received = Vec::new();
    (&reader).read_to_end(&mut received).unwrap();
    assert_eq!(received, sent[..1500]);
}
