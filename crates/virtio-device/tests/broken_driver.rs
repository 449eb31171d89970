//! Drivers that break the rules of VIRTIO 1.2, 2.7.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::{EVENT_IDX, F_INDIRECT, F_NEXT, F_WRITE, FREE, INDIRECT, driver, error, pair, set_word, words};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{Chain, Queue, QueueConfig, QueueError, QueueState};
use vmm_sys_util::eventfd::EventFd;

const MEMORY_END: u64 = 256 << 20;

/// A queue as another driver might set it up.
fn set_up(driver: &MockDriver, change: impl FnOnce(&mut QueueState)) -> Result<Queue, QueueError> {
    let mut state = driver.queues[0].state;
    change(&mut state);
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    Queue::new(Arc::clone(&driver.memory), state, driver.features, kick, driver.interrupt.clone())
}

/// Writes descriptors from 0 on, offers the first, and returns what the device says.
fn offer(features: u64, descriptors: &[(u64, u32, u16, u16)]) -> QueueError {
    let (mut driver, mut queue) = pair(8, features);
    let table = driver.queues[0].state.config.descriptor_table;
    for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
        driver.queues[0].write_descriptor(table, index, *address, *len, *flags, *next);
    }
    driver.queues[0].offer(0);
    error(&mut queue)
}

#[test]
fn sizes_that_are_no_powers_of_two_are_refused() {
    let driver = driver(8, 0);
    for size in [0, 3, 7, 100, 0x7fff, 0x8001, 0xffff] {
        let result = set_up(&driver, |state| state.config.size = size);
        assert!(matches!(result, Err(QueueError::Size { size: of, max: 32_768 }) if of == size), "{size}");
    }
    for power in 0..16 {
        assert!(set_up(&driver, |state| state.config.size = 1 << power).is_ok(), "2^{power}");
    }
}

#[test]
fn rings_that_are_not_aligned_are_refused() {
    type Address = fn(&mut QueueConfig) -> &mut u64;
    let parts: [(&str, u64, Address); 3] = [
        ("descriptor table", 16, |config| &mut config.descriptor_table),
        ("available ring", 2, |config| &mut config.available_ring),
        ("used ring", 4, |config| &mut config.used_ring),
    ];
    let driver = driver(8, 0);
    for (name, right, address) in parts {
        for offset in 1..right {
            let result = set_up(&driver, |state| *address(&mut state.config) += offset);
            assert!(
                matches!(result, Err(QueueError::Alignment { part, alignment, .. }) if part == name && alignment == right),
                "{name} + {offset}"
            );
        }
        assert!(set_up(&driver, |state| *address(&mut state.config) += right).is_ok());
    }
}

#[test]
fn rings_that_are_not_in_memory_from_the_first_to_the_last_byte_are_refused() {
    type Address = fn(&mut QueueConfig) -> &mut u64;
    // With event indices as without: the words of the events are there in any case.
    let parts: [(&str, u64, Address); 3] = [
        ("descriptor table", 16 * 8, |config| &mut config.descriptor_table),
        ("available ring", 6 + 2 * 8, |config| &mut config.available_ring),
        ("used ring", 8 + 8 * 8, |config| &mut config.used_ring),
    ];
    let driver = driver(8, EVENT_IDX);
    for (name, len, address) in parts {
        let last = MEMORY_END - len;
        assert!(set_up(&driver, |state| *address(&mut state.config) = last).is_ok(), "{name}");
        for wrong in [last + 16, MEMORY_END, 1 << 40, u64::MAX - 15] {
            let result = set_up(&driver, |state| *address(&mut state.config) = wrong);
            assert!(
                matches!(result, Err(QueueError::Ring { part, address, .. }) if part == name && address == wrong),
                "{name} at {wrong:#x}"
            );
        }
    }
}

#[test]
fn an_available_index_is_at_most_the_size_of_the_queue_ahead() {
    for start in [0, 65_530] {
        let mut driver = driver(8, 0);
        driver.queues[0].begin_at(start);
        for (ahead, right) in [(8, true), (9, false), (0x7fff, false), (0x8000, false), (0xffff, false)] {
            let mut queue = common::queue(&driver);
            set_word(&driver, words(&driver).available_index, start.wrapping_add(ahead));
            match queue.pop(&mut Chain::new(&driver.memory)) {
                Ok(taken) => assert!(taken && right, "{ahead}"),
                Err(QueueError::AvailableIndex { index, next, size: 8 }) => {
                    assert_eq!((index, next, right), (start.wrapping_add(ahead), start, false));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_driver_that_offers_a_chain_before_it_sees_it_used_cannot_prolong_a_batch() {
    let (mut driver, mut queue) = pair(8, EVENT_IDX);
    let head = driver.queues[0].add(&[Buffer::Writable(1)]);
    let mut chain = Chain::new(&driver.memory);
    for _ in 0..8 {
        assert!(queue.pop(&mut chain).unwrap());
        queue.push(chain.head(), 1);
        driver.queues[0].offer(head);
    }
    assert!(matches!(error(&mut queue), QueueError::AvailableIndex { .. }));
}

#[test]
fn chains_that_the_device_keeps_count_after_others_were_used() {
    let (mut driver, mut queue) = pair(2, 0);
    let kept = common::chain(&mut driver, &mut queue, &[Buffer::Writable(1)]);
    let used = common::chain(&mut driver, &mut queue, &[Buffer::Writable(1)]);
    queue.push(used.head(), 0);
    queue.publish();
    driver.queues[0].offer(used.head());
    driver.queues[0].offer(kept.head());
    assert!(matches!(error(&mut queue), QueueError::AvailableIndex { index: 4, next: 2, size: 2 }));
}

#[test]
fn a_state_that_the_rings_do_not_fit_is_a_broken_protocol_and_nothing_worse() {
    let mut driver = driver(8, EVENT_IDX);
    driver.queues[0].add(&[Buffer::Writable(1)]);
    let mut queue = set_up(&driver, |state| state.next_available = 0x4000).unwrap();
    assert!(queue.enable_kicks(), "something is wrong, which pop will tell");
    assert!(matches!(error(&mut queue), QueueError::AvailableIndex { index: 1, next: 0x4000, size: 8 }));

    let mut queue = set_up(&driver, |state| state.next_used = 0xffff).unwrap();
    let mut chain = Chain::new(&driver.memory);
    assert!(queue.pop(&mut chain).unwrap());
    queue.push(chain.head(), 1);
    queue.end_batch();
    assert_eq!(queue.state().next_used, 0);
    assert_eq!(common::word(&driver, words(&driver).used_index), 0);
}

#[test]
fn a_head_that_is_no_descriptor_of_the_table_is_refused() {
    for head in [8, 9, 63, 64, 0x7fff, 0xffff] {
        let (mut driver, mut queue) = pair(8, 0);
        driver.queues[0].offer(head);
        let error = error(&mut queue);
        assert!(matches!(error, QueueError::DescriptorIndex { index, size: 8 } if index == head), "{error}");
    }
}

#[test]
fn a_next_descriptor_outside_of_its_table_is_refused() {
    let error = offer(0, &[(FREE, 1, F_NEXT, 8)]);
    assert!(matches!(error, QueueError::DescriptorIndex { index: 8, size: 8 }), "{error}");

    let (mut driver, mut queue) = pair(8, INDIRECT);
    let table = driver.queues[0].state.config.descriptor_table;
    driver.queues[0].write_descriptor(table, 0, FREE, 32, F_INDIRECT, 0);
    driver.queues[0].write_descriptor(FREE, 0, 0, 1, F_NEXT, 2);
    driver.queues[0].offer(0);
    let error = common::error(&mut queue);
    assert!(matches!(error, QueueError::DescriptorIndex { index: 2, size: 2 }), "{error}");
}

#[test]
fn a_chain_that_the_device_has_cannot_be_offered_again() {
    let (mut driver, mut queue) = pair(8, 0);
    let first = common::chain(&mut driver, &mut queue, &[Buffer::Readable(b"x")]);
    driver.queues[0].offer(first.head());
    let error = error(&mut queue);
    assert!(matches!(error, QueueError::InUse { head } if head == first.head()), "{error}");
}

#[test]
fn loops_are_refused() {
    for (name, descriptors) in [
        ("of one", &[(FREE, 1, F_NEXT, 0)][..]),
        ("of two", &[(FREE, 1, F_NEXT, 1), (FREE, 1, F_NEXT, 0)]),
        ("of nothing", &[(FREE, 0, F_NEXT, 0)]),
        ("later on", &[(FREE, 1, F_NEXT, 1), (FREE, 1, F_NEXT, 2), (FREE, 1, F_NEXT, 1)]),
    ] {
        let error = offer(0, descriptors);
        assert!(matches!(error, QueueError::ChainLength { head: 0, size: 8 }), "{name}: {error}");
    }
}

#[test]
fn more_buffers_than_the_queue_has_entries_are_refused() {
    let (mut driver, mut queue) = pair(8, INDIRECT);
    driver.queues[0].add_indirect(&[Buffer::Readable(b"x"); 9]);
    assert!(matches!(error(&mut queue), QueueError::ChainLength { size: 8, .. }));

    // Seven in the queue's own table, two in the other one.
    let (mut driver, mut queue) = pair(8, INDIRECT);
    let table = driver.queues[0].state.config.descriptor_table;
    for index in 0..7 {
        driver.queues[0].write_descriptor(table, index, 0, 1, F_NEXT, index + 1);
    }
    driver.queues[0].write_descriptor(table, 7, FREE, 32, F_INDIRECT, 0);
    driver.queues[0].write_descriptor(FREE, 0, 0, 1, F_NEXT, 1);
    driver.queues[0].write_descriptor(FREE, 1, 0, 1, 0, 0);
    driver.queues[0].offer(0);
    assert!(matches!(error(&mut queue), QueueError::ChainLength { size: 8, .. }));
}

#[test]
fn buffers_that_are_not_in_memory_are_refused() {
    for (address, len) in [
        (MEMORY_END, 1),
        (MEMORY_END - 1, 2),
        (0, (256 << 20) + 1),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (1 << 63, 4096),
    ] {
        for flags in [0, F_WRITE] {
            let found = offer(0, &[(address, len, flags, 0)]);
            assert!(
                matches!(found, QueueError::Buffer { address: at, len: of, .. } if (at, of) == (address, len)),
                "{address:#x} + {len:#x}: {found}"
            );
        }
    }
    // The same when a buffer was found close by before.
    let found = offer(0, &[(MEMORY_END - 1, 1, F_NEXT, 1), (MEMORY_END - 1, 2, 0, 0)]);
    assert!(matches!(found, QueueError::Buffer { len: 2, .. }), "{found}");
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let error = offer(0, &[(FREE, 1, F_NEXT, 1), (FREE, 1, F_WRITE | F_NEXT, 2), (FREE, 1, 0, 0)]);
    assert!(matches!(error, QueueError::Order { head: 0 }), "{error}");
}

#[test]
fn indirect_tables_that_are_none_are_refused() {
    for (name, features, descriptor) in [
        ("without the feature", 0, (FREE, 16, F_INDIRECT, 0)),
        ("empty", INDIRECT, (FREE, 0, F_INDIRECT, 0)),
        ("half a descriptor", INDIRECT, (FREE, 8, F_INDIRECT, 0)),
        ("one and a half", INDIRECT, (FREE, 24, F_INDIRECT, 0)),
        ("followed by more", INDIRECT, (FREE, 16, F_INDIRECT | F_NEXT, 1)),
        ("half in memory", INDIRECT, (MEMORY_END - 16, 32, F_INDIRECT, 0)),
        ("not in memory", INDIRECT, (u64::MAX - 15, 32, F_INDIRECT, 0)),
        ("more than indices can name", INDIRECT, (FREE, 16 << 16, F_INDIRECT, 0)),
    ] {
        let error = offer(features, &[descriptor, (FREE, 1, 0, 0)]);
        assert!(
            matches!(error, QueueError::Indirect { address, len } if (address, len) == (descriptor.0, descriptor.1)),
            "{name}: {error}"
        );
    }
}

#[test]
fn an_indirect_table_in_another_is_refused() {
    let (mut driver, mut queue) = pair(8, INDIRECT);
    let table = driver.queues[0].state.config.descriptor_table;
    driver.queues[0].write_descriptor(table, 0, FREE, 16, F_INDIRECT, 0);
    driver.queues[0].write_descriptor(FREE, 0, FREE + 0x1000, 16, F_INDIRECT, 0);
    driver.queues[0].offer(0);
    assert!(matches!(error(&mut queue), QueueError::Indirect { len: 16, .. }));
}

#[test]
fn buffers_of_four_gigabytes_are_refused() {
    let (mut driver, mut queue) = pair(32, 0);
    let table = driver.queues[0].state.config.descriptor_table;
    for count in [15, 16] {
        let head = if count == 15 { 0 } else { 16 };
        for index in 0..count {
            let flags = F_WRITE | if index + 1 < count { F_NEXT } else { 0 };
            driver.queues[0].write_descriptor(table, head + index, 0, 256 << 20, flags, head + index + 1);
        }
        driver.queues[0].offer(head);
    }
    let mut chain = Chain::new(&driver.memory);
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(chain.writable.len(), 15 << 28);
    let error = error(&mut queue);
    assert!(matches!(error, QueueError::TooLong { head: 16 }), "{error}");
}
