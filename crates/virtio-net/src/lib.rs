#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod backend;
mod control;
mod detour;
mod device;
mod error;
mod metrics;
mod worker;

pub use backend::{Backend, MAX_QUEUE_PAIRS};
pub use control::NetControl;
pub use detour::{DETOUR_HEAD_BYTES, Detour};
pub use device::Net;
pub use error::Error;
pub use metrics::NetMetrics;

/// Bytes of the header before each frame (VIRTIO 1.2, 5.1.6). A tap has the same one.
pub const HEADER_BYTES: usize = 12;

/// Bytes of the smallest frame: an Ethernet header and nothing else.
pub const MIN_FRAME_BYTES: usize = 14;

/// Bytes of the largest frame: an Ethernet header and 64 KiB, which the receiver cuts (VIRTIO 1.2, 5.1.6.3.1).
pub const MAX_FRAME_BYTES: usize = 14 + (1 << 16);
