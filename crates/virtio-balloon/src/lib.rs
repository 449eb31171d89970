//! A virtio memory balloon.
