//! Reading, writing and cutting the buffers of a chain, and system calls on them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;

use common::{INDIRECT, chain, pair};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{Chain, Queue};

/// A file without a name.
fn file(name: &str, content: &[u8]) -> File {
    let path = format!("{}/{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

fn readable(pieces: &[&[u8]]) -> (MockDriver, Queue, Chain) {
    let (mut driver, mut queue) = pair(16, 0);
    let buffers: Vec<_> = pieces.iter().copied().map(Buffer::Readable).collect();
    let chain = chain(&mut driver, &mut queue, &buffers);
    (driver, queue, chain)
}

fn writable(pieces: &[u32]) -> (MockDriver, Queue, Chain) {
    let (mut driver, mut queue) = pair(16, 0);
    let buffers: Vec<_> = pieces.iter().copied().map(Buffer::Writable).collect();
    let chain = chain(&mut driver, &mut queue, &buffers);
    (driver, queue, chain)
}

/// What the driver finds in the chain. The device wrote where there is no 0xa5.
fn given_back(mut driver: MockDriver, mut queue: Queue, chain: &Chain) -> Vec<u8> {
    queue.push(chain.head(), 0);
    queue.publish();
    driver.queues[0].take_used().unwrap().data
}

#[test]
fn reading_uses_bytes_up_and_ends_where_they_end() {
    let (_driver, _queue, mut chain) = readable(&[b"abc", b"d", b"efgh"]);
    let mut bytes = [0; 5];
    assert_eq!((chain.readable.read(&mut bytes), bytes, chain.readable.len()), (5, *b"abcde", 3));
    assert_eq!(chain.readable.read(&mut []), 0);
    let mut bytes = [0; 5];
    assert_eq!((chain.readable.read(&mut bytes), bytes, chain.readable.len()), (3, *b"fgh\0\0", 0));
    assert!(chain.readable.is_empty());
    assert_eq!(chain.readable.read(&mut bytes), 0);
    assert_eq!((chain.writable.len(), chain.writable.write(b"x")), (0, 0));
}

#[test]
fn bytes_can_be_looked_at_without_being_used_up() {
    let (_driver, _queue, mut chain) = readable(&[b"abc", b"d", b"efgh"]);
    chain.readable.skip(1);
    let readable = &chain.readable;
    for offset in 0..10_usize {
        let expected = |len: usize| b"bcdefgh".get(offset..offset + len).map(<[u8]>::to_vec);
        assert_eq!(readable.peek::<1>(offset).map(Vec::from), expected(1), "{offset}");
        assert_eq!(readable.peek::<2>(offset).map(Vec::from), expected(2), "{offset}");
        assert_eq!(readable.peek::<4>(offset).map(Vec::from), expected(4), "{offset}");
        assert_eq!(readable.peek::<7>(offset).map(Vec::from), expected(7), "{offset}");
    }
    assert_eq!((readable.peek::<8>(0), readable.peek::<1>(usize::MAX), readable.len()), (None, None, 7));
}

#[test]
fn a_structure_is_taken_whole_or_not_at_all() {
    let (_driver, _queue, mut chain) = readable(&[b"abc", b"de"]);
    assert_eq!(chain.readable.take::<6>(), None);
    assert_eq!(chain.readable.take::<4>(), Some(*b"abcd"));
    assert_eq!(chain.readable.take::<2>(), None);
    assert_eq!(chain.readable.take::<0>(), Some([]));
    assert_eq!(chain.readable.take::<1>(), Some(*b"e"));
}

#[test]
fn skipping_and_truncating_leave_what_is_between() {
    for skip in 0..=9_u32 {
        for keep in 0..=9_u32 {
            let (_driver, _queue, mut chain) = readable(&[b"abc", b"d", b"efgh"]);
            assert_eq!(chain.readable.skip(skip), skip.min(8));
            chain.readable.truncate(keep);
            let expected = &b"abcdefgh"[skip.min(8) as usize..(skip + keep).min(8) as usize];
            assert_eq!(chain.readable.len() as usize, expected.len());
            let segments = chain.readable.iovecs();
            assert_eq!(segments.iter().map(|segment| segment.iov_len).sum::<usize>(), expected.len());
            assert!(segments.iter().all(|segment| segment.iov_len > 0));
            let mut bytes = [0; 9];
            let len = chain.readable.read(&mut bytes);
            assert_eq!(&bytes[..len], expected, "{skip} skipped, {keep} kept");
        }
    }
}

#[test]
fn writing_uses_room_up_and_ends_where_it_ends() {
    let (driver, queue, mut chain) = writable(&[3, 1, 4]);
    assert_eq!(chain.writable.write(b"ab"), 2);
    assert_eq!(chain.writable.skip(1), 1);
    assert_eq!(chain.writable.write_zeroes(2), 2);
    assert_eq!(chain.writable.write(b"wxyz"), 3);
    assert_eq!((chain.writable.write(b"!"), chain.writable.write_zeroes(9), chain.writable.len()), (0, 0, 0));
    assert_eq!(given_back(driver, queue, &chain), b"ab\xa5\0\0wxy");
}

#[test]
fn zeroes_fill_what_is_there_and_no_more() {
    let (driver, queue, mut chain) = writable(&[3, 1, 4]);
    chain.writable.truncate(6);
    assert_eq!(chain.writable.write_zeroes(u32::MAX), 6);
    assert_eq!(given_back(driver, queue, &chain), b"\0\0\0\0\0\0\xa5\xa5");
}

#[test]
fn the_last_byte_can_be_set_aside_until_the_rest_is_done() {
    for pieces in [&[8][..], &[7, 1], &[3, 5], &[1; 8]] {
        let (driver, queue, mut chain) = writable(pieces);
        assert!(chain.writable.set_last_aside());
        assert_eq!(chain.writable.len(), 7);
        chain.writable.truncate(5);
        assert_eq!(chain.writable.write(b"abcdefgh"), 5);
        chain.writable.write_last(b'!');
        assert_eq!(given_back(driver, queue, &chain), b"abcde\xa5\xa5!", "{pieces:?}");
    }
}

#[test]
fn without_a_last_byte_none_is_written() {
    let (driver, queue, mut chain) = writable(&[2]);
    assert_eq!(chain.writable.skip(2), 2);
    assert!(!chain.writable.set_last_aside());
    chain.writable.write_last(0);
    assert_eq!(given_back(driver, queue, &chain), b"\xa5\xa5");

    let (_driver, _queue, mut chain) = readable(&[b"x"]);
    assert!(!chain.writable.set_last_aside());
}

#[test]
fn a_last_byte_belongs_to_its_chain_and_not_to_the_next_one() {
    let (mut driver, mut queue, mut chain) = writable(&[2]);
    assert!(chain.writable.set_last_aside());
    queue.push(chain.head(), 0);
    driver.queues[0].add(&[Buffer::Writable(2)]);
    assert!(queue.pop(&mut chain).unwrap());
    chain.writable.write_last(0);
    assert_eq!(given_back(driver, queue, &chain), b"\xa5\xa5");
}

#[test]
fn one_byte_can_be_all_there_is() {
    let (driver, queue, mut chain) = writable(&[1]);
    assert!(chain.writable.set_last_aside());
    assert!(chain.writable.is_empty() && chain.writable.iovecs().is_empty());
    chain.writable.write_last(7);
    assert_eq!(given_back(driver, queue, &chain), [7]);
}

#[test]
fn files_take_what_is_left_without_using_it_up() {
    let (_driver, _queue, mut chain) = readable(&[b"head", b"abc", b"def"]);
    chain.readable.skip(4);
    chain.readable.truncate(5);
    let mut file = file("take", b"0123456789");
    assert_eq!(chain.readable.write_to_at(&file, 2).unwrap(), 5);
    assert_eq!(chain.readable.write_to(&file).unwrap(), 5);
    let mut content = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content, b"abcdede789");
    assert_eq!(chain.readable.len(), 5);
}

#[test]
fn files_fill_what_is_left_without_using_it_up() {
    let (driver, queue, mut chain) = writable(&[2, 3, 4]);
    let file = file("fill", b"0123456789");
    chain.writable.skip(1);
    assert_eq!(chain.writable.read_from_at(&file, 4).unwrap(), 6, "the file ends");
    assert_eq!(chain.writable.len(), 8);
    chain.writable.skip(1);
    chain.writable.truncate(3);
    assert_eq!(chain.writable.read_from(&file).unwrap(), 3);
    assert_eq!(chain.writable.read_from_at(&file, 10).unwrap(), 0);
    assert_eq!(given_back(driver, queue, &chain), b"\xa5401289\xa5\xa5");
}

#[test]
fn what_the_kernel_refuses_is_an_error() {
    let (_driver, _queue, chain) = readable(&[b"x"]);
    let empty = File::open("/dev/null").unwrap();
    let error = chain.readable.write_to(&empty).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF), "it is open for reading only");
    for offset in [1 << 63, u64::MAX] {
        let error = chain.readable.write_to_at(&file("refuse", b""), offset).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let error = chain.writable.read_from_at(&empty, offset).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}

#[test]
fn more_segments_than_the_kernel_takes_go_in_several_calls() {
    const SEGMENTS: usize = 1500;
    let (mut driver, mut queue) = pair(4096, INDIRECT);
    let bytes: Vec<u8> = (0..2 * SEGMENTS).map(|index| (index % 251) as u8).collect();
    let mut buffers: Vec<_> = bytes.chunks(2).map(Buffer::Readable).collect();
    buffers.extend([Buffer::Writable(2); SEGMENTS]);
    driver.queues[0].add_indirect(&buffers);
    let mut chain = Chain::new(&driver.memory);
    assert!(queue.pop(&mut chain).unwrap());

    let mut file = file("segments", b"");
    let mut calls = Vec::new();
    while !chain.readable.is_empty() {
        let len = chain.readable.write_to(&file).unwrap();
        chain.readable.skip(len as u32);
        calls.push(len);
    }
    assert_eq!(calls, [2048, 952]);
    file.rewind().unwrap();
    while !chain.writable.is_empty() {
        let len = chain.writable.read_from(&file).unwrap();
        assert!(len > 0);
        chain.writable.skip(len as u32);
    }
    assert_eq!(given_back(driver, queue, &chain), bytes);
}

#[test]
fn segments_for_an_io_ring_are_the_bytes_that_are_left() {
    let (_driver, _queue, mut chain) = readable(&[b"abc", b"def"]);
    chain.readable.skip(2);
    let mut file = file("ring", b"");
    let segments = chain.readable.iovecs();
    assert_eq!(segments.len(), 2);
    // SAFETY: the segments are readable memory for as long as `chain` and `_driver` live.
    let len = unsafe { libc::writev(file.as_raw_fd(), segments.as_ptr(), 2) };
    assert_eq!(len, 4);
    let mut content = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "cdef");
}

#[test]
fn buffers_outlive_their_queue_and_driver_and_can_be_sent_away() {
    let (driver, queue, mut chain) = readable(&[b"abc"]);
    drop((driver, queue));
    let bytes = std::thread::spawn(move || chain.readable.take()).join().unwrap();
    assert_eq!(bytes, Some(*b"abc"));
}
