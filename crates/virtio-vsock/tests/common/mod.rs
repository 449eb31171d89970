//! A guest that speaks the socket protocol over the mock driver, and a machine of guest, device and host side.

#![allow(dead_code, unused_imports)]

mod guest;
mod packet;

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kindling_virtio_device::test_utils::{Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use kindling_virtio_vsock::{DEFAULT_MAX_CONNECTIONS, Vsock};
use tempfile::TempDir;

pub use guest::Guest;
pub use packet::{Packet, RCV, SEND, op};

/// The guest's CID.
pub const CID: u32 = 7;

/// A device whose worker runs on the calling thread, its guest, and a folder with its Unix sockets.
pub struct Machine {
    pub guest: Guest,
    pub worker: Option<Inline>,
    pub device: Vsock,
    pub dir: TempDir,
}

impl Machine {
    pub fn new() -> Self {
        Self::with(DEFAULT_MAX_CONNECTIONS.get(), COMMON_FEATURES)
    }

    pub fn with(max_connections: u16, features: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let limit = NonZeroU16::new(max_connections).unwrap();
        let mut device = Vsock::new(CID, &dir.path().join("v.sock"), limit).unwrap();
        let driver = MockDriver::with_features(&device, features);
        let worker = Inline::start(device.activate(driver.activation()).unwrap()).unwrap();
        Self { guest: Guest::new(driver), worker: Some(worker), device, dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("v.sock")
    }

    pub fn port_path(&self, port: u32) -> PathBuf {
        self.dir.path().join(format!("v.sock_{port}"))
    }

    /// A host program that listens for guests that want `port`.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.port_path(port)).unwrap()
    }

    /// A counter of the device.
    pub fn metric(&self, name: &str) -> u64 {
        metric(&self.device, name)
    }

    /// Lets device and guest do what there is to do now.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            let guest = self.guest.poll();
            if self.worker.as_mut().unwrap().run(1000).unwrap() == 0 && !guest {
                return;
            }
        }
        panic!("device and guest do not come to rest");
    }

    /// Lets the device do what there is to do now, while the guest does nothing.
    pub fn run_device(&mut self) -> usize {
        let steps = self.worker.as_mut().unwrap().run(10_000).unwrap();
        assert!(steps < 10_000, "the device does not come to rest");
        steps
    }

    /// Lets both go on until `done`, for at most 30 seconds.
    pub fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < end, "it takes too long");
            if !self.guest.poll() {
                self.worker.as_mut().unwrap().step(1).unwrap();
            }
        }
    }

    /// Connects as a host program and says where to go.
    pub fn connect(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        stream
    }

    /// A connection that a host program asked for, and its host port.
    pub fn host_to_guest(&mut self, port: u32) -> (UnixStream, u32) {
        self.guest.listen(port);
        let stream = self.connect(port);
        self.run();
        let host_port = read_ok(&stream);
        (stream, host_port)
    }

    /// A connection that the guest asked for, from `guest_port` to `port`.
    pub fn guest_to_host(&mut self, port: u32, guest_port: u32) -> UnixStream {
        let listener = self.listen(port);
        self.guest.connect(port, guest_port);
        self.run();
        assert!(self.guest.socket(port, guest_port).open, "the connection is open");
        std::fs::remove_file(self.port_path(port)).unwrap();
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Takes the worker from its thread and puts it back, as a pause does.
    pub fn sleep_and_wake(&mut self) {
        let workers = self.worker.take().unwrap().stop();
        self.worker = Some(Inline::start(workers).unwrap());
    }
}

/// A counter of a device.
pub fn metric(device: &Vsock, name: &str) -> u64 {
    device.metrics().value(name).unwrap_or_else(|| panic!("no counter {name}")).number()
}

/// Reads `OK <port>` as a host program does, byte by byte.
pub fn read_ok(mut stream: &UnixStream) -> u32 {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the connection was accepted");
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    line.strip_prefix("OK ").unwrap().trim_end().parse().unwrap()
}

/// Whether the other end has closed or reset `stream` and all was read.
pub fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let result = stream.read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    match result {
        Ok(len) => len == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Sets how many descriptors this process may have, as far as it may.
pub fn limit_descriptors(count: libc::rlim_t) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one `rlimit`, and the pointer is to one.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    limit.rlim_cur = count.min(limit.rlim_max);
    // SAFETY: the call reads one `rlimit`, and the pointer is to one.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

/// Bytes that look random, a different sequence for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// A small generator of numbers that look random.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
