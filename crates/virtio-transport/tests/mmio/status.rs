//! The device status and the negotiation of features (VIRTIO 1.2, 2.1 and 3.1).

use kindling_virtio_device::COMMON_FEATURES;
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

use crate::support::{Echo, Guest, wait_for};

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

#[test]
fn a_driver_that_starts_as_linux_does_gets_a_device_that_works() {
    let guest = Guest::new();
    let [mut first, mut second] = guest.probe();
    for message in 1..100 {
        guest.echo(&mut first, message);
        guest.echo(&mut second, !message);
    }
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    assert_ne!(guest.line.read().unwrap(), 0);
    let all = Echo::FEATURES | COMMON_FEATURES | 1 << VIRTIO_F_RING_RESET;
    assert_eq!(*guest.log.activations.lock().unwrap(), [(all, vec![0, 1])]);
    assert_eq!((guest.count("activations"), guest.count("refused_accesses")), (1, 0));
}

#[test]
fn status_bits_stick_in_their_order_only() {
    let guest = Guest::new();
    for early in [DRIVER, FEATURES_OK, DRIVER_OK, DRIVER | FEATURES_OK | DRIVER_OK, NEEDS_RESET, 0x10] {
        guest.set(VIRTIO_MMIO_STATUS, early);
        assert_eq!(guest.status(), 0, "{early:#x}");
    }
    guest.add_status(ACKNOWLEDGE);
    guest.add_status(FEATURES_OK | DRIVER_OK);
    assert_eq!(guest.status(), ACKNOWLEDGE);
    guest.add_status(DRIVER);
    guest.accept(guest.offered());
    guest.add_status(DRIVER_OK);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
    assert_eq!(guest.log.activations(), 0);
    // All but the write of DEVICE_NEEDS_RESET, which a driver may have read.
    assert_eq!(guest.count("refused_accesses"), 7);
}

#[test]
fn several_bits_may_be_set_at_once() {
    let guest = Guest::new();
    guest.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    guest.accept(guest.offered());
    guest.add_status(FEATURES_OK);
    guest.set_up(0, 16);
    guest.add_status(DRIVER_OK);
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_bit_cannot_be_taken_back() {
    let guest = Guest::new();
    let [mut ring, _] = guest.probe();
    for less in [ACKNOWLEDGE, DRIVER, 0x7, 0xb, 0xe, FAILED] {
        guest.set(VIRTIO_MMIO_STATUS, less);
        assert_eq!(guest.status(), 0xf, "{less:#x}");
    }
    guest.echo(&mut ring, 1);
}

#[test]
fn a_second_driver_ok_starts_nothing_anew() {
    let guest = Guest::new();
    let [mut ring, _] = guest.probe();
    guest.add_status(DRIVER_OK);
    guest.add_status(DRIVER_OK | FEATURES_OK);
    guest.echo(&mut ring, 1);
    assert_eq!(guest.log.activations(), 1);
}

#[test]
fn features_are_ok_when_all_were_offered_and_version_1_is_among_them() {
    let version = 1 << VIRTIO_F_VERSION_1;
    let all = Guest::new().offered();
    let choices = [
        (0, false),
        (version, true),
        (all, true),
        (all & !version, false),
        (version | 1, false),
        (version | 1 << 3, true),
        (version | 1 << 63, false),
        (u64::MAX, false),
    ];
    let guest = Guest::new();
    guest.add_status(ACKNOWLEDGE);
    guest.add_status(DRIVER);
    for (choice, is_ok) in choices {
        guest.set(VIRTIO_MMIO_STATUS, 0);
        guest.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        guest.accept(choice);
        guest.add_status(FEATURES_OK);
        assert_eq!(guest.status() & FEATURES_OK != 0, is_ok, "{choice:#x}");
        if is_ok {
            // What is accepted cannot be changed any more.
            guest.accept(!choice);
            guest.set_up(0, 16);
            guest.add_status(DRIVER_OK);
            assert_eq!(guest.log.activations.lock().unwrap().last().unwrap().0, choice);
        }
    }
}

#[test]
fn a_driver_whose_features_were_refused_can_choose_again() {
    let guest = Guest::new();
    guest.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    guest.accept(u64::MAX);
    guest.add_status(FEATURES_OK);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
    guest.accept(guest.offered());
    guest.add_status(FEATURES_OK);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

#[test]
fn features_are_taken_from_a_driver_only_and_beyond_the_first_64_none() {
    let guest = Guest::new();
    guest.accept(guest.offered());
    guest.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    guest.add_status(FEATURES_OK);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER, "what was written without a driver does not count");
    guest.accept(guest.offered());
    let before = guest.count("refused_accesses");
    guest.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
    guest.set(VIRTIO_MMIO_DRIVER_FEATURES, 0);
    assert_eq!(guest.count("refused_accesses"), before);
    guest.set(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert_eq!(guest.count("refused_accesses"), before + 1);
}

#[test]
fn a_driver_that_has_failed_gets_nowhere_before_a_reset() {
    let guest = Guest::new();
    guest.add_status(ACKNOWLEDGE);
    guest.add_status(FAILED);
    guest.add_status(DRIVER);
    assert_eq!(guest.status(), ACKNOWLEDGE | FAILED);
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
}

#[test]
fn rings_outside_of_memory_make_the_device_need_a_reset() {
    let guest = Guest::new();
    guest.negotiate();
    guest.set_up(0, 16);
    guest.set_up(1, 16);
    guest.set(VIRTIO_MMIO_QUEUE_READY, 0);
    guest.set(VIRTIO_MMIO_QUEUE_USED_HIGH, 0xffff_ffff);
    guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
    guest.add_status(DRIVER_OK);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(guest.line.read().unwrap(), 1);
    assert_eq!((guest.count("protocol_errors"), guest.count("activations")), (1, 0));
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
}

#[test]
fn a_device_without_its_essential_queue_needs_a_reset() {
    let guest = Guest::new();
    guest.negotiate();
    guest.set_up(1, 16);
    guest.add_status(DRIVER_OK);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
}

#[test]
fn a_driver_that_breaks_its_ring_is_told_once_and_may_say_what_it_was_told() {
    let guest = Guest::new();
    let [first, second] = guest.probe();
    for ring in [&first, &second] {
        ring.set_available(100);
        guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, ring.index);
        guest.wait_status(0xf | NEEDS_RESET);
    }
    assert_eq!(wait_for(|| guest.line.read().ok()), 1);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(guest.count("protocol_errors"), 1);
    guest.set(VIRTIO_MMIO_STATUS, 0xf | FAILED);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET | FAILED);
    guest.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!((guest.status(), guest.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
}

#[test]
fn a_device_that_asks_for_a_reset_is_heard_once_and_while_there_is_a_driver() {
    let guest = Guest::new();
    guest.probe();
    let interrupt = guest.log.interrupt.lock().unwrap().clone().unwrap();
    interrupt.needs_reset();
    interrupt.needs_reset();
    assert_eq!((guest.line.read().unwrap(), guest.count("protocol_errors")), (1, 1));
    guest.set(VIRTIO_MMIO_STATUS, 0);
    interrupt.needs_reset();
    assert_eq!(guest.status(), 0);
    assert!(guest.line.read().is_err());
    assert_eq!(guest.count("protocol_errors"), 1);
}

#[test]
fn two_devices_can_share_a_line() {
    let first = Guest::new();
    let second = Guest::with(Echo::new(), Guest::new().memory.clone(), first.line.try_clone().unwrap());
    let [mut ring, _] = first.probe();
    second.probe();
    first.echo(&mut ring, 1);
    wait_for(|| first.line.read().ok());
    assert_eq!(first.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    assert_eq!(second.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0, "the line was not raised for this one");
    // Each reason gets an edge, also when an earlier one was not acknowledged.
    first.config.update(|bytes| bytes[0] = 77);
    second.config.update(|bytes| bytes[0] = 77);
    assert_eq!(first.line.read().unwrap(), 2);
    assert_eq!(first.get(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_eq!(second.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
}
