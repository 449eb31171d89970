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

/// QueueReset and QueueReady of a queue.
fn registers_of(guest: &Guest, queue: u32) -> (u32, u32) {
    guest.set(VIRTIO_MMIO_QUEUE_SEL, queue);
    (guest.get(Guest::QUEUE_RESET), guest.get(VIRTIO_MMIO_QUEUE_READY))
}

#[test]
fn resets_of_queues_are_under_way_until_the_workers_come_back() {
    let (guest, [_, mut old]) = hung();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    assert_eq!(registers_of(&guest, 1), (1, 1));
    assert_eq!(registers_of(&guest, 0), (0, 1), "this one was left alone");
    assert_eq!(guest.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    let begun = Instant::now();
    for (queue, register, value) in [(1, Guest::QUEUE_RESET, 1), (1, 0x44, 1), (0, Guest::QUEUE_RESET, 1)] {
        guest.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        guest.set(register, value);
        assert_eq!(registers_of(&guest, queue), (1, 1));
    }
    assert!(begun.elapsed() < RESET_DEADLINE);
    assert_eq!(guest.count("refused_accesses"), 1, "it cannot be enabled yet");

    guest.log.set_hanging(false);
    guest.wait_status(0xf);
    assert_eq!([0, 1].map(|queue| registers_of(&guest, queue)), [(0, 0); 2]);
    old.add(9);
    guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    let mut first = guest.set_up(0, 16);
    guest.echo(&mut first, 1);
    assert_eq!(old.take(), None);
    let mut second = guest.set_up(1, 16);
    guest.echo(&mut second, 2);
    guest.echo(&mut first, 3);
}

#[test]
fn a_queue_that_is_disabled_is_ready_until_the_worker_comes_back() {
    let (guest, [mut first, mut second]) = hung();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    for _ in 0..2 {
        guest.set(VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 1);
    }
    guest.log.set_hanging(false);
    wait_for(|| (guest.get(VIRTIO_MMIO_QUEUE_READY) == 0).then_some(()));
    second.add(1);
    guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    guest.echo(&mut first, 2);
    assert_eq!(second.take(), None);
}

#[test]
fn a_queue_of_a_device_that_did_not_sleep_in_time_is_reset_too() {
    let (guest, [mut first, _]) = hung();
    fail_to_sleep(&guest);
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    assert_eq!(registers_of(&guest, 1), (1, 1));
    guest.log.set_hanging(false);
    wait_for(|| (registers_of(&guest, 1) == (0, 0)).then_some(()));
    let mut second = guest.set_up(1, 16);
    guest.echo(&mut first, 1);
    guest.echo(&mut second, 2);
    assert_eq!(guest.count("refused_accesses"), 0);
}

#[test]
fn a_queue_that_is_enabled_while_a_worker_is_late_is_served_when_it_has_come() {
    let guest = Guest::new();
    let [mut first, _] = guest.probe();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    guest.log.set_hanging(true);
    fail_to_sleep(&guest);
    let mut second = guest.set_up(1, 16);
    second.add(1);
    guest.log.set_hanging(false);
    guest.wait_status(0xf);
    assert_eq!(second.wait(), 1);
    guest.echo(&mut first, 2);
}

#[test]
fn workers_for_other_queues_are_made_by_an_access_and_never_by_the_monitor() {
    let (guest, [mut first, _]) = hung();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    guest.log.set_hanging(false);
    guest.transport.sleep(Instant::now() + Duration::from_secs(10)).unwrap();
    guest.wake().unwrap();
    assert_eq!(guest.log.activations(), 1);
    assert_eq!(registers_of(&guest, 1), (0, 0));
    assert_eq!(guest.log.activations(), 2);
    guest.echo(&mut first, 1);
    let mut second = guest.set_up(1, 16);
    guest.echo(&mut second, 2);
}

#[test]
fn a_reset_by_the_monitor_forgets_workers_that_were_still_to_be_made() {
    let (guest, _) = hung();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(Guest::QUEUE_RESET, 1);
    guest.log.set_hanging(false);
    let soon = || Instant::now() + Duration::from_secs(10);
    guest.transport.sleep(soon()).unwrap();
    guest.reset(soon()).unwrap();
    guest.wake().unwrap();
    assert_eq!((guest.status(), guest.log.activations()), (0, 1));
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
}
