//! A device whose back end hangs.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kindling_virtio_device::StopError;
use kindling_virtio_transport::{Error, RESET_DEADLINE, Transport};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

use crate::support::{Guest, Ring, wait_for};

/// What a broken device that is being reset shows.
const BROKEN: u32 = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;

fn hung() -> (Guest, [Ring; 2]) {
    let guest = Guest::new();
    let rings = guest.probe();
    guest.log.set_hanging(true);
    (guest, rings)
}

/// Sleeps in vain.
fn fail_to_sleep(guest: &Guest) {
    let slept = guest.transport.sleep(Instant::now() + Duration::from_millis(10));
    assert!(matches!(slept, Err(Error::Stop(StopError::Deadline))));
}

#[test]
fn a_reset_waits_once_and_completes_when_the_worker_comes_back() {
    let (guest, _) = hung();
    let begun = Instant::now();
    guest.set(VIRTIO_MMIO_STATUS, 0);
    assert!(begun.elapsed() >= RESET_DEADLINE);
    assert_eq!(guest.status(), BROKEN);

    let begun = Instant::now();
    guest.set(VIRTIO_MMIO_STATUS, 0);
    // The driver tries all the same, and gets nowhere.
    guest.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    guest.add_status(VIRTIO_CONFIG_S_DRIVER);
    guest.add_status(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0);
    guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!((guest.get(VIRTIO_MMIO_QUEUE_READY), guest.status()), (0, BROKEN));
    assert!(begun.elapsed() < RESET_DEADLINE);
    assert_eq!((guest.count("resets"), guest.log.activations()), (0, 1));

    guest.log.set_hanging(false);
    guest.wait_status(0);
    assert_eq!(guest.count("resets"), 1);
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
}

#[test]
fn interrupts_notifications_and_configuration_do_not_wait_for_a_reset() {
    let (guest, _) = hung();
    let long = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| guest.reset(Instant::now() + long));
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        guest.get(VIRTIO_MMIO_INTERRUPT_STATUS);
        guest.set(VIRTIO_MMIO_INTERRUPT_ACK, 3);
        guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        guest.read(0x100, &mut [0; 4]);
        assert!(begun.elapsed() < long / 2);
        assert!(!reset.is_finished());
        guest.log.set_hanging(false);
        reset.join().unwrap().unwrap();
    });
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_device_that_does_not_sleep_in_time_goes_on_when_it_can() {
    let (guest, [mut first, mut second]) = hung();
    fail_to_sleep(&guest);
    assert!(matches!(guest.save(), Err(Error::Awake)));
    assert!(matches!(guest.wake(), Err(Error::Stop(StopError::Deadline))));
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    first.add(1);
    second.add(2);
    guest.log.set_hanging(false);
    guest.wait_status(0xf);
    assert_eq!((first.wait(), second.wait()), (1, 2));
    assert_eq!((guest.count("protocol_errors"), guest.log.activations()), (0, 1));
}

#[test]
fn a_device_that_did_not_sleep_in_time_goes_on_when_its_monitor_hears_that_it_can() {
    let (guest, [mut first, mut second]) = hung();
    fail_to_sleep(&guest);
    guest.wake().unwrap_err();
    guest.go_on();
    first.add(1);
    second.add(2);
    assert!(guest.late.read().is_err());
    guest.log.set_hanging(false);
    // Each of the two workers is told of when it comes, unless the other one has come before. No register is accessed.
    let came_back = wait_for(|| {
        if guest.late.read().is_ok() {
            guest.go_on();
        }
        first.take()
    });
    assert_eq!((came_back, second.wait()), (1, 2));
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_device_that_was_put_to_sleep_again_is_not_woken_by_workers_that_were_late() {
    let (guest, [mut ring, _]) = hung();
    fail_to_sleep(&guest);
    guest.log.set_hanging(false);
    guest.transport.sleep(Instant::now() + Duration::from_secs(10)).unwrap();
    wait_for(|| guest.late.read().ok());
    ring.add(1);
    guest.go_on();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(ring.take(), None);
    guest.wake().unwrap();
    assert_eq!(ring.wait(), 1);
}

#[test]
fn what_a_driver_asked_for_meanwhile_is_left_to_its_next_access() {
    let (guest, _) = hung();
    fail_to_sleep(&guest);
    guest.set(VIRTIO_MMIO_STATUS, 0);
    let resets = guest.log.resets.load(Ordering::SeqCst);
    guest.log.set_hanging(false);
    wait_for(|| guest.late.read().ok());
    guest.go_on();
    assert_eq!(guest.log.resets.load(Ordering::SeqCst), resets);
    guest.wait_status(0);
    assert_eq!(guest.log.resets.load(Ordering::SeqCst), resets + 1);
}

#[test]
fn a_device_that_did_not_sleep_in_time_sleeps_when_asked_again() {
    let (guest, [mut ring, _]) = hung();
    fail_to_sleep(&guest);
    fail_to_sleep(&guest);
    guest.log.set_hanging(false);
    guest.transport.sleep(Instant::now() + Duration::from_secs(10)).unwrap();
    ring.add(1);
    guest.save().unwrap();
    assert_eq!(ring.take(), None);
    guest.wake().unwrap();
    assert_eq!(ring.wait(), 1);
}

#[test]
fn a_reset_of_a_device_that_did_not_sleep_in_time_does_not_wait() {
    let (guest, _) = hung();
    fail_to_sleep(&guest);
    let begun = Instant::now();
    guest.set(VIRTIO_MMIO_STATUS, 0);
    assert!(begun.elapsed() < RESET_DEADLINE);
    assert_eq!(guest.status(), BROKEN);
    guest.log.set_hanging(false);
    guest.wait_status(0);
    assert_eq!(guest.log.activations(), 1);
}

#[test]
fn a_device_whose_thread_has_ended_stays_broken() {
    let guest = Guest::new();
    guest.probe();
    guest.log.dies.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(10);
    assert!(matches!(guest.reset(deadline), Err(Error::Stop(StopError::Gone))));
    assert!(matches!(guest.reset(deadline), Err(Error::Stop(StopError::Gone))));
    assert_eq!(guest.status(), BROKEN);
}

#[test]
fn a_reset_by_the_monitor_is_completed_later_too() {
    let (guest, _) = hung();
    let reset = guest.reset(Instant::now() + Duration::from_millis(10));
    assert!(matches!(reset, Err(Error::Stop(StopError::Deadline))));
    guest.log.set_hanging(false);
    guest.wait_status(0);
}

#[test]
fn a_reset_of_a_queue_is_under_way_until_the_worker_comes_back() {
    let (guest, [mut first, _]) = hung();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    assert_eq!((guest.get(Guest::QUEUE_RESET), guest.get(VIRTIO_MMIO_QUEUE_READY)), (1, 0));
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    let begun = Instant::now();
    for (queue, register, value) in [(1, Guest::QUEUE_RESET, 1), (1, 0x44, 1), (0, Guest::QUEUE_RESET, 1)] {
        guest.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        guest.set(register, value);
    }
    assert!(begun.elapsed() < RESET_DEADLINE);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 1, "queue 0 was left alone");
    assert_eq!(guest.get(Guest::QUEUE_RESET), 0);

    guest.log.set_hanging(false);
    guest.wait_status(0xf);
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(guest.get(Guest::QUEUE_RESET), 0);
    let mut second = guest.set_up(1, 16);
    guest.echo(&mut first, 1);
    guest.echo(&mut second, 2);
}
