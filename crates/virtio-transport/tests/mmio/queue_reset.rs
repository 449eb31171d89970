//! Resetting single queues (VIRTIO 1.2, 2.6.1).

use std::time::{Duration, Instant};

use kindling_virtio_transport::Transport;
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

use crate::support::Guest;

#[test]
fn a_queue_is_reset_and_set_up_anew_while_the_other_goes_on() {
    let guest = Guest::new();
    let [mut first, mut second] = guest.probe();
    for message in 0..21 {
        guest.echo(&mut first, message);
        guest.echo(&mut second, message);
    }
    for round in 0..3 {
        guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
        guest.set(Guest::QUEUE_RESET, 1);
        assert_eq!((guest.get(Guest::QUEUE_RESET), guest.get(VIRTIO_MMIO_QUEUE_READY)), (0, 0));
        guest.echo(&mut first, 100);
        let mut anew = guest.set_up(1, 64 >> round);
        guest.echo(&mut anew, 101);
        guest.echo(&mut first, 102);
    }
    assert_eq!(guest.status(), 0xf);
    let queues =
        guest.log.activations.lock().unwrap().iter().map(|(_, queues)| queues.len()).collect::<Vec<_>>();
    assert_eq!(queues, [2, 1, 2, 1, 2, 1, 2]);
    assert_eq!(guest.count("activations"), 7);
}

#[test]
fn a_device_without_its_essential_queue_waits_for_it() {
    let guest = Guest::new();
    let [_, mut second] = guest.probe();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    guest.set(Guest::QUEUE_RESET, 1);
    second.add(5);
    guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(second.take(), None);
    assert_eq!(guest.status(), 0xf);
    let mut first = guest.set_up(0, 4);
    assert_eq!(second.wait(), 5);
    guest.echo(&mut first, 6);
}

#[test]
fn a_queue_that_was_reset_forgets_its_settings() {
    let guest = Guest::new();
    let [mut first, _] = guest.probe();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    // All addresses are 0 now, which is in memory: the rings there are empty.
    guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.status(), 0xf);
    guest.echo(&mut first, 1);
}

#[test]
fn a_queue_that_is_enabled_anew_and_wrongly_makes_the_device_need_a_reset() {
    let guest = Guest::new();
    guest.probe();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    guest.set(VIRTIO_MMIO_QUEUE_DESC_HIGH, 1);
    guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    // The driver may still take its queues from the device, and give it others, but that helps nothing.
    let activations = guest.log.activations();
    guest.set(Guest::QUEUE_RESET, 1);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0);
    guest.set_up(1, 16);
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(guest.log.activations(), activations);
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
}

#[test]
fn queues_are_reset_by_drivers_that_said_they_would_only() {
    let guest = Guest::new();
    guest.set(VIRTIO_MMIO_STATUS, 3);
    guest.accept(guest.offered());
    guest.set(Guest::QUEUE_RESET, 1);
    assert_eq!(guest.count("refused_accesses"), 1, "it has not yet said so for good");
    guest.accept(guest.offered() & !(1 << VIRTIO_F_RING_RESET));
    guest.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
    let mut ring = guest.set_up(0, 16);
    guest.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    guest.set(Guest::QUEUE_RESET, 1);
    assert_eq!(guest.count("refused_accesses"), 2);
    guest.echo(&mut ring, 1);
}

#[test]
fn a_queue_that_is_disabled_is_let_alone_by_the_device() {
    let guest = Guest::new();
    let [mut first, mut second] = guest.probe();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0);
    second.add(1);
    guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    guest.echo(&mut first, 2);
    assert_eq!(second.take(), None);
    let mut anew = guest.set_up(1, 16);
    guest.echo(&mut anew, 3);
}

#[test]
fn a_reset_before_driver_ok_clears_the_queue() {
    let guest = Guest::new();
    guest.negotiate();
    guest.set_up(0, 8);
    guest.set(Guest::QUEUE_RESET, 1);
    guest.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET, "the essential queue is not enabled");
}

#[test]
fn a_sleeping_device_has_its_queues_reset_too() {
    let guest = Guest::new();
    let [mut first, _] = guest.probe();
    guest.echo(&mut first, 1);
    guest.transport.sleep(Instant::now() + Duration::from_secs(10)).unwrap();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    let mut second = guest.set_up(1, 16);
    second.add(3);
    first.add(2);
    guest.transport.wake().unwrap();
    assert_eq!((first.wait(), second.wait()), (2, 3));
}
