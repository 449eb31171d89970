//! The registers (VIRTIO 1.2, 4.2.2) that are behind the transport's lock.

use kindling_virtio_device::QueueConfig;
use virtio_bindings::virtio_mmio::*;

use super::{MAGIC, QUEUE_RESET, VENDOR, VERSION};
use crate::common::Control;

/// The register at `offset`, or nothing if there is none to be read.
pub(super) fn read(control: &Control, offset: u32) -> Option<u32> {
    Some(match offset {
        VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
        VIRTIO_MMIO_VERSION => VERSION,
        VIRTIO_MMIO_DEVICE_ID => control.device().device_type(),
        VIRTIO_MMIO_VENDOR_ID => VENDOR,
        VIRTIO_MMIO_DEVICE_FEATURES => control.selected_features(),
        VIRTIO_MMIO_QUEUE_NUM_MAX => control.queue_size_max().into(),
        VIRTIO_MMIO_QUEUE_READY => control.queue().is_some_and(|queue| queue.ready).into(),
        VIRTIO_MMIO_STATUS => control.status(),
        // A region of this length is one that there is not.
        VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
        QUEUE_RESET => control.is_queue_resetting().into(),
        VIRTIO_MMIO_CONFIG_GENERATION => control.config_generation(),
        _ => return None,
    })
}

/// Writes the register at `offset`. Returns whether there is one and it took the value.
pub(super) fn write(control: &mut Control, offset: u32, value: u32) -> bool {
    match offset {
        VIRTIO_MMIO_DEVICE_FEATURES_SEL => control.selectors.device_features = value,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL => control.selectors.driver_features = value,
        VIRTIO_MMIO_QUEUE_SEL => control.selectors.queue = value,
        // Whichever is selected, there is none.
        VIRTIO_MMIO_SHM_SEL => (),
        VIRTIO_MMIO_DRIVER_FEATURES => return control.accept_features(value),
        VIRTIO_MMIO_STATUS => return control.write_status(value),
        VIRTIO_MMIO_QUEUE_NUM => return control.set_queue_size(value),
        VIRTIO_MMIO_QUEUE_READY => return value <= 1 && control.set_queue_ready(value == 1),
        QUEUE_RESET => return value == 1 && control.reset_queue(),
        _ => return write_address(control, offset, value),
    }
    true
}

/// Writes one half of the address of a part of the selected queue.
fn write_address(control: &mut Control, offset: u32, value: u32) -> bool {
    let part: fn(&mut QueueConfig) -> &mut u64 = match offset & !HIGH {
        VIRTIO_MMIO_QUEUE_DESC_LOW => |queue| &mut queue.descriptor_table,
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => |queue| &mut queue.available_ring,
        VIRTIO_MMIO_QUEUE_USED_LOW => |queue| &mut queue.used_ring,
        _ => return false,
    };
    let shift = if offset & HIGH == 0 { 0 } else { 32 };
    control.configure_queue(|queue| {
        let address = part(queue);
        *address = *address & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
    })
}

/// What tells the register of an address's upper half from that of the lower.
const HIGH: u32 = 4;
