//! What a disk keeps of the memory that requests take. In a process of its own, whose allocator counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use kindling_virtio_blk::{BlkConfig, IoEngine};
use kindling_virtio_device::test_utils::{Buffer, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn what_long_requests_take_is_given_back_when_they_are_done() {
    const ENTRIES: usize = 256;
    let image = Image::new(16);
    let config = BlkConfig { engine: IoEngine::Async, queue_size: ENTRIES as u16, ..BlkConfig::default() };
    let mut guest = Guest::open(&image, &config);
    // As many reads of a sector as there can be at a time, into so many buffers each.
    let mut read = |buffers: usize| {
        let mut request = vec![Buffer::Writable(1); buffers - 1];
        request.push(Buffer::Writable(512 - (buffers as u32 - 1)));
        let header = header(IN, 3);
        request.insert(0, Buffer::Readable(&header));
        request.push(Buffer::Writable(1));
        for _ in 0..ENTRIES {
            guest.driver.queues[0].add_indirect(&request);
        }
        for _ in 0..ENTRIES {
            assert_eq!(answer(guest.wait(0)), (OK, vec![pattern(3); 512]));
        }
        CountingAllocator::bytes()
    };
    let usual = read(128);
    let most = read(ENTRIES - 2);
    assert!(most <= usual + (ENTRIES * 64) as isize, "{} bytes more are kept", most - usual);
}
