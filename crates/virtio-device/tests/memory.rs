//! What chains allocate, whatever a driver makes of them. In a process of its own, whose allocator counts.

mod common;

use common::{INDIRECT, pair};
use kindling_virtio_device::Chain;
use kindling_virtio_device::test_utils::{Buffer, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn usual_chains_allocate_nothing_and_long_ones_leave_nothing_behind() {
    let (mut driver, mut queue) = pair(1024, INDIRECT);
    let mut chain = Chain::new(&driver.memory);
    let mut take = |readable: usize, writable: usize| {
        let bytes = vec![Buffer::Readable(b"x"); readable];
        let room = vec![Buffer::Writable(1); writable];
        driver.queues[0].add_indirect(&[bytes, room].concat());
        let before = (CountingAllocator::bytes(), CountingAllocator::calls());
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!((chain.readable.len(), chain.writable.len()), (readable as u32, writable as u32));
        let calls = CountingAllocator::calls() - before.1;
        queue.push(chain.head(), 0);
        chain.clear();
        let kept = CountingAllocator::bytes() - before.0;
        queue.publish();
        driver.queues[0].take_used().unwrap();
        (calls, kept)
    };
    // A write and a read of 128 segments each.
    let (mut kept, mut calls) = (0, 0);
    for (readable, writable) in [(129, 1), (1, 129), (130, 1), (1, 130)] {
        let taken = take(readable, writable);
        calls += taken.0;
        kept += taken.1;
    }
    assert!(calls > 0);
    for (readable, writable) in [(129, 1), (1, 129), (130, 130), (3, 2)] {
        assert_eq!(take(readable, writable), (0, 0), "{readable} and {writable}");
    }
    for (readable, writable) in [(1023, 1), (1, 1023), (512, 512)] {
        let (calls, more) = take(readable, writable);
        assert!(calls > 0);
        kept += more;
    }
    assert!((0..=2 * 130 * 16).contains(&kept), "{kept} bytes are kept");
}
