//! Save and restore.

use std::time::{Duration, Instant};

use kindling_virtio_transport::{Error, QueueRegisters, Selectors, Transport, TransportState};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::support::{Echo, Guest, Ring};

fn saved(guest: &Guest) -> TransportState {
    guest.transport.sleep(Instant::now() + Duration::from_secs(10)).unwrap();
    guest.save().unwrap()
}

/// A new device for the same guest memory.
fn another(guest: &Guest) -> Guest {
    Guest::with(Echo::new(), guest.memory.clone(), EventFd::new(EFD_NONBLOCK).unwrap())
}

/// A guest with a device that worked, its rings, and the device's state.
fn working() -> (Guest, [Ring; 2], TransportState) {
    let guest = Guest::new();
    let mut rings = guest.probe();
    for message in 0..37 {
        guest.echo(&mut rings[0], message);
    }
    guest.echo(&mut rings[1], 1);
    let state = saved(&guest);
    (guest, rings, state)
}

#[test]
fn a_restored_device_goes_on_exactly_where_it_was() {
    let (old, [mut first, mut second], state) = working();
    let at = [0, 1].map(|index: usize| state.queues[index].state);
    assert_eq!(at.map(|queue| (queue.next_available, queue.next_used)), [(37, 37), (1, 1)]);
    first.add(40);
    let new = another(&old);
    new.restore(&state).unwrap();
    assert_eq!(new.save().unwrap(), state);
    assert_eq!(first.take(), None, "it sleeps until it is woken");
    new.wake().unwrap();
    assert_eq!(first.wait(), 40);
    for message in 50..100 {
        new.echo(&mut first, message);
        new.echo(&mut second, message);
    }
    assert_eq!(new.status(), 0xf);
    let [mut ring, _] = new.probe();
    new.echo(&mut ring, 1);
}

#[test]
fn a_restored_device_interrupts_again_for_what_was_not_acknowledged() {
    let (old, _, state) = working();
    assert_eq!(state.interrupt_status, VIRTIO_MMIO_INT_VRING);
    let new = another(&old);
    new.restore(&state).unwrap();
    assert!(new.line.read().is_err(), "it sleeps");
    new.wake().unwrap();
    assert_eq!(new.line.read().unwrap(), 1);
}

#[test]
fn a_driver_that_goes_on_to_start_elsewhere_is_told_to_look_at_the_configuration_again() {
    let old = Guest::new();
    old.negotiate();
    old.config.update(|bytes| bytes[0] = 99);
    let state = saved(&old);
    let new = another(&old);
    new.restore(&state).unwrap();
    new.wake().unwrap();
    new.set_up(0, 16);
    assert_eq!(new.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    new.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(new.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
}

#[test]
fn every_stage_of_a_driver_can_be_saved_and_restored() {
    let guest = Guest::new();
    let stages: [&dyn Fn(&Guest); 8] = [
        &|_| (),
        &|guest| guest.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE),
        &|guest| guest.add_status(VIRTIO_CONFIG_S_DRIVER),
        &|guest| guest.accept(u64::MAX),
        &|guest| {
            guest.accept(guest.offered());
            guest.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        },
        &|guest| {
            guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
            guest.set(VIRTIO_MMIO_QUEUE_NUM, 7);
        },
        &|guest| drop(guest.set_up(0, 16)),
        &|guest| guest.set(VIRTIO_MMIO_STATUS, 0xf | VIRTIO_CONFIG_S_FAILED),
    ];
    let mut guest = guest;
    for (number, stage) in stages.into_iter().enumerate() {
        stage(&guest);
        let state = saved(&guest);
        guest = another(&guest);
        guest.restore(&state).unwrap();
        assert_eq!(guest.save().unwrap(), state, "stage {number}");
    }
}

#[test]
fn a_driver_half_way_can_go_on_with_a_restored_device() {
    let old = Guest::new();
    old.negotiate();
    let mut first = old.set_up(0, 16);
    let new = another(&old);
    new.restore(&saved(&old)).unwrap();
    new.wake().unwrap();
    let mut second = new.set_up(1, 16);
    new.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    new.echo(&mut first, 1);
    new.echo(&mut second, 2);
}

#[test]
fn a_device_that_needs_a_reset_still_does_when_it_is_restored() {
    let old = Guest::new();
    let [ring, _] = old.probe();
    ring.set_available(1000);
    old.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    old.wait_status(0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    let new = another(&old);
    new.restore(&saved(&old)).unwrap();
    new.wake().unwrap();
    assert_eq!(new.status(), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    let [mut ring, _] = new.probe();
    new.echo(&mut ring, 1);
}

#[test]
fn a_reset_queue_can_be_set_up_after_a_restore() {
    for index in [0, 1] {
        let old = Guest::new();
        old.probe();
        old.set(VIRTIO_MMIO_QUEUE_SEL, index);
        old.set(Guest::QUEUE_RESET, 1);
        let new = another(&old);
        new.restore(&saved(&old)).unwrap();
        new.wake().unwrap();
        let mut ring = new.set_up(index, 8);
        new.echo(&mut ring, 1);
        another(&new).restore(&saved(&new)).unwrap();
    }
}

#[test]
fn the_driver_sees_the_configuration_that_was_saved_under_a_generation_that_goes_on() {
    let old = Guest::new();
    old.probe();
    for value in 0..5 {
        old.config.update(|bytes| bytes[0] = 100 + value);
    }
    let state = saved(&old);
    let new = another(&old);
    new.restore(&state).unwrap();
    let mut first = [0];
    new.read(0x100, &mut first);
    assert_eq!(first, [104]);
    assert_eq!(new.get(VIRTIO_MMIO_CONFIG_GENERATION), old.get(VIRTIO_MMIO_CONFIG_GENERATION));
    new.set(VIRTIO_MMIO_INTERRUPT_ACK, 3);
    new.config.update(|bytes| bytes[0] = 0);
    assert_eq!(new.get(VIRTIO_MMIO_CONFIG_GENERATION), state.config_generation + 1);
    assert_eq!(new.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
}

#[test]
fn a_driver_is_told_when_the_device_has_another_configuration_than_was_saved() {
    let (old, _, state) = working();
    let new = another(&old);
    new.restore(&TransportState { device: Echo::CHANGES_CONFIG.to_vec(), ..state.clone() }).unwrap();
    assert_eq!(new.get(VIRTIO_MMIO_CONFIG_GENERATION), state.config_generation + 1);
    assert_eq!(new.get(VIRTIO_MMIO_INTERRUPT_STATUS), state.interrupt_status | VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(new.save().unwrap().config[0], 99);
}

#[test]
fn only_a_sleeping_device_is_saved_and_only_an_unused_one_restored() {
    let (guest, _, state) = working();
    assert!(matches!(guest.restore(&state), Err(Error::InUse)));
    guest.wake().unwrap();
    assert!(matches!(guest.save(), Err(Error::Awake)));
    let new = another(&guest);
    new.restore(&state).unwrap();
    assert!(matches!(new.restore(&state), Err(Error::InUse)));
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_its_field_and_changes_nothing() {
    type Spoil = fn(&mut TransportState);
    let spoils: [(&str, Spoil); 27] = [
        ("device type", |state| state.device_type = 2),
        ("status", |state| state.status = 0x10),
        ("status", |state| state.status = 2),
        ("status", |state| state.status = 0x7),
        ("status", |state| state.status = 0x4b),
        ("status", |state| state.status |= 0x100),
        ("features", |state| state.driver_features |= 1),
        ("features", |state| state.driver_features &= !(1 << VIRTIO_F_VERSION_1)),
        ("features", |state| state.status = 1),
        ("interrupt status", |state| state.interrupt_status = 4),
        ("configuration", |state| state.config.push(0)),
        ("configuration", |state| state.config.truncate(6)),
        ("queues", |state| state.status = 3),
        ("queues", |state| state.queues.clear()),
        ("queues", |state| state.queues.push(QueueRegisters::default())),
        ("queues", |state| state.queues.swap(0, 1)),
        ("queues", |state| state.queues[1].state.index = 2),
        ("queues", |state| state.queues[0].state.config.size = 0),
        ("queues", |state| state.queues[0].state.config.size = 12),
        ("queues", |state| state.queues[0].state.config.size = 32),
        ("queues", |state| state.queues[0].reset = true),
        ("queues", |state| state.queues[0].ready = false),
        ("echo", |state| state.device.clear()),
        ("activate", |state| state.queues[1].state.config.descriptor_table = 1 << 40),
        ("activate", |state| state.queues[1].state.config.used_ring += 1),
        ("activate", |state| state.queues[1].state.config.available_ring = u64::MAX - 1),
        ("activate", |state| {
            state.queues[0] = QueueRegisters { ready: false, ..state.queues[0] };
            state.queues[0].state.next_available = 0;
            state.queues[0].state.next_used = 0;
        }),
    ];
    let (old, [mut ring, _], state) = working();
    let new = another(&old);
    let untouched = saved(&new);
    for (number, (field, spoil)) in spoils.into_iter().enumerate() {
        let mut spoiled = state.clone();
        spoiled.config[0] ^= 1;
        spoil(&mut spoiled);
        match new.restore(&spoiled) {
            Err(Error::Restore(error)) => assert_eq!(error.field, field, "{number}: {error}"),
            Err(Error::Activate(_)) => assert_eq!(field, "activate", "{number}"),
            other => panic!("{number}: {other:?}"),
        }
        assert_eq!(new.save().unwrap(), untouched, "{number}");
    }
    new.restore(&state).unwrap();
    new.wake().unwrap();
    new.echo(&mut ring, 1);
}

#[test]
fn what_a_driver_without_features_cannot_have_done_is_refused() {
    let guest = Guest::new();
    let fresh = saved(&guest);
    let mut positions = TransportState { status: 3, ..fresh.clone() };
    positions.queues[0].state.next_used = 1;
    let mut reset = fresh.clone();
    reset.status = 0xb;
    reset.driver_features = 1 << VIRTIO_F_VERSION_1;
    reset.queues[0].reset = true;
    let features = TransportState { driver_features: 1 << VIRTIO_F_VERSION_1, ..fresh.clone() };
    for (state, field) in [(positions, "queues"), (reset, "queues"), (features, "features")] {
        let refused = guest.restore(&state);
        assert!(matches!(&refused, Err(Error::Restore(error)) if error.field == field), "{refused:?}");
    }
    let selectors = Selectors { device_features: 9, driver_features: u32::MAX, queue: u32::MAX };
    guest.restore(&TransportState { selectors, ..fresh }).unwrap();
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
}
