//! A virtio block device over raw files and block devices.
