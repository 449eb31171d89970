//! Sockets between guest and host: many at a time, both ways, with the tools that people use.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::{Guest, files, on_host, scaled};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{output, power_off, ready, with_root};

/// Connections at a time.
const STREAMS: usize = 100;
/// Bytes in each, each way.
const BYTES: usize = 200_000;
/// For all that goes over connections.
const LIMIT: Duration = Duration::from_secs(300);

struct Machine {
    guest: Guest,
    _folder: TempDir,
    path: PathBuf,
}

/// A guest with a vsock device, and where the host finds it.
fn start() -> Machine {
    let folder = files::scratch().unwrap();
    let path = folder.path().join("v.sock");
    let guest = ready(
        with_root()
            .memory("512M")
            .modules(&["virtio_mmio", "vmw_vsock_virtio_transport"])
            .arg("--vsock")
            .arg(format!("cid=3,path={}", path.display())),
    );
    Machine { guest, _folder: folder, path }
}

/// Connects to a port of the guest, as soon as a program listens there.
pub fn connect(path: &Path, port: u32) -> UnixStream {
    let end = Instant::now() + scaled(LIMIT);
    loop {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(scaled(LIMIT))).unwrap();
        stream.set_write_timeout(Some(scaled(LIMIT))).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while answer.last() != Some(&b'\n') && stream.read(&mut byte).unwrap() == 1 {
            answer.push(byte[0]);
        }
        if answer.starts_with(b"OK ") && answer.ends_with(b"\n") {
            return stream;
        }
        // Nobody listens yet.
        assert!(answer.is_empty() && Instant::now() < end, "{}", String::from_utf8_lossy(&answer));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Bytes that tell one stream from another, and each place in it from others.
fn content(stream: usize) -> Vec<u8> {
    (0..BYTES).map(|at| ((at * 31 + at / 251 + stream * 7) % 256) as u8).collect()
}

#[test]
fn a_hundred_streams_from_the_host_come_back_as_they_were_sent() {
    let mut machine = start();
    output(&mut machine.guest, "socat VSOCK-LISTEN:5000,fork,backlog=200 PIPE >/dev/null 2>&1 &");
    std::thread::scope(|scope| {
        for index in 0..STREAMS {
            let path = &machine.path;
            scope.spawn(move || {
                let mut stream = connect(path, 5000);
                let sent = content(index);
                let mut writer = stream.try_clone().unwrap();
                let mut received = Vec::new();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        writer.write_all(&sent).unwrap();
                        // The guest's end of the stream is told, and ends in its turn.
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    stream.read_to_end(&mut received).unwrap();
                });
                assert!(received == sent, "stream {index} is not what was sent ({} bytes)", received.len());
            });
        }
    });
    power_off(&mut machine.guest);
    assert!(!machine.path.exists(), "the socket is gone with the monitor");
}

#[test]
fn a_hundred_streams_from_the_guest_arrive_whole() {
    let mut machine = start();
    let listener = UnixListener::bind(format!("{}_6000", machine.path.display())).unwrap();
    // A guest that is short of processor time gives a connection up after two seconds, and socat tries again.
    let send = format!(
        "mkdir /tmp/s && cd /tmp/s && head -c {BYTES} /dev/urandom > bytes && \
         for i in $(seq {STREAMS}); do (echo $i; cat bytes) > $i; done && rm bytes && \
         for i in *; do socat -u OPEN:$i VSOCK-CONNECT:2:6000,retry=30,interval=0.5 2>/dev/null || \
         echo failed $i & done; wait; sha256sum * | cut -c 1-64"
    );
    let finished = AtomicBool::new(false);
    listener.set_nonblocking(true).unwrap();
    let (sums, said) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut sums = Vec::new();
            loop {
                let over = finished.load(Ordering::SeqCst);
                match listener.accept() {
                    Ok((stream, _)) => sums.push(scope.spawn(move || sum(stream))),
                    Err(_) if over => break,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            sums.into_iter().filter_map(|sum| sum.join().unwrap()).collect::<BTreeSet<_>>()
        });
        let said = machine.guest.run_within(&send, LIMIT);
        finished.store(true, Ordering::SeqCst);
        (receiver.join().unwrap(), said.unwrap())
    });
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.stdout.lines().map(str::to_owned).collect::<BTreeSet<_>>(), sums);
    assert_eq!(sums.len(), STREAMS);
    power_off(&mut machine.guest);
}

/// The checksum of what a stream carries to its end; `None` for nothing.
fn sum(mut stream: UnixStream) -> Option<String> {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(scaled(LIMIT))).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let sum = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    (!bytes.is_empty()).then_some(sum)
}

#[test]
fn socat_at_the_host_talks_to_the_guest() {
    let mut machine = start();
    output(
        &mut machine.guest,
        "socat VSOCK-LISTEN:5001,fork 'SYSTEM:read line; echo guest heard $line' >/dev/null 2>&1 &",
    );
    drop(connect(&machine.path, 5001));
    let say = format!(
        "(printf 'CONNECT 5001\\n'; sleep 2; echo hello) | socat -t 10 - UNIX-CONNECT:{}",
        machine.path.display()
    );
    let heard = on_host("sh", &["-c", &say], LIMIT).unwrap();
    let mut lines = heard.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("OK ")), "{heard}");
    assert_eq!(lines.next(), Some("guest heard hello"), "{heard}");
    power_off(&mut machine.guest);
}

#[test]
fn nobody_listening_is_a_refusal_on_both_sides() {
    let mut machine = start();
    let mut stream = UnixStream::connect(&machine.path).unwrap();
    stream.set_read_timeout(Some(scaled(LIMIT))).unwrap();
    stream.write_all(b"CONNECT 7000\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"");
    let refused = machine.guest.run("socat -u /dev/null VSOCK-CONNECT:2:7000 2>&1").unwrap();
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stdout.contains("Connection reset by peer"), "{refused:?}");
    power_off(&mut machine.guest);
}

#[test]
fn sockets_work_again_after_the_driver_was_unbound() {
    let mut machine = start();
    output(
        &mut machine.guest,
        "ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport | grep ^virtio > /tmp/name",
    );
    for round in 0..3 {
        let listen = format!("(echo {round} | socat - VSOCK-LISTEN:5002 >/dev/null 2>&1 &)");
        output(&mut machine.guest, &listen);
        let mut stream = connect(&machine.path, 5002);
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        assert_eq!(received, format!("{round}\n"));
        for action in ["unbind", "bind"] {
            let command =
                format!("cat /tmp/name > /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/{action}");
            output(&mut machine.guest, &command);
        }
    }
    power_off(&mut machine.guest);
}
