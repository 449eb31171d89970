//! The queue for commands, and the number of queue pairs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::{CTRL_VQ, MQ, device, metric};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device, WorkerError};
use kindling_virtio_net::Net;

const OK: u8 = 0;
const ERR: u8 = 1;

/// A device with three queue pairs, whose command queue is number `index`.
fn rig(refused: u64) -> (Net, MockDriver, Inline) {
    let (mut net, _hosts) = device(3);
    // Without their hosts the taps are lost, which is nothing to commands.
    let driver = MockDriver::with_features(&net, (net.features() | COMMON_FEATURES) & !refused);
    let inline = Inline::start(net.activate(driver.activation()).unwrap()).unwrap();
    (net, driver, inline)
}

fn command(driver: &mut MockDriver, inline: &mut Inline, index: usize, pieces: &[&[u8]]) -> (u8, u32) {
    let mut buffers: Vec<_> = pieces.iter().map(|piece| Buffer::Readable(piece)).collect();
    buffers.push(Buffer::Writable(1));
    driver.queues[index].add(&buffers);
    inline.run(100).unwrap();
    let used = driver.queues[index].take_used().unwrap();
    (used.data[0], used.written)
}

#[test]
fn the_number_of_queue_pairs_is_set_within_its_range() {
    let (net, mut driver, mut inline) = rig(0);
    assert_eq!(net.save(), [1, 0], "one pair is active at first");
    for (pairs, ack, active) in
        [(3_u16, OK, 3), (1, OK, 1), (2, OK, 2), (0, ERR, 2), (4, ERR, 2), (0x8000, ERR, 2)]
    {
        let [low, high] = pairs.to_le_bytes();
        assert_eq!(command(&mut driver, &mut inline, 6, &[&[4, 0], &[low, high]]), (ack, 1), "{pairs}");
        assert_eq!(net.save(), [active, 0], "{pairs}");
    }
    assert_eq!(command(&mut driver, &mut inline, 6, &[&[4], &[0, 3], &[0]]), (OK, 1), "cut in any way");
    assert_eq!(net.save(), [3, 0]);
    assert_eq!((metric(&net, "commands"), metric(&net, "commands_failed")), (7, 3));
    assert_eq!(driver.interrupt.queue(6), 7);
}

#[test]
fn what_is_unknown_or_malformed_fails() {
    let (net, mut driver, mut inline) = rig(0);
    let long = [4; 70_000];
    let messages: [&[u8]; 10] = [
        &[],
        &[4],
        &[4, 0],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        &[4, 1, 2, 0],
        &[0, 0, 1],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[0xff, 0xff, 2, 0],
        &long,
    ];
    for message in messages {
        assert_eq!(
            command(&mut driver, &mut inline, 6, &[message]),
            (ERR, 1),
            "{:?}",
            &message[..message.len().min(9)]
        );
    }
    assert_eq!(net.save(), [1, 0]);
    // One without a place for the answer.
    driver.queues[6].add(&[Buffer::Readable(&[4, 0, 2, 0])]);
    inline.run(100).unwrap();
    assert_eq!(driver.queues[6].take_used().unwrap().written, 0);
    assert_eq!(metric(&net, "commands_failed"), 11);
}

#[test]
fn without_multi_queue_commands_come_by_the_third_queue() {
    let (net, mut driver, mut inline) = rig(MQ);
    assert_eq!(command(&mut driver, &mut inline, 2, &[&[4, 0, 1, 0]]), (OK, 1));
    assert_eq!(command(&mut driver, &mut inline, 2, &[&[4, 0, 2, 0]]), (ERR, 1));
    assert_eq!(net.save(), [1, 0]);
    // Multi-queue needs commands (VIRTIO 1.2, 5.1.3.1).
    let (mut net, _hosts) = device(3);
    let driver = MockDriver::with_features(&net, (net.features() | COMMON_FEATURES) & !CTRL_VQ);
    let workers = net.activate(driver.activation()).unwrap();
    assert_eq!(workers.iter().map(|worker| worker.queues().len()).collect::<Vec<_>>(), [2]);
}

#[test]
fn only_queue_pairs_that_the_driver_set_up_can_be_chosen() {
    let (mut net, _hosts) = device(3);
    let mut driver = MockDriver::new(&net);
    let mut activation = driver.activation();
    activation.queues.retain(|queue| queue.index() != 3);
    net.restore(&[3, 0]).unwrap();
    let workers = net.activate(activation).unwrap();
    assert_eq!(workers.len(), 1);
    let mut inline = Inline::start(workers).unwrap();
    assert_eq!(command(&mut driver, &mut inline, 6, &[&[4, 0, 2, 0]]), (ERR, 1));
}

#[test]
fn the_number_of_queue_pairs_survives_new_queues_and_a_save_and_ends_with_a_reset() {
    let (mut net, mut driver, mut inline) = rig(0);
    assert_eq!(command(&mut driver, &mut inline, 6, &[&[4, 0, 3, 0]]), (OK, 1));
    drop(inline);
    // A queue of the second pair is reset.
    let mut activation = driver.activation();
    activation.queues.retain(|queue| queue.index() != 3);
    drop(net.activate(activation).unwrap());
    let state = net.save();
    let (mut net, _hosts) = device(3);
    net.restore(&state).unwrap();
    drop(net.activate(driver.activation()).unwrap());
    assert_eq!(net.save(), [3, 0]);
    net.reset();
    assert_eq!(net.save(), [1, 0]);
    drop(net.activate(driver.activation()).unwrap());
    assert_eq!(net.save(), [1, 0]);
    for state in [&[][..], &[1], &[0, 0], &[4, 0], &[1, 1], &[1, 0, 0]] {
        assert!(net.restore(state).is_err(), "{state:?}");
    }
    drop(net.activate(driver.activation()).unwrap());
    assert_eq!(net.save(), [1, 0], "a state that is refused changes nothing");
}

#[test]
fn a_command_that_came_during_a_sleep_is_obeyed_without_a_kick() {
    let (net, mut driver, inline) = rig(0);
    let workers = inline.stop();
    let head = driver.queues[6].prepare(&[Buffer::Readable(&[4, 0, 2, 0]), Buffer::Writable(1)], false);
    driver.queues[6].offer(head);
    let _inline = Inline::start(workers).unwrap();
    assert_eq!(driver.queues[6].take_used().unwrap().data, [OK]);
    assert_eq!(net.save(), [2, 0]);
}

#[test]
fn commands_are_obeyed_one_at_a_time_so_that_the_thread_can_stop_between_them() {
    let (net, mut driver, mut inline) = rig(0);
    let queue = &mut driver.queues[6];
    for pairs in 1..=3 {
        let head = queue.prepare(&[Buffer::Readable(&[4, 0, pairs, 0]), Buffer::Writable(1)], false);
        queue.offer(head);
    }
    queue.kick();
    for pairs in 1..=3 {
        inline.step(0).unwrap();
        assert_eq!(net.save(), [pairs, 0]);
        assert_eq!(queue.take_used().unwrap().data, [OK]);
    }
    assert_eq!(inline.run(10).unwrap(), 0);
}

#[test]
fn a_driver_that_changes_its_mind_often_waits_for_the_answer_even_after_a_reset() {
    let (mut net, mut driver, mut inline) = rig(0);
    let begun = Instant::now();
    for round in 1..=50 {
        if round == 20 {
            drop(inline);
            net.reset();
            driver = MockDriver::new(&net);
            inline = Inline::start(net.activate(driver.activation()).unwrap()).unwrap();
        }
        for pairs in [3, 1] {
            driver.queues[6].add(&[Buffer::Readable(&[4, 0, pairs, 0]), Buffer::Writable(1)]);
            let used = loop {
                // Waiting is no work.
                inline.step(1_000).unwrap();
                if let Some(used) = driver.queues[6].take_used() {
                    break used;
                }
            };
            assert_eq!((used.data, net.save()), (vec![OK], vec![pairs, 0]), "round {round}");
        }
    }
    // 200 queues came and went: 64 at once, the others in more than two seconds.
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
    // What changes nothing need not wait.
    for _ in 0..200 {
        assert_eq!(command(&mut driver, &mut inline, 6, &[&[4, 0, 1, 0]]), (OK, 1));
    }
    assert!(begun.elapsed() < took + Duration::from_secs(1));
}

#[test]
fn a_broken_ring_ends_the_worker() {
    let (_net, mut driver, mut inline) = rig(0);
    driver.queues[6].offer(0xfff);
    driver.queues[6].kick();
    let error = inline.run(10).unwrap_err();
    assert!(matches!(error, WorkerError::Queue { queue: 6, .. }), "{error}");
}
