//! Reset, sleep and wake.

use std::time::{Duration, Instant};

use kindling_metrics::Value;
use kindling_virtio_device::{GuestMemory, WorkerThread};
use kindling_virtio_transport::{Error, MmioTransport, Transport};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::support::{Echo, Guest, Ring, wait_for};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Sends messages from `from` on for as long as there is room, and takes those that came back; returns the next of both.
fn exchange(guest: &Guest, ring: &mut Ring, from: u64, expected: &mut u64) -> u64 {
    let mut next = from;
    while ring.room() > 0 {
        ring.add(next);
        next += 1;
    }
    guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, ring.index);
    while let Some(message) = ring.take() {
        assert_eq!(message, *expected);
        *expected += 1;
    }
    next
}

#[test]
fn a_device_is_given_the_threads_that_it_asks_for_and_no_others() {
    let thread = WorkerThread::spawn("echo", || Ok(())).unwrap();
    for given in [0, 1, 3] {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let slots = (0..given).map(|_| thread.slot()).collect();
        let [line, late] = [0, 1].map(|_| EventFd::new(0).unwrap());
        let made = MmioTransport::new(Box::new(Echo::new()), memory.into(), slots, line, late.into());
        assert!(matches!(made, Err(Error::Slots { needed: 2, given: told }) if told == given));
    }
}

#[test]
fn a_device_that_makes_more_workers_than_it_said_is_not_started() {
    let guest = Guest::of(Echo { threads: 1, ..Echo::new() });
    guest.negotiate();
    guest.set_up(0, 16);
    guest.set_up(1, 16);
    guest.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(guest.count("activations"), 0);
}

#[test]
fn a_reset_under_traffic_forgets_everything_and_the_next_driver_starts_anew() {
    let guest = Guest::new();
    for round in 1..=20 {
        let [mut first, mut second] = guest.probe();
        let mut expected = (0, 0);
        let (mut next, mut other) = (0, 0);
        for _ in 0..round {
            next = exchange(&guest, &mut first, next, &mut expected.0);
            other = exchange(&guest, &mut second, other, &mut expected.1);
        }
        guest.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(guest.status(), 0);
        assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        for queue in [0, 1] {
            guest.set(VIRTIO_MMIO_QUEUE_SEL, queue);
            assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0);
        }
        // Nothing is written to the guest's memory any more.
        while first.take().is_some() {}
        first.add(1);
        guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(first.take(), None);
    }
    assert_eq!(guest.count("resets"), 20);
    assert_eq!(guest.log.activations(), 20);
}

#[test]
fn a_driver_ok_without_set_up_after_a_reset_finds_no_old_queues() {
    let guest = Guest::new();
    guest.probe();
    guest.negotiate();
    guest.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(guest.log.activations(), 1);
}

#[test]
fn sleeping_and_waking_under_traffic_loses_nothing() {
    let guest = Guest::new();
    let [mut ring, _] = guest.probe();
    std::thread::scope(|scope| {
        let monitor = scope.spawn(|| {
            for _ in 0..200 {
                guest.transport.sleep(soon()).unwrap();
                guest.transport.wake().unwrap();
            }
        });
        let (mut next, mut expected) = (0, 0);
        while !monitor.is_finished() || expected < 1_000 {
            next = exchange(&guest, &mut ring, next, &mut expected);
        }
        while expected < next {
            assert_eq!(ring.wait(), expected);
            expected += 1;
        }
    });
    assert_eq!(guest.log.activations(), 1, "waking is no activation");
}

#[test]
fn a_sleeping_device_does_nothing_until_it_wakes() {
    let guest = Guest::new();
    let [mut ring, _] = guest.probe();
    guest.transport.sleep(soon()).unwrap();
    guest.transport.sleep(soon()).unwrap();
    ring.add(7);
    guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(ring.take(), None);
    guest.transport.wake().unwrap();
    assert_eq!(ring.wait(), 7);
    guest.transport.wake().unwrap();
    guest.echo(&mut ring, 8);
}

#[test]
fn a_driver_that_starts_while_the_device_sleeps_is_served_when_it_wakes() {
    let guest = Guest::new();
    guest.probe();
    guest.transport.sleep(soon()).unwrap();
    let [mut ring, _] = guest.probe();
    ring.add(7);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(ring.take(), None);
    guest.transport.wake().unwrap();
    assert_eq!(ring.wait(), 7);
}

#[test]
fn the_monitor_can_reset_a_device_awake_or_asleep() {
    let guest = Guest::new();
    for asleep in [false, true] {
        guest.probe();
        if asleep {
            guest.transport.sleep(soon()).unwrap();
        }
        guest.transport.reset(soon()).unwrap();
        assert_eq!(guest.status(), 0);
        guest.transport.wake().unwrap();
        let [mut ring, _] = guest.probe();
        guest.echo(&mut ring, 1);
    }
    // Each of the two probes of a round begins with a reset by the driver, of which the very first resets nothing.
    assert_eq!(guest.count("resets"), 3);
    assert_eq!(guest.log.activations(), 4);
}

#[test]
fn waking_interrupts_again_for_what_was_not_acknowledged() {
    let guest = Guest::new();
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
    wait_for(|| guest.line.read().ok());
    guest.transport.sleep(soon()).unwrap();
    guest.transport.wake().unwrap();
    assert_eq!(guest.line.read().unwrap(), 1);
    guest.set(VIRTIO_MMIO_INTERRUPT_ACK, 3);
    guest.transport.sleep(soon()).unwrap();
    guest.transport.wake().unwrap();
    assert!(guest.line.read().is_err());
}

#[test]
fn type_and_metrics_of_the_device_are_found_through_any_transport() {
    let guest = Guest::new();
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
    let transport: Box<dyn Transport> = Box::new(guest.transport);
    assert_eq!(transport.device_metrics().value("echoed"), Some(Value::Counter(1)));
    assert_eq!(transport.device_type(), 63);
}
