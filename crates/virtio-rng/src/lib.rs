//! A virtio entropy device.
