//! The rings: what was used becomes visible when and as often as it should, whatever the indices are.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{EVENT_IDX, driver, pair, queue, set_word, word, words};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{Chain, Queue};
use proptest::prelude::*;

/// Takes all chains that are there and gives them back, without a word to the driver.
fn use_all(queue: &mut Queue) -> usize {
    let mut chain = Chain::new(queue.memory());
    let mut count = 0;
    while queue.pop(&mut chain).unwrap() {
        queue.push(chain.head(), 1);
        count += 1;
    }
    count
}

/// Offers so many chains, without a kick.
fn offer(driver: &mut MockDriver, count: usize) {
    for _ in 0..count {
        let head = driver.queues[0].prepare(&[Buffer::Writable(1)], false);
        driver.queues[0].offer(head);
    }
}

fn take_all_used(driver: &mut MockDriver) -> usize {
    std::iter::from_fn(|| driver.queues[0].take_used()).count()
}

#[test]
fn chains_come_and_go_across_the_wrap_of_the_indices() {
    for features in [0, EVENT_IDX] {
        for start in [0, 0x7ffa, 65_530] {
            let mut driver = driver(8, features);
            driver.queues[0].begin_at(start);
            let mut queue = queue(&driver);
            let mut total = 0_u16;
            for count in (1..=8).cycle().take(20) {
                offer(&mut driver, count);
                queue.begin_batch();
                assert_eq!(use_all(&mut queue), count);
                queue.end_batch();
                assert_eq!(take_all_used(&mut driver), count);
                total += count as u16;
                assert_eq!(word(&driver, words(&driver).used_index), start.wrapping_add(total));
            }
            assert_eq!(driver.interrupt.queue(0), 20, "one for each batch");
            let state = queue.state();
            assert_eq!(
                (state.next_available, state.next_used),
                (start.wrapping_add(total), state.next_available)
            );
        }
    }
}

#[test]
fn the_smallest_and_the_largest_queue_work() {
    for size in [1, 2, 1 << 15] {
        let (mut driver, mut queue) = pair(size, EVENT_IDX);
        for _ in 0..3 {
            offer(&mut driver, size.into());
            assert_eq!(use_all(&mut queue), usize::from(size));
            queue.publish();
            assert_eq!(take_all_used(&mut driver), usize::from(size));
        }
        assert_eq!(driver.interrupt.queue(0), 3);
    }
}

#[test]
fn a_batch_becomes_visible_at_once_and_interrupts_once() {
    let (mut driver, mut queue) = pair(8, 0);
    offer(&mut driver, 8);
    queue.begin_batch();
    assert_eq!(use_all(&mut queue), 8);
    assert_eq!(word(&driver, words(&driver).used_index), 0);
    assert!(driver.queues[0].take_used().is_none());
    assert_eq!(driver.interrupt.queue(0), 0);
    queue.end_batch();
    assert_eq!(word(&driver, words(&driver).used_index), 8);
    assert_eq!(driver.interrupt.queue(0), 1);
    queue.publish();
    queue.end_batch();
    assert_eq!(driver.interrupt.queue(0), 1, "nothing new, no interrupt");
}

#[test]
fn with_event_indices_the_interrupt_comes_when_the_entry_of_the_event_is_used_and_only_then() {
    for start in [0, 100, 0x7ffd, 65_533] {
        for count in 1..=8_u16 {
            // VIRTIO 1.2, 2.7.7.2: entries start, start + 1, ... are used. Is the event's among them?
            for entry in -10..=18_i32 {
                let mut driver = driver(8, EVENT_IDX);
                driver.queues[0].begin_at(start);
                let mut queue = queue(&driver);
                offer(&mut driver, count.into());
                use_all(&mut queue);
                // The flag means nothing when there are event indices.
                set_word(&driver, words(&driver).available_flags, 1);
                set_word(&driver, words(&driver).used_event, start.wrapping_add_signed(entry as i16));
                queue.publish();
                let wanted = (0..i32::from(count)).contains(&entry);
                assert_eq!(
                    driver.interrupt.queue(0),
                    u64::from(wanted),
                    "{start} + {count}, event at {entry}"
                );
            }
        }
    }
}

#[test]
fn without_event_indices_the_flag_alone_suppresses_interrupts() {
    let (mut driver, mut queue) = pair(8, 0);
    for (flags, wanted) in [(0, 1), (1, 0), (0xfffe, 1), (0xffff, 0)] {
        for event in [0, 1, 2, 0xffff] {
            let before = driver.interrupt.queue(0);
            set_word(&driver, words(&driver).available_flags, flags);
            set_word(&driver, words(&driver).used_event, event);
            offer(&mut driver, 1);
            use_all(&mut queue);
            queue.publish();
            assert_eq!(driver.interrupt.queue(0) - before, wanted, "flags {flags:#x}, event {event}");
            assert_eq!(take_all_used(&mut driver), 1);
        }
    }
}

#[test]
fn without_event_indices_a_flag_says_whether_to_kick() {
    let (mut driver, mut queue) = pair(8, 0);
    let flags = words(&driver).used_flags;
    assert!(!queue.enable_kicks());
    assert_eq!(word(&driver, flags), 0);
    offer(&mut driver, 1);
    assert!(driver.queues[0].kick_if_wanted());
    queue.begin_batch();
    assert_eq!(word(&driver, flags), 1);
    offer(&mut driver, 1);
    assert!(!driver.queues[0].kick_if_wanted());
    assert_eq!(use_all(&mut queue), 2);
    queue.end_batch();
    assert_eq!(word(&driver, flags), 0);
    assert_eq!(word(&driver, words(&driver).available_event), 0, "is not the device's to write");
}

#[test]
fn with_event_indices_the_driver_is_asked_for_a_kick_for_the_next_chain() {
    for start in [0, 65_534] {
        let mut driver = driver(8, EVENT_IDX);
        driver.queues[0].begin_at(start);
        let mut queue = queue(&driver);
        for round in 0..5 {
            let next = start.wrapping_add(3 * round);
            assert!(!queue.enable_kicks());
            assert_eq!(word(&driver, words(&driver).available_event), next);
            offer(&mut driver, 1);
            assert!(driver.queues[0].kick_if_wanted());
            queue.begin_batch();
            offer(&mut driver, 2);
            assert!(!driver.queues[0].kick_if_wanted());
            assert_eq!(word(&driver, words(&driver).used_flags), 0, "means nothing now");
            assert_eq!(use_all(&mut queue), 3);
            queue.end_batch();
            assert_eq!(take_all_used(&mut driver), 3);
        }
    }
}

#[test]
fn a_queue_that_has_more_to_do_kicks_itself() {
    for features in [0, EVENT_IDX] {
        let (mut driver, mut queue) = pair(8, features);
        offer(&mut driver, 3);
        queue.begin_batch();
        let mut chain = Chain::new(queue.memory());
        assert!(queue.pop(&mut chain).unwrap());
        queue.push(chain.head(), 0);
        queue.end_batch();
        assert_eq!(queue.kick().read().unwrap(), 1);
        assert!(queue.enable_kicks());
        queue.begin_batch();
        assert_eq!(use_all(&mut queue), 2);
        queue.end_batch();
        assert!(queue.kick().read().is_err(), "nothing more to do");
        assert!(!queue.enable_kicks());
    }
}

#[test]
fn a_chain_that_was_put_back_is_the_next_to_come() {
    let (mut driver, mut queue) = pair(8, 0);
    offer(&mut driver, 3);
    let (mut first, mut second) = (Chain::new(&driver.memory), Chain::new(&driver.memory));
    assert!(queue.pop(&mut first).unwrap());
    let before = queue.state();
    assert!(queue.pop(&mut second).unwrap());
    let head = second.head();
    queue.unpop(&second);
    assert_eq!(queue.state(), before);
    queue.unpop(&second);
    assert_eq!(queue.state(), before, "the device had it no longer");
    queue.push(head, 0);
    assert_eq!(queue.state(), before, "the same");

    queue.push(first.head(), 0);
    assert!(queue.pop(&mut second).unwrap());
    assert_eq!(second.head(), head);
    queue.push(head, 0);
    queue.publish();
    assert_eq!(use_all(&mut queue), 1);
}

#[test]
fn several_chains_are_put_back_from_the_last_to_the_first() {
    let (mut driver, mut queue) = pair(8, EVENT_IDX);
    offer(&mut driver, 8);
    let mut chains: Vec<_> = (0..8).map(|_| Chain::new(&driver.memory)).collect();
    for _ in 0..3 {
        for chain in &mut chains {
            assert!(queue.pop(chain).unwrap());
        }
        assert!(!queue.pop(&mut Chain::new(&driver.memory)).unwrap());
        for chain in chains.iter().rev() {
            queue.unpop(chain);
        }
        assert_eq!(queue.state(), driver.queues[0].state);
    }
    assert_eq!(use_all(&mut queue), 8);
}

#[test]
fn what_the_device_does_not_have_cannot_be_given_back() {
    let (mut driver, mut queue) = pair(8, 0);
    for head in [0, 7, 8, 63, 64, 0xffff] {
        queue.push(head, 1);
    }
    queue.publish();
    assert_eq!(word(&driver, words(&driver).used_index), 0);
    let chain = common::chain(&mut driver, &mut queue, &[Buffer::Writable(1)]);
    queue.push(chain.head(), 1);
    queue.push(chain.head(), 1);
    queue.publish();
    assert_eq!(word(&driver, words(&driver).used_index), 1);
}

#[test]
fn an_empty_queue_leaves_the_chain_alone() {
    let (mut driver, mut queue) = pair(8, 0);
    let mut chain = common::chain(&mut driver, &mut queue, &[Buffer::Readable(b"kept")]);
    let head = chain.head();
    assert!(!queue.pop(&mut chain).unwrap());
    assert_eq!((chain.head(), chain.readable.take()), (head, Some(*b"kept")));
}

#[test]
fn another_queue_goes_on_where_one_left_off() {
    for features in [0, EVENT_IDX] {
        let mut driver = driver(8, features);
        driver.queues[0].begin_at(65_533);
        let mut first = queue(&driver);
        offer(&mut driver, 5);
        use_all(&mut first);
        first.end_batch();
        assert_eq!(take_all_used(&mut driver), 5);
        offer(&mut driver, 4);

        driver.queues[0].state = first.state();
        drop(first);
        let mut second = queue(&driver);
        assert_eq!(use_all(&mut second), 4);
        second.end_batch();
        assert_eq!(take_all_used(&mut driver), 4);
        assert_eq!(driver.interrupt.queue(0), 2);
    }
}

proptest! {
    #[test]
    fn chains_are_given_back_in_any_order(
        order in Just((0..16_usize).collect::<Vec<_>>()).prop_shuffle(),
        batch in 1..=16_usize,
        start: u16,
    ) {
        let mut driver = driver(16, EVENT_IDX);
        driver.queues[0].begin_at(start);
        let mut queue = queue(&driver);
        offer(&mut driver, 16);
        let mut chain = Chain::new(&driver.memory);
        let mut heads = Vec::new();
        while queue.pop(&mut chain).unwrap() {
            heads.push(chain.head());
        }
        for some in order.chunks(batch) {
            for &position in some {
                queue.push(heads[position], position as u32);
            }
            queue.publish();
            for &position in some {
                let used = driver.queues[0].take_used().unwrap();
                prop_assert_eq!((used.head, used.written), (heads[position], position as u32));
            }
            prop_assert!(driver.queues[0].take_used().is_none());
        }
        prop_assert_eq!(driver.interrupt.queue(0), order.chunks(batch).len() as u64);
    }
}
