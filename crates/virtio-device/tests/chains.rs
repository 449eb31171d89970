//! Descriptor chains: any that VIRTIO 1.2 allows, read as the driver meant them.

mod common;

use common::{EVENT_IDX, F_INDIRECT, F_NEXT, F_WRITE, FREE, INDIRECT, pair};
use kindling_virtio_device::Chain;
use kindling_virtio_device::test_utils::Buffer;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// Reads all of the chain, and writes the same into it.
fn echo(chain: &mut Chain) -> u32 {
    let mut bytes = vec![0; chain.readable.len() as usize];
    assert_eq!(chain.readable.read(&mut bytes), bytes.len());
    chain.writable.write(&bytes) as u32
}

#[test]
fn one_chain_object_serves_direct_and_indirect_chains_in_turn() {
    let (mut driver, mut queue) = pair(8, INDIRECT);
    let mut chain = Chain::new(&driver.memory);
    let buffers =
        [Buffer::Readable(b"hello"), Buffer::Readable(b" world"), Buffer::Writable(4), Buffer::Writable(9)];
    for round in 0..100 {
        let queue_side = &mut driver.queues[0];
        let head = if round % 2 == 0 { queue_side.add(&buffers) } else { queue_side.add_indirect(&buffers) };
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!((chain.head(), chain.readable.len(), chain.writable.len()), (head, 11, 13));
        let written = echo(&mut chain);
        queue.push(head, written);
        queue.publish();
        let used = driver.queues[0].take_used().unwrap();
        assert_eq!((used.head, used.written, &used.data[..]), (head, 11, &b"hello world\xa5\xa5"[..]));
    }
}

#[test]
fn a_table_of_its_own_may_hold_as_many_buffers_as_the_queue_has_entries() {
    let (mut driver, mut queue) = pair(8, INDIRECT);
    driver.queues[0].add_indirect(&[Buffer::Readable(b"x"); 8]);
    let mut chain = Chain::new(&driver.memory);
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(chain.readable.take(), Some(*b"xxxxxxxx"));
}

#[test]
fn a_direct_chain_may_take_the_whole_table() {
    let (mut driver, mut queue) = pair(8, 0);
    let mut chain = common::chain(&mut driver, &mut queue, &[Buffer::Readable(b"x"); 8]);
    assert_eq!(chain.readable.take(), Some(*b"xxxxxxxx"));
}

#[test]
fn a_chain_may_begin_in_the_queues_table_and_go_on_in_another() {
    let (mut driver, mut queue) = pair(8, INDIRECT);
    let table = driver.queues[0].state.config.descriptor_table;
    driver.memory.write_slice(b"ab", GuestAddress(FREE + 0x1000)).unwrap();
    driver.queues[0].write_descriptor(table, 5, FREE + 0x1000, 1, F_NEXT, 2);
    driver.queues[0].write_descriptor(table, 2, FREE, 32, F_INDIRECT, 0);
    driver.queues[0].write_descriptor(FREE, 0, FREE + 0x1001, 1, F_NEXT, 1);
    driver.queues[0].write_descriptor(FREE, 1, FREE + 0x2000, 7, F_WRITE, 0);
    driver.queues[0].offer(5);
    let mut chain = Chain::new(&driver.memory);
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!((chain.head(), chain.readable.take(), chain.writable.len()), (5, Some(*b"ab"), 7));
}

#[test]
fn a_table_may_lie_anywhere_be_longer_than_the_queue_and_be_marked_writable() {
    let (mut driver, mut queue) = pair(4, INDIRECT);
    let table = driver.queues[0].state.config.descriptor_table;
    driver.memory.write_slice(b"ab", GuestAddress(FREE)).unwrap();
    // VIRTIO 1.2, 2.7.5.3.2: the device ignores the write flag here.
    let other = FREE + 0x1003;
    driver.queues[0].write_descriptor(table, 0, other, 16 * 1000, F_INDIRECT | F_WRITE, 0);
    driver.queues[0].write_descriptor(other, 0, FREE, 1, F_NEXT, 999);
    driver.queues[0].write_descriptor(other, 999, FREE + 1, 1, 0, 0);
    driver.queues[0].offer(0);
    let mut chain = Chain::new(&driver.memory);
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!((chain.readable.take(), chain.writable.len()), (Some(*b"ab"), 0));
}

#[test]
fn empty_buffers_count_for_nothing_wherever_they_are() {
    let (mut driver, mut queue) = pair(8, 0);
    let table = driver.queues[0].state.config.descriptor_table;
    driver.memory.write_slice(b"ab", GuestAddress(FREE)).unwrap();
    for (index, (address, len, flags)) in (0..).zip([
        (u64::MAX, 0, F_NEXT),
        (FREE, 1, F_NEXT),
        (0, 0, F_NEXT),
        (FREE + 1, 1, F_NEXT),
        (1 << 40, 0, F_NEXT | F_WRITE),
        (FREE, 1, F_NEXT | F_WRITE),
        (0, 0, F_WRITE),
    ]) {
        driver.queues[0].write_descriptor(table, index, address, len, flags, index + 1);
    }
    driver.queues[0].offer(0);
    let mut chain = Chain::new(&driver.memory);
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!((chain.readable.iovecs().len(), chain.writable.iovecs().len()), (2, 1));
    assert_eq!((chain.readable.take(), chain.writable.len()), (Some(*b"ab"), 1));
}

#[test]
fn a_chain_is_what_it_was_when_it_was_taken() {
    let (mut driver, mut queue) = pair(8, 0);
    let mut chain =
        common::chain(&mut driver, &mut queue, &[Buffer::Readable(b"before"), Buffer::Writable(3)]);
    let config = driver.queues[0].state.config;
    for index in 0..config.size {
        driver.queues[0].write_descriptor(config.descriptor_table, index, u64::MAX, u32::MAX, 7, 99);
    }
    assert_eq!((chain.readable.take(), chain.writable.len()), (Some(*b"before"), 3));
    assert_eq!(chain.writable.write(b"abcd"), 3);
}

/// Cuts the bytes at these places, wherever they are.
fn cut<'a>(mut bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, rest) = bytes.split_at(cut % (bytes.len() + 1));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

proptest! {
    #[test]
    fn however_a_message_is_cut_the_device_sees_the_same_bytes(
        message in prop::collection::vec(any::<u8>(), 1..400),
        room in 0..400_usize,
        cuts in prop::collection::vec(any::<usize>(), 0..20),
        room_cuts in prop::collection::vec(any::<usize>(), 0..20),
        steps in prop::collection::vec(0..50_usize, 0..20),
        indirect: bool,
    ) {
        let (mut driver, mut queue) = pair(64, INDIRECT | EVENT_IDX);
        let nothing = vec![0; room];
        let readable = cut(&message, &cuts).into_iter().map(Buffer::Readable);
        let writable = cut(&nothing, &room_cuts).into_iter().map(|piece| Buffer::Writable(piece.len() as u32));
        let buffers: Vec<_> = readable.chain(writable).collect();
        if indirect { driver.queues[0].add_indirect(&buffers) } else { driver.queues[0].add(&buffers) };

        let mut chain = Chain::new(&driver.memory);
        prop_assert!(queue.pop(&mut chain).unwrap());
        prop_assert_eq!(chain.readable.len() as usize, message.len());
        prop_assert_eq!(chain.writable.len() as usize, room);
        // Read and written in steps that have nothing to do with the cuts.
        let mut seen = Vec::new();
        let mut written = 0;
        for step in steps.into_iter().chain([usize::MAX]) {
            let mut bytes = vec![0; step.min(chain.readable.len() as usize)];
            prop_assert_eq!(chain.readable.read(&mut bytes), bytes.len());
            written += chain.writable.write(&bytes);
            seen.extend(bytes);
        }
        prop_assert_eq!(&seen, &message);
        prop_assert_eq!(written, room.min(message.len()));
        queue.push(chain.head(), written as u32);
        queue.publish();
        let used = driver.queues[0].take_used().unwrap();
        prop_assert_eq!(&used.data[..written], &message[..written]);
        prop_assert!(used.data[written..].iter().all(|byte| *byte == 0xa5));
    }
}
