//! What taking a chain and giving it back costs a device, against rust-vmm's `virtio-queue` on the same rings.
//!
//! One element is one chain: taken, its buffers found in this process's memory, given back and published; with event
//! indices, and a driver that wants an interrupt for every batch. `virtio-queue/walk` is that crate without finding the
//! buffers, which a device would then have to do.
#![allow(clippy::unwrap_used, missing_docs, reason = "nobody builds on a benchmark")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_virtio_device::{
    COMMON_FEATURES, Chain, GuestMemory, Interrupt, Queue, QueueConfig, QueueState,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

const SIZE: u16 = 256;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const INDIRECT: u64 = 0x10_0000;
const BUFFERS: u64 = 0x20_0000;

const NEXT: u128 = 1;
const WRITE: u128 = 2;
const INDIRECT_TABLE: u128 = 4;

/// A driver whose chains are all written: making some available is one store.
#[derive(Clone)]
struct Driver {
    memory: Arc<GuestMemory>,
    index: u16,
}

impl Driver {
    /// Chains of `buffers` buffers of 512 bytes, the first half for the device to read.
    fn new(buffers: u16, indirect: bool) -> Self {
        // Two regions, as a machine of more than 3 GiB has.
        let ranges = [(GuestAddress(0), 16 << 20), (GuestAddress(4 << 30), 16 << 20)];
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        let write = |table: u64, index: u16, address: u64, len: u32, flags: u128, next: u16| {
            let value = u128::from(address) | u128::from(len) << 64 | flags << 96 | u128::from(next) << 112;
            memory.write_slice(&value.to_le_bytes(), GuestAddress(table + 16 * u64::from(index))).unwrap();
        };
        let chains = if indirect { SIZE } else { SIZE / buffers };
        for chain in 0..chains {
            let table = if indirect { INDIRECT + 0x1000 * u64::from(chain) } else { TABLE };
            let head = if indirect { 0 } else { chain * buffers };
            for buffer in 0..buffers {
                let last = buffer + 1 == buffers;
                let flags = if last { 0 } else { NEXT } | if buffer >= buffers / 2 { WRITE } else { 0 };
                let address = BUFFERS + 0x1000 * u64::from(chain) + 0x200 * u64::from(buffer % 8);
                write(table, head + buffer, address, 0x200, flags, if last { 0 } else { head + buffer + 1 });
            }
            if indirect {
                write(TABLE, chain, table, 16 * u32::from(buffers), INDIRECT_TABLE, 0);
            }
        }
        for entry in 0..SIZE {
            let head = entry % chains * if indirect { 1 } else { buffers };
            memory.write_obj(head.to_le(), GuestAddress(AVAILABLE + 4 + 2 * u64::from(entry))).unwrap();
        }
        Self { memory, index: 0 }
    }

    /// Makes so many chains available, and wants an interrupt when the first of them is used.
    fn offer(&mut self, chains: u16) {
        let event = GuestAddress(AVAILABLE + 4 + 2 * u64::from(SIZE));
        self.memory.store(self.index, event, Ordering::Relaxed).unwrap();
        self.index = self.index.wrapping_add(chains);
        self.memory.store(self.index, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
    }
}

#[derive(Default)]
struct Count(AtomicU64);

impl Interrupt for Count {
    fn queue_used(&self, _: u16) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

fn kindling(driver: &Driver) -> impl FnMut(u16) + use<> {
    let config =
        QueueConfig { size: SIZE, descriptor_table: TABLE, available_ring: AVAILABLE, used_ring: USED };
    let state = QueueState { config, ..QueueState::default() };
    let memory = Arc::clone(&driver.memory);
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let mut queue = Queue::new(memory, state, COMMON_FEATURES, kick, Arc::new(Count::default())).unwrap();
    let mut chain = Chain::new(&driver.memory);
    move |chains| {
        for _ in 0..chains {
            assert!(queue.pop(&mut chain).unwrap());
            black_box((chain.readable.iovecs(), chain.writable.iovecs()));
            queue.push(chain.head(), 512);
        }
        queue.publish();
    }
}

fn virtio_queue(driver: &Driver, find: bool) -> impl FnMut(u16) + use<> {
    let mut queue = virtio_queue::Queue::new(SIZE).unwrap();
    queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_event_idx(true);
    queue.set_ready(true);
    let memory = Arc::clone(&driver.memory);
    let interrupt = Count::default();
    move |chains| {
        for _ in 0..chains {
            let chain = queue.pop_descriptor_chain(&*memory).unwrap();
            let head = chain.head_index();
            for descriptor in chain {
                if find {
                    let buffer = memory.get_slice(descriptor.addr(), descriptor.len() as usize).unwrap();
                    black_box(buffer.ptr_guard_mut().as_ptr());
                } else {
                    black_box(descriptor);
                }
            }
            queue.add_used(&*memory, head, 512).unwrap();
        }
        if queue.needs_notification(&*memory).unwrap() {
            interrupt.queue_used(0);
        }
    }
}

/// Takes, uses and gives back so many chains.
type Device = Box<dyn FnMut(u16)>;

fn queue(criterion: &mut Criterion) {
    for (layout, indirect) in [("direct", false), ("indirect", true)] {
        for buffers in [1, 3, 16] {
            for batch in [1, 32] {
                // So many chains need that many descriptors.
                let batch = if indirect { batch } else { batch.min(SIZE / buffers) };
                let mut group = criterion.benchmark_group(format!("{layout}/{buffers}/batch of {batch}"));
                group.throughput(Throughput::Elements(batch.into()));
                group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
                let driver = Driver::new(buffers, indirect);
                let devices: [(_, Device); 3] = [
                    ("kindling", Box::new(kindling(&driver))),
                    ("virtio-queue", Box::new(virtio_queue(&driver, true))),
                    ("virtio-queue walk", Box::new(virtio_queue(&driver, false))),
                ];
                for (name, mut device) in devices {
                    let mut driver = driver.clone();
                    group.bench_function(name, |bencher| {
                        bencher.iter(|| {
                            driver.offer(batch);
                            device(batch);
                        });
                    });
                }
                group.finish();
            }
        }
    }
}

criterion_group!(benches, queue);
criterion_main!(benches);
