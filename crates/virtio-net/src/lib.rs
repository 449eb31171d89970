//! A virtio network device over a tap.
