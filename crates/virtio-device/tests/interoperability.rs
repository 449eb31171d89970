//! Each side of a queue against rust-vmm's other side.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::{EVENT_IDX, INDIRECT, driver};
use kindling_virtio_device::test_utils::Buffer;
use kindling_virtio_device::{Chain, GuestMemory, Queue, QueueConfig, QueueState};
use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const SIZE: u16 = 32;
/// Addresses in the first and in the last region.
const LOW: u64 = 0x10_0000;
const HIGH: u64 = 0x1_0000_0000;

fn memory() -> Arc<GuestMemory> {
    // The second is where the other driver puts its indirect tables.
    let ranges = [(0, 2 << 20), (0x3000_0000, 1 << 20), (HIGH, 1 << 20)];
    let ranges = ranges.map(|(start, len)| (GuestAddress(start), len));
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

fn device(memory: &Arc<GuestMemory>, mock: &MockSplitQueue<'_, GuestMemory>) -> Queue {
    let config = QueueConfig {
        size: SIZE,
        descriptor_table: mock.desc_table_addr().0,
        available_ring: mock.avail_addr().0,
        used_ring: mock.used_addr().0,
    };
    let state = QueueState { config, ..QueueState::default() };
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let interrupt = driver(SIZE, 0).interrupt;
    Queue::new(Arc::clone(memory), state, INDIRECT, kick, interrupt).unwrap()
}

#[test]
fn another_driver_gets_its_chains_back() {
    let memory = memory();
    let mock = MockSplitQueue::new(&*memory, SIZE);
    let mut queue = device(&memory, &mock);
    let mut chain = Chain::new(&memory);
    let mut used = 0;
    for round in 0..3_u16 {
        // Two chains whose buffers lie in both regions by turns.
        let base = round * 5;
        let descriptors = [
            (LOW, 3, 1, 1),
            (HIGH, 2, 1, 2),
            (LOW + 0x100, 1, 3, 3),
            (HIGH + 0x100, 9, 2, 0),
            (HIGH + 0x200, 4, 2, 0),
        ]
        .map(|(address, len, flags, next)| {
            RawDescriptor::from(Descriptor::new(address, len, flags, base + next))
        });
        memory.write_slice(b"abc", GuestAddress(LOW)).unwrap();
        memory.write_slice(b"de", GuestAddress(HIGH)).unwrap();
        mock.add_desc_chains(&descriptors, base).unwrap();

        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!(chain.head(), base);
        assert_eq!(chain.readable.take(), Some(*b"abcde"));
        assert_eq!(chain.writable.write(b"0123456789!"), 10);
        queue.push(chain.head(), 10);
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!((chain.head(), chain.readable.len(), chain.writable.len()), (base + 4, 0, 4));
        queue.push(chain.head(), 0);
        assert!(!queue.pop(&mut chain).unwrap());
        queue.publish();

        let mut written = [0; 11];
        memory.read_slice(&mut written[..1], GuestAddress(LOW + 0x100)).unwrap();
        memory.read_slice(&mut written[1..], GuestAddress(HIGH + 0x100)).unwrap();
        assert_eq!(&written, b"0123456789\0");
        for expected in [(base, 10), (base + 4, 0)] {
            let entry = mock.used().ring().ref_at(used).unwrap().load();
            assert_eq!((entry.id(), entry.len()), (expected.0.into(), expected.1));
            used += 1;
        }
        assert_eq!(usize::from(u16::from_le(mock.used().idx().load())), used);
    }
}

#[test]
fn another_drivers_indirect_tables_are_understood() {
    let memory = memory();
    let mut mock = MockSplitQueue::new(&*memory, SIZE);
    let mut queue = device(&memory, &mock);
    mock.add_indirect_chain(20).unwrap();
    let mut chain = Chain::new(&memory);
    assert!(queue.pop(&mut chain).unwrap());
    // Its buffers are all readable, of 4 KiB each.
    assert_eq!((chain.readable.iovecs().len(), chain.readable.len()), (20, 20 * 4096));
}

#[test]
fn another_device_sees_what_the_driver_for_tests_offers() {
    let mut driver = driver(SIZE, INDIRECT | EVENT_IDX);
    let config = driver.queues[0].state.config;
    let mut device = virtio_queue::Queue::new(SIZE).unwrap();
    device.try_set_desc_table_address(GuestAddress(config.descriptor_table)).unwrap();
    device.try_set_avail_ring_address(GuestAddress(config.available_ring)).unwrap();
    device.try_set_used_ring_address(GuestAddress(config.used_ring)).unwrap();
    device.set_event_idx(true);
    device.set_ready(true);
    let memory = Arc::clone(&driver.memory);
    assert!(device.is_valid(&*memory));
    for round in 0..100 {
        let buffers = [Buffer::Readable(b"abc"), Buffer::Readable(b"de"), Buffer::Writable(7)];
        let queue = &mut driver.queues[0];
        let head =
            if round % 2 == 0 { queue.prepare(&buffers, true) } else { queue.prepare(&buffers, false) };
        queue.offer(head);
        assert!(queue.kick_if_wanted());

        let chain = device.pop_descriptor_chain(&*memory).unwrap();
        assert_eq!(chain.head_index(), head);
        let (mut read, mut written) = ([0; 5], 0);
        let mut reader = chain.clone().reader(&memory).unwrap();
        std::io::Read::read_exact(&mut reader, &mut read).unwrap();
        for descriptor in chain.writable() {
            memory.write_slice(&[b'x'; 7], descriptor.addr()).unwrap();
            written += descriptor.len();
        }
        assert_eq!((&read, written), (b"abcde", 7));
        device.add_used(&*memory, head, written).unwrap();
        assert!(device.needs_notification(&*memory).unwrap());
        assert!(!device.enable_notification(&*memory).unwrap());
        let used = driver.queues[0].take_used().unwrap();
        assert_eq!((used.head, used.written, &used.data[..]), (head, 7, &b"xxxxxxx"[..]));
    }
}
