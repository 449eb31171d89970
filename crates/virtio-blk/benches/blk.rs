//! What a read from the page cache costs, without a guest: 4 KiB and 128 KiB, on both engines, one by one and 32 at a
//! time.

#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kindling_virtio_blk::{Blk, BlkConfig, FileDisk, IoEngine};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of the disk.
const DISK: usize = 16 << 20;

/// A driver that makes the same reads again and again, without looking at what it gets.
struct Reader {
    driver: MockDriver,
    workers: Inline,
    heads: Vec<u16>,
    used: u16,
}

impl Reader {
    fn new(disk: FileDisk, engine: IoEngine, len: u32, batch: u64) -> Self {
        let config = BlkConfig { engine, ..BlkConfig::default() };
        let mut device = Blk::new(Arc::new(disk), &config).expect("a device");
        let mut driver = MockDriver::new(&device);
        let workers = device.activate(driver.activation()).expect("workers");
        let prepare = |index: u64| {
            let sector = index * 7919 * 4096 / 512 % ((DISK as u64 - u64::from(len)) / 512);
            let mut header = [0; 16];
            header[8..].copy_from_slice(&sector.to_le_bytes());
            let buffers = [Buffer::Readable(&header), Buffer::Writable(len), Buffer::Writable(1)];
            driver.queues[0].prepare(&buffers, false)
        };
        let heads = (0..batch).map(prepare).collect();
        Self { driver, workers: Inline::start(workers).expect("workers"), heads, used: 0 }
    }

    fn read(&mut self) {
        let queue = &mut self.driver.queues[0];
        for head in &self.heads {
            queue.offer(*head);
        }
        queue.kick();
        self.used = self.used.wrapping_add(self.heads.len() as u16);
        let index = GuestAddress(queue.state.config.used_ring + 2);
        while self.driver.memory.load::<u16>(index, Ordering::Acquire).expect("an index") != self.used {
            self.workers.step(100).expect("a step");
        }
    }
}

fn reads(criterion: &mut Criterion) {
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    file.write_all(&vec![0x5a; DISK]).expect("a disk");
    let mut group = criterion.benchmark_group("read");
    for len in [4 << 10, 128 << 10] {
        for batch in [1, 32] {
            group.throughput(Throughput::Elements(batch));
            for engine in [IoEngine::Sync, IoEngine::Async] {
                let disk = FileDisk::open(file.path(), true, false).expect("a disk");
                let mut reader = Reader::new(disk, engine, len, batch);
                let name = BenchmarkId::new(format!("{engine:?}"), format!("{} KiB x {batch}", len >> 10));
                group.bench_function(name, |bencher| bencher.iter(|| black_box(&mut reader).read()));
            }
        }
    }
}

criterion_group!(benches, reads);
criterion_main!(benches);
