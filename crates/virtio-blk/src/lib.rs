#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod config;
mod control;
mod device;
mod disk;
mod error;
mod file_disk;
mod metrics;
mod request;
mod worker;

pub use config::{BlkConfig, CacheMode, IoEngine};
pub use control::BlkControl;
pub use device::Blk;
pub use disk::{Alignment, Clear, Disk, DiskInfo, Segments, Topology};
pub use error::Error;
pub use file_disk::FileDisk;
pub use metrics::BlkMetrics;

/// Bytes of a sector, in which the guest counts whatever its disk's block size is (VIRTIO 1.2, 5.2.2).
pub(crate) const SECTOR: u64 = 512;
