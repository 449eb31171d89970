//! Frames from the guest to the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::fd::AsRawFd;

use common::{EVENT_IDX, INDIRECT, Random, Rig, socket_pair};
use kindling_virtio_device::WorkerError;
use kindling_virtio_device::test_utils::Buffer;
use kindling_virtio_net::{Backend, HEADER_BYTES, MAX_FRAME_BYTES, Net};

#[test]
fn a_frame_goes_out_in_one_piece_however_it_is_cut() {
    let mut random = Random(11);
    for refused in [0, EVENT_IDX, INDIRECT] {
        let mut rig = Rig::without(refused);
        for _ in 0..300 {
            let largest = [100, 1_600, MAX_FRAME_BYTES][random.below(3)];
            let message = [random.frame(HEADER_BYTES), random.frame_up_to(largest)].concat();
            let mut rest = &message[..];
            let mut pieces = Vec::new();
            while !rest.is_empty() && pieces.len() < 120 {
                let (piece, behind) = rest.split_at((1 + random.below(rest.len())).min(rest.len()));
                pieces.push(Buffer::Readable(piece));
                rest = behind;
            }
            pieces.push(Buffer::Readable(rest));
            let head = match refused & INDIRECT {
                0 => rig.tx().add_indirect(&pieces),
                _ => rig.tx().add(&pieces),
            };
            rig.run();
            assert!(rig.host.receive().unwrap() == message);
            let used = rig.tx().take_used().unwrap();
            assert_eq!((used.head, used.written), (head, 0));
        }
        assert_eq!(rig.host.receive(), None);
        assert_eq!(rig.metric("tx_frames"), 300);
    }
}

#[test]
fn frames_of_wrong_sizes_are_dropped_and_counted() {
    let mut rig = Rig::without(0);
    let good = vec![7; HEADER_BYTES + MAX_FRAME_BYTES];
    let long = vec![7; HEADER_BYTES + MAX_FRAME_BYTES + 1];
    for message in [&[][..], &[1], &[1; 12], &[1; 25], &long] {
        rig.tx().add(&[Buffer::Readable(message)]);
    }
    rig.tx().add(&[Buffer::Writable(2_000)]);
    rig.tx().add(&[Buffer::Readable(&[2; 26])]);
    rig.tx().add(&[Buffer::Readable(&good)]);
    rig.run();
    assert_eq!(rig.host.receive(), Some(vec![2; 26]));
    assert!(rig.host.receive().unwrap() == good);
    assert_eq!(rig.host.receive(), None);
    assert_eq!(std::iter::from_fn(|| rig.tx().take_used()).filter(|used| used.written == 0).count(), 8);
    assert_eq!((rig.metric("tx_dropped_size"), rig.metric("tx_frames")), (6, 2));
    assert_eq!(rig.metric("tx_bytes"), 14 + MAX_FRAME_BYTES as u64);
}

#[test]
fn a_full_tap_is_waited_for_and_no_frame_is_lost_or_out_of_order() {
    for refused in [0, EVENT_IDX] {
        let mut rig = Rig::without(refused);
        let mut random = Random(3);
        let frames: Vec<_> = (0..100).map(|_| random.frame(20_000)).collect();
        frames.iter().for_each(|frame| rig.transmit(frame));
        rig.run();
        assert_eq!(rig.inline.as_mut().unwrap().step(0).unwrap(), 0, "nothing to do until the host reads");
        assert_eq!(rig.metric("tx_waits"), 1);
        let sent = rig.metric("tx_frames");
        assert!(sent < 100, "the socket took everything");
        assert_eq!(
            std::iter::from_fn(|| rig.tx().take_used()).count() as u64,
            sent,
            "what is sent is given back"
        );
        // A driver that kicks all the same is no reason to spin either.
        rig.tx().kick();
        rig.run();
        for frame in &frames {
            assert!(rig.host.receive().expect("a frame")[HEADER_BYTES..] == *frame);
            rig.run();
        }
        assert_eq!(rig.host.receive(), None);
        assert_eq!(rig.metric("tx_frames"), 100);
        assert_eq!(std::iter::from_fn(|| rig.tx().take_used()).count() as u64, 100 - sent);
    }
}

#[test]
fn a_whole_queue_of_frames_goes_out_with_an_interrupt_for_each_batch_at_most() {
    for refused in [0, EVENT_IDX] {
        let mut rig = Rig::without(refused);
        for byte in 0..128 {
            let head = rig.tx().prepare(&[Buffer::Readable(&[byte; 80])], true);
            rig.tx().offer(head);
        }
        rig.tx().kick();
        rig.run();
        for byte in 0..128 {
            assert_eq!(rig.host.receive(), Some(vec![byte; 80]));
        }
        assert!((1..=2).contains(&rig.driver.interrupt.queue(1)));
    }
}

#[test]
fn a_frame_that_the_host_refuses_is_dropped_and_counted() {
    let (socket, host) = socket_pair();
    let size: libc::c_int = 2_304;
    let len = size_of_val(&size) as libc::socklen_t;
    // SAFETY: the option's value is a number of this type.
    let result = unsafe {
        let size = (&raw const size).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, size, len)
    };
    assert_eq!(result, 0);
    let net = Net::new(Backend::sockets(vec![socket]).unwrap(), None, None).unwrap();
    let mut rig = Rig::of(net, host, 0);
    // A message that is larger than the whole socket's buffer is refused.
    rig.transmit(&[1; 60_000]);
    rig.transmit(&[2; 60]);
    rig.run();
    assert_eq!(rig.host.receive().unwrap()[HEADER_BYTES..], [2; 60]);
    assert_eq!(std::iter::from_fn(|| rig.tx().take_used()).count(), 2);
    assert_eq!((rig.metric("tx_refused"), rig.metric("tx_frames")), (1, 1));
}

#[test]
fn a_broken_ring_ends_the_worker() {
    let mut rig = Rig::without(0);
    rig.tx().offer(0xfff);
    rig.tx().kick();
    let error = rig.inline.as_mut().unwrap().run(10).unwrap_err();
    assert!(matches!(error, WorkerError::Queue { queue: 1, .. }), "{error}");
}
