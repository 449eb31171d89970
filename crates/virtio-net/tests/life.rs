//! What a device goes through: sleep, reset, another driver, a link that is down, a tap that is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::{
    CTRL_VQ, EVENT_IDX, Host, INDIRECT, MAC, MQ, MRG_RXBUF, MTU, Random, Rig, device, metric, socket_pair,
};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{ActivateError, Device, WorkerThread, Workers};
use kindling_virtio_net::{Backend, Error, HEADER_BYTES, Net};

#[test]
fn sleeping_amid_traffic_loses_nothing() {
    for (refused, room) in [(0, 66_000), (EVENT_IDX, 900), (INDIRECT | MRG_RXBUF, 66_000)] {
        let mut rig = Rig::without(refused);
        let mut random = Random(21);
        let (mut to_guest, mut to_host) = (Vec::new(), Vec::new());
        let (mut at_guest, mut at_host) = (Vec::new(), Vec::new());
        for round in 0..600 {
            if random.below(3) > 0 && rig.rx().outstanding() < 60 {
                rig.rx().add(&[Buffer::Writable(room)]);
            }
            let frame = random.frame_up_to(if round % 8 == 0 { 60_000 } else { 1_500 });
            if rig.host.try_send(&[0; HEADER_BYTES], &frame) {
                to_guest.push(frame);
            }
            let frame = random.frame_up_to(3_000);
            if rig.tx().outstanding() < 60 {
                rig.transmit(&frame);
                to_host.push(frame);
            }
            for _ in 0..random.below(4) {
                rig.inline.as_mut().unwrap().step(0).unwrap();
            }
            match random.below(8) {
                0 | 1 if room < 66_000 || random.below(2) == 0 => {
                    let workers = rig.inline.take().unwrap().stop();
                    rig.inline = Some(Inline::start(workers).unwrap());
                }
                0 | 1 => {
                    // The queues as they stand are all that another process needs.
                    let workers = rig.inline.take().unwrap().stop();
                    for state in workers.iter().flat_map(|worker| worker.queues()) {
                        rig.driver.queues[usize::from(state.index)].state = state;
                    }
                    drop(workers);
                    let workers = rig.net.activate(rig.driver.activation()).unwrap();
                    rig.inline = Some(Inline::start(workers).unwrap());
                }
                _ => {}
            }
            if random.below(2) == 0 {
                at_host
                    .extend(std::iter::from_fn(|| rig.host.receive()).map(|message| message[12..].to_vec()));
                at_guest.extend(std::iter::from_fn(|| rig.received()).map(|(frame, _)| frame));
                while rig.tx().take_used().is_some() {}
            }
        }
        while at_guest.len() < to_guest.len() || at_host.len() < to_host.len() {
            let before = (at_guest.len(), at_host.len());
            for _ in 0..80 {
                if rig.rx().outstanding() < 120 {
                    rig.rx().add(&[Buffer::Writable(room)]);
                }
            }
            rig.run();
            while rig.tx().take_used().is_some() {}
            at_host.extend(std::iter::from_fn(|| rig.host.receive()).map(|message| message[12..].to_vec()));
            at_guest.extend(std::iter::from_fn(|| rig.received()).map(|(frame, _)| frame));
            assert_ne!(before, (at_guest.len(), at_host.len()), "frames are missing");
        }
        assert!(to_guest == at_guest, "refused {refused:#x}");
        assert!(to_host == at_host, "refused {refused:#x}");
    }
}

#[test]
fn another_driver_finds_a_working_device() {
    let mut rig = Rig::without(0);
    for refused in [0, EVENT_IDX, MRG_RXBUF] {
        rig.rx().add(&[Buffer::Writable(70_000)]);
        rig.transmit(&[1; 60]);
        rig.host.send(&[2; 60]);
        rig.run();
        assert_eq!(rig.received(), Some((vec![2; 60], 1)));
        assert_eq!(rig.host.receive().unwrap()[HEADER_BYTES..], [1; 60]);
        // The old driver leaves buffers behind.
        for _ in 0..3 {
            rig.rx().add(&[Buffer::Writable(70_000)]);
        }
        rig.run();
        drop(rig.inline.take().unwrap().stop());
        rig.net.reset();
        rig = Rig::of(rig.net, rig.host, refused);
    }
}

#[test]
fn draining_gives_back_what_was_taken_ahead() {
    let mut rig = Rig::without(0);
    for _ in 0..20 {
        rig.rx().add(&[Buffer::Writable(4_000)]);
    }
    rig.host.send(&[1; 5_000]);
    rig.run();
    let workers = rig.inline.take().unwrap().stop();
    let states: Vec<_> = workers[0]
        .queues()
        .iter()
        .map(|state| (state.index, state.next_available, state.next_used))
        .collect();
    assert_eq!(states, [(0, 2, 2), (1, 0, 0)]);
    assert_eq!(rig.received(), Some((vec![1; 5_000], 2)));
}

#[test]
fn features_and_configuration_space_show_what_was_asked_for() {
    let (socket, _host) = socket_pair();
    let net = Net::new(Backend::sockets(vec![socket]).unwrap(), None, None).unwrap();
    assert_eq!(net.features() & (MAC | MTU | MQ | CTRL_VQ), 0);
    assert_eq!((net.device_type(), net.queue_sizes(), net.workers()), (1, &[256, 256][..], Workers::Own(1)));
    let mut bytes = [0xff; 14];
    net.config().read(0, &mut bytes);
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]);

    let sockets = (0..3).map(|_| socket_pair().0).collect();
    let net = Net::new(Backend::sockets(sockets).unwrap(), Some([2, 3, 4, 5, 6, 7]), Some(0x1234)).unwrap();
    assert_eq!(net.features() & (MAC | MTU | MQ | CTRL_VQ), MAC | MTU | MQ | CTRL_VQ);
    assert_eq!(
        (net.queue_sizes(), net.workers()),
        (&[256, 256, 256, 256, 256, 256, 64][..], Workers::Own(3))
    );
    net.config().read(0, &mut bytes);
    assert_eq!(bytes, [2, 3, 4, 5, 6, 7, 1, 0, 3, 0, 0x34, 0x12, 0, 0]);

    for (mtu, is_valid) in [(0, false), (67, false), (68, true), (65_535, true)] {
        let net = Net::new(Backend::sockets(vec![socket_pair().0]).unwrap(), None, Some(mtu));
        assert_eq!(!matches!(net, Err(Error::Mtu(_))), is_valid);
    }
}

#[test]
fn a_driver_without_the_first_queue_pair_is_refused() {
    for missing in [0, 1] {
        let (mut net, _hosts) = device(2);
        let mut activation = MockDriver::new(&net).activation();
        activation.queues.retain(|queue| queue.index() != missing);
        let result = net.activate(activation);
        assert!(matches!(result, Err(ActivateError::Missing(index)) if index == missing));
    }
}

#[test]
fn a_link_that_is_down_shows_and_drops_frames_both_ways() {
    let mut rig = Rig::without(0);
    let control = rig.net.control();
    let interrupt = std::sync::Arc::clone(&rig.driver.interrupt);
    rig.net.config().set_interrupt(Some(interrupt));
    let status = |rig: &Rig| {
        let mut bytes = [0; 2];
        rig.net.config().read(6, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    // It does not matter whether there are buffers.
    for buffers in [0, 2] {
        for _ in 0..buffers {
            rig.rx().add(&[Buffer::Writable(70_000)]);
        }
        rig.run();
        let told = rig.driver.interrupt.config();
        control.set_link(false);
        control.set_link(false);
        assert_eq!((status(&rig), control.is_link_up(), rig.driver.interrupt.config()), (0, false, told + 1));
        let before = rig.metric("rx_dropped_link_down");
        rig.host.send(&[1; 60]);
        rig.transmit(&[1; 60]);
        rig.run();
        assert_eq!((rig.received(), rig.host.receive()), (None, None));
        assert!(rig.tx().take_used().is_some());
        assert_eq!(rig.metric("rx_dropped_link_down"), before + 1);
        control.set_link(true);
        assert_eq!((status(&rig), control.is_link_up(), rig.driver.interrupt.config()), (1, true, told + 2));
        rig.run();
    }
    assert_eq!(rig.metric("tx_dropped_link_down"), 2);
    rig.host.send(&[2; 60]);
    rig.transmit(&[2; 60]);
    rig.run();
    assert_eq!(rig.received(), Some((vec![2; 60], 1)));
    assert_eq!(rig.host.receive().unwrap()[HEADER_BYTES..], [2; 60]);
}

#[test]
fn a_frame_that_waits_for_room_is_dropped_when_the_link_goes_down() {
    let mut rig = Rig::without(0);
    rig.rx().add(&[Buffer::Writable(1_000)]);
    rig.host.send(&[1; 5_000]);
    rig.run();
    rig.net.control().set_link(false);
    rig.run();
    rig.net.control().set_link(true);
    rig.host.send(&[2; 60]);
    rig.run();
    assert_eq!(rig.received(), Some((vec![2; 60], 1)));
    assert_eq!(rig.metric("rx_dropped_link_down"), 1);
}

#[test]
fn a_lost_tap_takes_the_link_down_and_nothing_spins() {
    // Noticed by what the tap is watched for, by receiving, by sending, at a start.
    for how in ["event", "kick", "frame", "start", "full"] {
        let mut rig = Rig::without(0);
        let control = rig.net.control();
        if how != "kick" {
            rig.rx().add(&[Buffer::Writable(70_000)]);
        }
        if how == "full" {
            for _ in 0..20 {
                rig.transmit(&[1; 40_000]);
            }
        }
        rig.run();
        let before = rig.metric("tx_frames");
        let inline = rig.inline.take().unwrap();
        let (net, mut driver) = (rig.net, rig.driver);
        let mut inline = if how == "start" {
            let workers = inline.stop();
            drop::<Host>(rig.host);
            Inline::start(workers).unwrap()
        } else {
            drop::<Host>(rig.host);
            inline
        };
        match how {
            "kick" => drop(driver.queues[0].add(&[Buffer::Writable(70_000)])),
            "frame" => drop(driver.queues[1].add(&[Buffer::Readable(&[1; 100])])),
            _ => {}
        }
        assert!(inline.run(100).unwrap() < 10, "{how}: busy with nothing");
        assert!(!control.is_link_up(), "{how}");
        control.set_link(true);
        assert!(!control.is_link_up(), "{how}");
        // Both queues live on.
        for _ in 0..100 {
            driver.queues[0].kick();
            driver.queues[1].add(&[Buffer::Readable(&[1; 100])]);
        }
        assert!(inline.run(100).unwrap() < 20, "{how}: busy with nothing");
        while driver.queues[1].take_used().is_some() {}
        assert_eq!(driver.queues[1].outstanding(), 0, "{how}");
        assert_eq!(metric(&net, "tx_frames"), before, "{how}");
        assert_eq!(metric(&net, "tap_lost"), 1, "{how}");
        // So does the device: asleep and awake, and with another driver.
        let mut inline = Inline::start(inline.stop()).unwrap();
        assert!(inline.run(100).unwrap() < 10, "{how}");
        drop(inline.stop());
        let mut net = net;
        net.reset();
        let driver = MockDriver::new(&net);
        let mut inline = Inline::start(net.activate(driver.activation()).unwrap()).unwrap();
        assert!(inline.run(100).unwrap() < 10, "{how}");
        assert!(!control.is_link_up(), "{how}");
    }
}

#[test]
fn frames_pass_both_ways_on_threads_of_their_own() {
    let (mut net, hosts) = device(2);
    let mut driver = MockDriver::new(&net);
    let workers = net.activate(driver.activation()).unwrap();
    let slots: Vec<_> = workers
        .into_iter()
        .map(|worker| {
            let slot = WorkerThread::spawn("net", || Ok(())).unwrap().slot();
            slot.start(worker, std::sync::Arc::clone(&driver.interrupt) as _);
            slot
        })
        .collect();
    let mut random = Random(99);
    for (pair, host) in hosts.iter().enumerate() {
        let frames: Vec<_> = (0..500).map(|_| random.frame_up_to(3_000)).collect();
        let end = Instant::now() + Duration::from_secs(30);
        let (mut sent, mut echoed) = (0, 0);
        for _ in 0..32 {
            driver.queues[2 * pair].add(&[Buffer::Writable(70_000)]);
        }
        // The guest sends back what it receives.
        while echoed < frames.len() {
            assert!(Instant::now() < end, "{sent} frames sent, {echoed} back");
            while sent < frames.len() && sent < echoed + 30 && host.try_send(&[0; 12], &frames[sent]) {
                sent += 1;
            }
            while let Some(used) = driver.queues[2 * pair].take_used() {
                let message = &used.data[..used.written as usize];
                driver.queues[2 * pair + 1].add(&[Buffer::Readable(message)]);
                driver.queues[2 * pair].add(&[Buffer::Writable(3_100)]);
            }
            while let Some(message) = host.receive() {
                assert!(message[12..] == frames[echoed], "frame {echoed}");
                echoed += 1;
            }
            while driver.queues[2 * pair + 1].take_used().is_some() {}
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    for slot in &slots {
        assert!(slot.stop().wait(deadline).unwrap().is_some());
    }
    assert!(!driver.interrupt.is_reset_needed());
    assert_eq!((metric(&net, "rx_frames"), metric(&net, "tx_frames")), (1_000, 1_000));
}
