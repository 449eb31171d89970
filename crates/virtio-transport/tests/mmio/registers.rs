//! Every register of virtio-mmio (VIRTIO 1.2, 4.2.2), one by one.

use crate::support::{Echo, Guest};
use kindling_virtio_device::COMMON_FEATURES;
use kindling_virtio_transport::mmio::{CONFIG, QUEUE_NOTIFY, WINDOW_SIZE};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

#[test]
fn the_first_four_registers_say_what_the_device_is() {
    let guest = Guest::new();
    let first = [0, 4, 8, 12].map(|offset| guest.get(offset).to_le_bytes());
    assert_eq!(first, [*b"virt", [2, 0, 0, 0], [63, 0, 0, 0], *b"KNDL"]);
}

#[test]
fn features_are_offered_in_two_halves_and_there_are_no_others() {
    let guest = Guest::new();
    assert_eq!(guest.offered(), Echo::FEATURES | COMMON_FEATURES | 1 << VIRTIO_F_RING_RESET);
    for selected in [2, u32::MAX] {
        guest.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, selected);
        assert_eq!(guest.get(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    }
}

#[test]
fn accesses_of_another_width_or_alignment_change_nothing_and_read_as_zero() {
    let guest = Guest::new();
    guest.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    let status = u64::from(VIRTIO_MMIO_STATUS);
    guest.write(status, &[3]);
    guest.write(status, &[3, 0]);
    guest.write(status, &[3, 0, 0, 0, 0, 0, 0, 0]);
    guest.write(status + 2, &[3, 0, 0, 0]);
    guest.write(status, &[]);
    assert_eq!(guest.count("refused_accesses"), 5);
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (2, 4), (status + 1, 2), (0xfe, 4), (0xff, 8), (0, 0)] {
        let mut data = vec![0xff; width];
        guest.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{width} bytes at {offset:#x}");
    }
    assert_eq!(guest.count("refused_accesses"), 13);
    assert_eq!(guest.status(), VIRTIO_CONFIG_S_ACKNOWLEDGE);
}

#[test]
fn registers_that_cannot_be_read_read_as_zero_and_those_that_cannot_be_written_stay() {
    let guest = Guest::new();
    guest.negotiate();
    let before = guest.count("refused_accesses");
    let write_only = [
        VIRTIO_MMIO_DEVICE_FEATURES_SEL,
        VIRTIO_MMIO_DRIVER_FEATURES,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL,
        VIRTIO_MMIO_QUEUE_SEL,
        VIRTIO_MMIO_QUEUE_NUM,
        VIRTIO_MMIO_QUEUE_NOTIFY,
        VIRTIO_MMIO_INTERRUPT_ACK,
        VIRTIO_MMIO_QUEUE_DESC_LOW,
        VIRTIO_MMIO_QUEUE_DESC_HIGH,
        VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
        VIRTIO_MMIO_QUEUE_USED_LOW,
        VIRTIO_MMIO_QUEUE_USED_HIGH,
        VIRTIO_MMIO_SHM_SEL,
    ];
    for offset in write_only {
        assert_eq!(guest.get(offset), 0, "{offset:#x}");
    }
    let read_only = [
        VIRTIO_MMIO_MAGIC_VALUE,
        VIRTIO_MMIO_VERSION,
        VIRTIO_MMIO_DEVICE_ID,
        VIRTIO_MMIO_VENDOR_ID,
        VIRTIO_MMIO_DEVICE_FEATURES,
        VIRTIO_MMIO_QUEUE_NUM_MAX,
        VIRTIO_MMIO_INTERRUPT_STATUS,
        VIRTIO_MMIO_CONFIG_GENERATION,
    ];
    for offset in read_only {
        let value = guest.get(offset);
        guest.set(offset, !value);
        assert_eq!(guest.get(offset), value, "{offset:#x}");
    }
    let refused = write_only.len() + read_only.len();
    assert_eq!(guest.count("refused_accesses") - before, refused as u64);
}

#[test]
fn there_are_no_shared_memory_regions() {
    let guest = Guest::new();
    for region in [0, 1, 0xff] {
        guest.set(VIRTIO_MMIO_SHM_SEL, region);
        for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
            assert_eq!(guest.get(offset), u32::MAX);
        }
    }
    assert_eq!(guest.count("refused_accesses"), 0);
}

#[test]
fn the_configuration_space_is_read_with_any_width_and_is_zero_beyond_its_end() {
    let guest = Guest::new();
    let read = |offset: u64, width: usize| {
        let mut data = vec![0xff; width];
        guest.read(CONFIG + offset, &mut data);
        data
    };
    assert_eq!(read(0, 1), [1]);
    assert_eq!(read(1, 2), [2, 3]);
    assert_eq!(read(3, 4), [4, 5, 6, 7]);
    assert_eq!(read(5, 4), [6, 7, 0, 0]);
    assert_eq!(read(0, 8), [1, 2, 3, 4, 5, 6, 7, 0]);
    assert_eq!(read(WINDOW_SIZE - CONFIG - 1, 1), [0]);
    assert_eq!(read(u64::MAX - CONFIG, 8), [0; 8]);
    assert_eq!(guest.count("refused_accesses"), 0);
}

#[test]
fn the_device_hears_of_writes_of_a_driver_inside_its_configuration_space() {
    let guest = Guest::new();
    guest.write(CONFIG, &[9]);
    guest.negotiate();
    let before = guest.count("refused_accesses");
    guest.write(CONFIG + 3, &[7, 8]);
    guest.write(CONFIG + 6, &[1, 1]);
    guest.write(u64::MAX, &[1, 1]);
    assert_eq!(guest.count("refused_accesses") - before, 2);
    guest.write(CONFIG + 6, &[5]);
    assert_eq!(*guest.log.config_writes.lock().unwrap(), [(3, vec![7, 8]), (6, vec![5])]);
}

#[test]
fn the_generation_rises_when_the_configuration_changes() {
    let guest = Guest::new();
    let before = guest.get(VIRTIO_MMIO_CONFIG_GENERATION);
    guest.config.update(|bytes| bytes[2] = 0xee);
    assert_ne!(guest.get(VIRTIO_MMIO_CONFIG_GENERATION), before);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0, "there is no driver to be told");
    guest.probe();
    guest.config.update(|bytes| bytes[2] = 0xef);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(guest.line.read().unwrap(), 1);
    guest.set(VIRTIO_MMIO_STATUS, 0);
    guest.config.update(|bytes| bytes[2] = 0);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert!(guest.line.read().is_err());
}

#[test]
fn a_change_that_a_driver_may_have_missed_while_it_started_is_announced_when_it_is_ready() {
    let guest = Guest::new();
    guest.negotiate();
    guest.set_up(0, 16);
    guest.config.update(|bytes| bytes[2] = 0xee);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0, "it is not ready");
    assert!(guest.line.read().is_err());
    guest.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(guest.line.read().unwrap(), 1);
    guest.probe();
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0, "the next driver has seen it");
    assert!(guest.line.read().is_err());
}

#[test]
fn queues_that_there_are_not_have_no_size_and_take_nothing() {
    let guest = Guest::new();
    guest.negotiate();
    let max = [0, 1, 2, 0x1_0000, u32::MAX].map(|queue| {
        guest.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        guest.get(VIRTIO_MMIO_QUEUE_NUM_MAX)
    });
    assert_eq!(max, [16, 64, 0, 0, 0]);
    let before = guest.count("refused_accesses");
    for offset in [VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_READY, 0x0c0] {
        guest.set(offset, 1);
    }
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(guest.get(Guest::QUEUE_RESET), 0);
    assert_eq!(guest.count("refused_accesses") - before, 4);
}

#[test]
fn a_size_that_the_queue_cannot_have_keeps_it_from_being_enabled() {
    let guest = Guest::new();
    guest.negotiate();
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    for size in [0, 3, 17, 32, 0x1_0008, u32::MAX] {
        guest.set(VIRTIO_MMIO_QUEUE_NUM, size);
        guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0, "{size}");
    }
    guest.set(VIRTIO_MMIO_QUEUE_NUM, 8);
    for value in [2, 3, u32::MAX] {
        guest.set(VIRTIO_MMIO_QUEUE_READY, value);
        assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0, "{value}");
    }
    guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 1);
    guest.set(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn queues_are_set_up_between_features_ok_and_driver_ok_and_not_while_enabled() {
    let guest = Guest::new();
    guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0, "before FEATURES_OK");
    guest.negotiate();
    let mut ring = guest.set_up(0, 8);
    // Each of these would make the queue useless.
    guest.set(VIRTIO_MMIO_QUEUE_NUM, 2);
    guest.set(VIRTIO_MMIO_QUEUE_DESC_LOW, 0);
    guest.set(VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 1);
    guest.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    guest.echo(&mut ring, 5);
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0, "after DRIVER_OK");
}

#[test]
fn a_notification_kicks_the_queue_it_names_and_no_other() {
    let guest = Guest::new();
    for queue in [1, 2, 0x1_0000, u32::MAX] {
        guest.write(QUEUE_NOTIFY, &u32::to_le_bytes(queue));
    }
    assert!(guest.kicks()[0].read().is_err());
    assert_eq!(guest.kicks()[1].read().unwrap(), 1);
    assert_eq!((guest.count("exit_notifications"), guest.count("refused_accesses")), (1, 3));
}

#[test]
fn an_acknowledged_interrupt_is_gone_and_the_others_stay() {
    let guest = Guest::new();
    let [mut ring, _] = guest.probe();
    guest.echo(&mut ring, 1);
    guest.config.update(|bytes| bytes[0] = 0);
    while guest.get(VIRTIO_MMIO_INTERRUPT_STATUS) != 3 {
        std::thread::yield_now();
    }
    guest.set(VIRTIO_MMIO_INTERRUPT_ACK, !VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    guest.set(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}
