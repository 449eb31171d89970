//! Frames from the host to the guest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{EVENT_IDX, GUEST_CSUM, INDIRECT, LARGE, MRG_RXBUF, Random, Rig, socket_pair};
use kindling_virtio_device::WorkerError;
use kindling_virtio_device::test_utils::Buffer;
use kindling_virtio_net::{Backend, MAX_FRAME_BYTES, Net};

#[test]
fn a_frame_comes_with_its_header_into_one_buffer_that_is_large_enough() {
    for refused in [0, MRG_RXBUF, EVENT_IDX | INDIRECT, LARGE, LARGE | MRG_RXBUF] {
        let mut rig = Rig::without(refused);
        let head = rig.rx().add(&[Buffer::Writable(70_000)]);
        rig.run();
        let frame = Random(1).frame(1514);
        assert!(rig.host.try_send(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0xff, 0xff], &frame));
        rig.run();
        let used = rig.rx().take_used().unwrap();
        assert_eq!((used.head, used.written), (head, 1526));
        assert_eq!(used.data[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 0], "refused {refused:#x}");
        assert_eq!(used.data[12..1526], frame);
        assert_eq!(rig.driver.interrupt.queue(0), 1);
        assert_eq!((rig.metric("rx_frames"), rig.metric("rx_bytes")), (1, 1514));
    }
}

#[test]
fn frames_of_all_sizes_are_cut_over_chains_of_odd_sizes() {
    let mut random = Random(7);
    for refused in [0, EVENT_IDX, INDIRECT, LARGE] {
        let largest = if refused == LARGE { 1514 } else { MAX_FRAME_BYTES };
        let mut rig = Rig::without(refused);
        for _ in 0..400 {
            for _ in 0..1 + random.below(60) {
                let sizes: Vec<_> =
                    (0..1 + random.below(3)).map(|_| 13 + random.below(3_000) as u32).collect();
                let buffers: Vec<_> = sizes.iter().map(|size| Buffer::Writable(*size)).collect();
                if rig.rx().outstanding() < 64 {
                    match refused & INDIRECT {
                        0 if random.below(2) == 0 => rig.rx().add_indirect(&buffers),
                        _ => rig.rx().add(&buffers),
                    };
                }
            }
            let size = [60, 1514, largest][random.below(3)];
            let frames: Vec<_> = (0..1 + random.below(2)).map(|_| random.frame_up_to(size)).collect();
            frames.iter().for_each(|frame| rig.host.send(frame));
            for frame in &frames {
                rig.run();
                let got = loop {
                    match rig.received() {
                        Some(got) => break got,
                        // It waits for room.
                        None => {
                            rig.rx().add(&[Buffer::Writable(14 + random.below(5_000) as u32)]);
                            rig.run();
                        }
                    }
                };
                assert!(got.0 == *frame, "a frame of {} bytes came as {}", frame.len(), got.0.len());
            }
            assert_eq!(rig.received(), None);
        }
        assert_eq!(rig.metric("rx_dropped_size") + rig.metric("rx_dropped_no_room"), 0);
        assert_eq!(rig.metric("rx_unusable_buffers"), 0);
    }
}

#[test]
fn written_lengths_are_those_of_each_chain() {
    let mut rig = Rig::without(LARGE);
    for size in [100, 13, 40, 2_000] {
        rig.rx().add(&[Buffer::Writable(size)]);
    }
    rig.host.send(&Random(3).frame(188));
    rig.run();
    let used: Vec<_> = std::iter::from_fn(|| rig.rx().take_used()).collect();
    let written: Vec<_> = used.iter().map(|used| used.written).collect();
    assert_eq!(written, [100, 13, 40, 47]);
    assert_eq!(used[0].data[10..12], [4, 0]);
    assert!(used[3].data[47..].iter().all(|byte| *byte == 0xa5), "nothing beyond the frame is written");
}

#[test]
fn without_buffers_frames_stay_with_the_host_and_nothing_spins() {
    for refused in [0, MRG_RXBUF, EVENT_IDX] {
        let mut rig = Rig::without(refused);
        rig.host.send(&[1; 60]);
        rig.host.send(&[2; 60]);
        assert!(rig.inline.as_mut().unwrap().run(100).unwrap() < 5);
        assert_eq!(rig.inline.as_mut().unwrap().step(0).unwrap(), 0, "nothing to do until the guest kicks");
        rig.rx().add(&[Buffer::Writable(2_000)]);
        rig.run();
        assert_eq!(rig.received(), Some((vec![1; 60], 1)));
        assert_eq!(rig.received(), None);
        assert_eq!(rig.inline.as_mut().unwrap().step(0).unwrap(), 0);
        rig.rx().add(&[Buffer::Writable(2_000)]);
        rig.run();
        assert_eq!(rig.received(), Some((vec![2; 60], 1)));
        // Now there are buffers before there are frames.
        rig.rx().add(&[Buffer::Writable(2_000)]);
        rig.run();
        rig.host.send(&[3; 60]);
        rig.run();
        assert_eq!(rig.received(), Some((vec![3; 60], 1)));
    }
}

#[test]
fn no_kick_is_asked_for_while_there_are_buffers() {
    let mut rig = Rig::without(EVENT_IDX);
    for _ in 0..8 {
        rig.rx().add(&[Buffer::Writable(70_000)]);
    }
    rig.run();
    rig.host.send(&[1; 60]);
    rig.run();
    let wants_kicks = |rig: &Rig| {
        let used_ring = rig.driver.queues[0].state.config.used_ring;
        let flags: u16 =
            vm_memory::Bytes::read_obj(&*rig.driver.memory, vm_memory::GuestAddress(used_ring)).unwrap();
        flags & 1 == 0
    };
    assert!(!wants_kicks(&rig));
    for _ in 0..7 {
        rig.host.send(&[1; 60]);
    }
    rig.run();
    assert!(wants_kicks(&rig));
}

#[test]
fn a_frame_that_must_wait_for_room_comes_whole() {
    let mut rig = Rig::without(0);
    rig.rx().add(&[Buffer::Writable(1_000)]);
    let frame = Random(5).frame(60_000);
    rig.host.send(&frame);
    rig.run();
    for _ in 0..59 {
        assert_eq!(rig.received(), None);
        rig.rx().add(&[Buffer::Writable(1_000)]);
        rig.run();
    }
    assert_eq!(rig.received(), None);
    rig.rx().add(&[Buffer::Writable(1_000)]);
    rig.run();
    let (got, buffers) = rig.received().unwrap();
    assert!(got == frame);
    assert_eq!(buffers, 61);
    assert_eq!(rig.driver.interrupt.queue(0), 1);
}

#[test]
fn a_frame_that_all_the_driver_has_cannot_hold_is_dropped() {
    let mut rig = Rig::without(0);
    for _ in 0..256 {
        rig.rx().add(&[Buffer::Writable(20)]);
    }
    rig.host.send(&[1; 6_000]);
    rig.host.send(&[2; 60]);
    rig.run();
    assert_eq!(rig.received(), Some((vec![2; 60], 4)));
    assert_eq!(rig.metric("rx_dropped_no_room"), 1);
}

#[test]
fn without_merging_a_buffer_that_is_too_small_for_a_frame_makes_way_for_the_next() {
    for refused in [MRG_RXBUF, MRG_RXBUF | LARGE] {
        let mut rig = Rig::without(refused);
        rig.rx().add(&[Buffer::Writable(100)]);
        let large = rig.rx().add(&[Buffer::Writable(70_000)]);
        rig.host.send(&[1; 60]);
        rig.run();
        assert_eq!(rig.received(), Some((vec![1; 60], 1)), "a small frame fits");
        let small = rig.rx().add(&[Buffer::Writable(100)]);
        let last = rig.rx().add(&[Buffer::Writable(1_600)]);
        rig.host.send(&[2; 1_500]);
        rig.run();
        assert_eq!(rig.rx().take_used().unwrap().head, large);
        rig.host.send(&[3; 1_500]);
        rig.run();
        let used = rig.rx().take_used().unwrap();
        assert_eq!((used.head, used.written), (small, 0));
        assert_eq!(rig.rx().take_used(), None);
        assert_eq!(rig.metric("rx_dropped_no_room"), 1);
        rig.host.send(&[4; 1_500]);
        rig.run();
        let used = rig.rx().take_used().unwrap();
        assert_eq!((used.head, used.written, used.data[12]), (last, 1_512, 4));
    }
}

#[test]
fn buffers_without_room_for_a_header_go_back_in_turn() {
    for refused in [0, MRG_RXBUF] {
        let mut rig = Rig::without(refused);
        let usable = rig.rx().add(&[Buffer::Writable(1_000)]);
        let tiny = rig.rx().add(&[Buffer::Writable(if refused == 0 { 12 } else { 25 })]);
        let not_writable = rig.rx().add(&[Buffer::Readable(b"what is this")]);
        let good = rig.rx().add(&[Buffer::Writable(70_000)]);
        rig.run();
        rig.host.send(&[1; 60]);
        rig.host.send(&[2; 60]);
        rig.run();
        let used: Vec<_> = std::iter::from_fn(|| rig.rx().take_used()).map(|u| (u.head, u.written)).collect();
        if refused == 0 {
            assert_eq!(used, [(usable, 0), (tiny, 0), (not_writable, 0), (good, 72)]);
        } else {
            assert_eq!(used, [(usable, 72), (tiny, 0), (not_writable, 0), (good, 72)]);
        }
        assert_eq!(rig.metric("rx_unusable_buffers"), 2);
    }
}

#[test]
fn frames_of_wrong_sizes_are_dropped_and_the_buffer_is_kept() {
    for (refused, largest) in [(0, MAX_FRAME_BYTES), (LARGE, 1518), (LARGE | MRG_RXBUF, 1518)] {
        let mut rig = Rig::without(refused);
        rig.rx().add(&[Buffer::Writable(70_000)]);
        rig.run();
        rig.host.send(&vec![1; largest + 1]);
        rig.host.send(&[1; 13]);
        rig.host.send(&vec![2; largest]);
        rig.run();
        assert_eq!(rig.received(), Some((vec![2; largest], 1)));
        assert_eq!(rig.metric("rx_dropped_size"), 2);
    }
}

#[test]
fn packets_above_the_agreed_mtu_come_only_if_they_are_to_be_cut() {
    for room in [70_000, 3_000] {
        let (socket, host) = socket_pair();
        let net = Net::new(Backend::sockets(vec![socket]).unwrap(), None, Some(1_000)).unwrap();
        let mut rig = Rig::of(net, host, 0);
        for _ in 0..2 {
            rig.rx().add(&[Buffer::Writable(room)]);
        }
        rig.run();
        let [plain, ecn_only, tcp] = [0, 0x80, 1].map(|gso_type| [0, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(rig.host.try_send(&plain, &[1; 1_019]));
        assert!(rig.host.try_send(&ecn_only, &[2; 1_019]));
        assert!(rig.host.try_send(&plain, &[3; 1_018]));
        assert!(rig.host.try_send(&tcp, &[4; 1_019]));
        rig.run();
        assert_eq!(rig.received(), Some((vec![3; 1_018], 1)));
        assert_eq!(rig.received(), Some((vec![4; 1_019], 1)));
        assert_eq!(rig.metric("rx_dropped_size"), 2);
    }
}

#[test]
fn a_driver_that_checks_sums_itself_gets_no_flags() {
    for size in [70_000, 1_600] {
        let mut rig = Rig::without(GUEST_CSUM);
        rig.rx().add(&[Buffer::Writable(5), Buffer::Writable(6), Buffer::Writable(size)]);
        rig.run();
        assert!(rig.host.try_send(&[3, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], &[1; 60]));
        rig.run();
        assert_eq!(rig.rx().take_used().unwrap().data[..12], [0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 1, 0]);
    }
}

#[test]
fn more_segments_than_the_kernel_takes_at_once_are_filled_all_the_same() {
    let mut rig = Rig::without(0);
    let buffers = [Buffer::Writable(3); 250];
    for _ in 0..100 {
        rig.rx().add_indirect(&buffers);
    }
    let frame = Random(9).frame(65_000);
    rig.host.send(&frame);
    rig.run();
    let (got, buffers) = rig.received().unwrap();
    assert!(got == frame);
    assert_eq!(buffers, (65_012_u16).div_ceil(750));
}

#[test]
fn a_batch_of_frames_interrupts_once() {
    for refused in [0, EVENT_IDX] {
        let mut rig = Rig::without(refused);
        for _ in 0..50 {
            rig.rx().add(&[Buffer::Writable(2_000)]);
        }
        rig.run();
        (0..50).for_each(|byte| rig.host.send(&[byte; 60]));
        rig.run();
        assert_eq!(rig.driver.interrupt.queue(0), 1);
        for byte in 0..50 {
            assert_eq!(rig.received(), Some((vec![byte; 60], 1)));
        }
    }
}

#[test]
fn a_broken_ring_ends_the_worker() {
    let mut rig = Rig::without(0);
    rig.rx().offer(0xfff);
    rig.rx().kick();
    let error = rig.inline.as_mut().unwrap().run(10).unwrap_err();
    assert!(matches!(error, WorkerError::Queue { queue: 0, .. }), "{error}");
}
