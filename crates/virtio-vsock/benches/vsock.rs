//! What the device costs: bytes each way in small and large packets, and connections.
//!
//! The host program's calls are part of what is measured, and so is a driver that does the least it can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Inline, MockDriver};
use kindling_virtio_vsock::{DEFAULT_MAX_CONNECTIONS, Vsock};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

const CID: u64 = 3;
const ENTRIES: u16 = 256;
const BUFFER_BYTES: u64 = 128 << 10;
/// Where the buffers of the queues are: behind the rings, which are small.
const BUFFERS: [u64; 2] = [32 << 20, 96 << 20];

mod op {
    pub const RESPONSE: u16 = 2;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
}

/// Device, worker and a driver that uses the same buffers again and again.
struct Bench {
    driver: MockDriver,
    worker: Inline,
    used: [u16; 2],
    next_tx: u16,
    received: u32,
    path: PathBuf,
    _device: Vsock,
    _dir: TempDir,
}

impl Bench {
    /// With receive buffers for `payload` bytes.
    fn new(payload: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let mut device = Vsock::new(CID as u32, &path, DEFAULT_MAX_CONNECTIONS).unwrap();
        let mut driver = MockDriver::new(&device);
        let worker = Inline::start(device.activate(driver.activation()).unwrap()).unwrap();
        let table = driver.queues[0].state.config.descriptor_table;
        for index in 0..ENTRIES {
            let address = BUFFERS[0] + u64::from(index) * BUFFER_BYTES;
            driver.queues[0].write_descriptor(table, index, address, 44 + payload, 2, 0);
            driver.queues[0].offer(index);
        }
        driver.queues[0].kick();
        Self { driver, worker, used: [0; 2], next_tx: 0, received: 0, path, _device: device, _dir: dir }
    }

    /// Sends a packet, whose payload is whatever is there. Does not kick.
    fn send(&mut self, op: u16, ports: (u32, u32), flags: u32, len: u32) {
        let index = self.next_tx % ENTRIES;
        self.next_tx = self.next_tx.wrapping_add(1);
        let mut header = [0; 44];
        header[0..8].copy_from_slice(&CID.to_le_bytes());
        header[8..16].copy_from_slice(&2_u64.to_le_bytes());
        header[16..20].copy_from_slice(&ports.1.to_le_bytes());
        header[20..24].copy_from_slice(&ports.0.to_le_bytes());
        header[24..28].copy_from_slice(&len.to_le_bytes());
        header[28..30].copy_from_slice(&1_u16.to_le_bytes());
        header[30..32].copy_from_slice(&op.to_le_bytes());
        header[32..36].copy_from_slice(&flags.to_le_bytes());
        header[36..40].copy_from_slice(&(1_u32 << 30).to_le_bytes());
        header[40..44].copy_from_slice(&self.received.to_le_bytes());
        let address = BUFFERS[1] + u64::from(index) * BUFFER_BYTES;
        self.driver.memory.write_slice(&header, GuestAddress(address)).unwrap();
        let queue = &mut self.driver.queues[1];
        queue.write_descriptor(queue.state.config.descriptor_table, index, address, 44 + len, 0, 0);
        queue.offer(index);
    }

    /// Lets the device work until it has nothing left to do.
    fn run(&mut self) {
        for queue in &self.driver.queues[..2] {
            queue.kick();
        }
        self.worker.run(usize::MAX).unwrap();
    }

    /// Gives back the buffers that the device has filled. Returns the ports of the last packet.
    fn receive(&mut self) -> (u32, u32) {
        let config = self.driver.queues[0].state.config;
        let index: u16 =
            self.driver.memory.load(GuestAddress(config.used_ring + 2), Ordering::Acquire).unwrap();
        let mut ports = (0, 0);
        while self.used[0] != index {
            let at = config.used_ring + 4 + 8 * u64::from(self.used[0] % ENTRIES);
            let entry: [u32; 2] = self.driver.memory.read_obj(GuestAddress(at)).unwrap();
            let address = BUFFERS[0] + u64::from(entry[0]) * BUFFER_BYTES;
            ports = self.driver.memory.read_obj::<[u32; 2]>(GuestAddress(address + 16)).unwrap().into();
            self.received = self.received.wrapping_add(entry[1] - 44);
            self.driver.queues[0].offer(entry[0] as u16);
            self.used[0] = self.used[0].wrapping_add(1);
        }
        ports
    }

    /// A connection of a host program.
    fn connect(&mut self) -> (UnixStream, (u32, u32)) {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(b"CONNECT 52\n").unwrap();
        self.run();
        let ports = self.receive();
        self.send(op::RESPONSE, ports, 0, 0);
        self.run();
        let mut line = [0; 14];
        assert_eq!(stream.read(&mut line).unwrap(), line.len());
        assert!(line.starts_with(b"OK "));
        (stream, ports)
    }
}

/// Bytes that are sent before the other side looks: about what a Unix socket holds.
const ROUND: u32 = 128 << 10;

fn throughput(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("throughput");
    group.throughput(Throughput::Bytes(ROUND.into()));
    let mut bytes = vec![0x5a; ROUND as usize];
    for payload in [4 << 10, 64 << 10] {
        group.bench_function(format!("host_to_guest_{payload}"), |bencher| {
            let mut bench = Bench::new(payload);
            let (mut stream, ports) = bench.connect();
            bench.received = 0;
            bencher.iter(|| {
                stream.write_all(&bytes).unwrap();
                bench.run();
                let before = bench.received;
                bench.receive();
                assert_eq!(bench.received.wrapping_sub(before), ROUND);
                bench.send(op::CREDIT_UPDATE, ports, 0, 0);
            });
        });
        group.bench_function(format!("guest_to_host_{payload}"), |bencher| {
            let mut bench = Bench::new(payload);
            let (mut stream, ports) = bench.connect();
            bench.received = 0;
            bencher.iter(|| {
                for _ in 0..ROUND / payload {
                    bench.send(op::RW, ports, 0, payload);
                }
                bench.run();
                stream.read_exact(&mut bytes).unwrap();
                bench.receive();
            });
        });
    }
    group.finish();
}

fn connections(criterion: &mut Criterion) {
    criterion.bench_function("connect_and_close", |bencher| {
        let mut bench = Bench::new(4096);
        bencher.iter(|| {
            let (_stream, ports) = bench.connect();
            bench.send(op::SHUTDOWN, ports, 3, 0);
            bench.run();
            bench.receive();
        });
    });
}

criterion_group!(benches, throughput, connections);
criterion_main!(benches);
