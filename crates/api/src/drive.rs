//! Block devices: `PUT /drives/{id}`, section `drives` of the config file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot_source::check_path;
use crate::error::FieldError;
use crate::id::check_id;
use crate::rate_limiter::RateLimiterConfig;

/// Queues that a drive can have.
const NUM_QUEUES: std::ops::RangeInclusive<u16> = 1..=16;
/// Entries that a drive's queue can have: a power of two in this range.
const QUEUE_SIZE: std::ops::RangeInclusive<u16> = 16..=1024;
/// Longest partition UUID in bytes, as the kernel's `root=PARTUUID=` takes it.
const PARTUUID_MAX_LEN: usize = 64;

/// A block device over a file or a block device of the host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Its name: letters, digits and `_`. The guest can read it as the disk's serial number (its first 20 bytes).
    pub drive_id: String,
    /// Whether the guest's root file system is on it. At most one drive is the root device, and it is the first that
    /// the guest sees.
    pub is_root_device: bool,
    /// The file or block device on the host.
    pub path_on_host: PathBuf,
    /// The partition of the root device that has the file system, where it is not the whole drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether the guest's flushes reach the disk.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest can only read.
    #[serde(default)]
    pub is_read_only: bool,
    /// Limits of the drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
    /// How requests reach the host's kernel.
    #[serde(default)]
    pub io_engine: IoEngine,
    /// Queues, 1 to 16; each has a thread. Firecracker has no such field.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub num_queues: u16,
    /// Entries of each queue: a power of two from 16 to 1,024. Firecracker has no such field.
    #[serde(default = "default_queue_size", skip_serializing_if = "is_default_queue_size")]
    pub queue_size: u16,
    /// Whether the guest can give back blocks that it does not need. Firecracker has no such field.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub discard: bool,
    /// Whether the host's page cache is bypassed (`O_DIRECT`). Firecracker has no such field.
    #[serde(default, skip_serializing_if = "is_no")]
    pub direct: bool,
    /// Bytes in a sector as the guest sees it: 512 or 4,096. Firecracker has no such field.
    #[serde(default = "default_sector_size", skip_serializing_if = "is_default_sector_size")]
    pub logical_block_size: u32,
}

/// Whether the guest's flushes reach the disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum CacheType {
    /// They do not: what the guest wrote can be lost with the host.
    #[default]
    Unsafe,
    /// They do: what the guest flushed is on the disk.
    Writeback,
}

/// How requests reach the host's kernel.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum IoEngine {
    /// One after the other.
    #[default]
    Sync,
    /// Many at a time, through io_uring.
    Async,
}

impl DriveConfig {
    /// A drive over `path_on_host`, the rest as by default.
    pub fn new(drive_id: impl Into<String>, path_on_host: impl Into<PathBuf>) -> Self {
        Self {
            drive_id: drive_id.into(),
            is_root_device: false,
            path_on_host: path_on_host.into(),
            partuuid: None,
            cache_type: CacheType::default(),
            is_read_only: false,
            rate_limiter: None,
            io_engine: IoEngine::default(),
            num_queues: one(),
            queue_size: default_queue_size(),
            discard: yes(),
            direct: false,
            logical_block_size: default_sector_size(),
        }
    }

    /// Checks every field; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        check_id("drive_id", &self.drive_id)?;
        check_path("path_on_host", &self.path_on_host)?;
        if let Some(partuuid) = &self.partuuid {
            let fits = (1..=PARTUUID_MAX_LEN).contains(&partuuid.len());
            if !fits || !partuuid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                let cause = format!("must be 1 to {PARTUUID_MAX_LEN} letters, digits or `-`");
                return Err(FieldError::new("partuuid", cause));
            }
        }
        if let Some(limiter) = &self.rate_limiter {
            limiter.validate().map_err(|error| error.within("rate_limiter"))?;
        }
        if !NUM_QUEUES.contains(&self.num_queues) {
            let cause = format!("must be between 1 and 16, got {}", self.num_queues);
            return Err(FieldError::new("num_queues", cause));
        }
        if !QUEUE_SIZE.contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            let cause = format!("must be a power of two between 16 and 1024, got {}", self.queue_size);
            return Err(FieldError::new("queue_size", cause));
        }
        if !matches!(self.logical_block_size, 512 | 4096) {
            let cause = format!("must be 512 or 4096, got {}", self.logical_block_size);
            return Err(FieldError::new("logical_block_size", cause));
        }
        Ok(())
    }
}

/// Queues, or pairs of them, that a device has by default.
pub(crate) fn one() -> u16 {
    1
}

pub(crate) fn is_one(number: &u16) -> bool {
    *number == 1
}

fn default_queue_size() -> u16 {
    256
}

fn is_default_queue_size(size: &u16) -> bool {
    *size == default_queue_size()
}

fn default_sector_size() -> u32 {
    512
}

fn is_default_sector_size(size: &u32) -> bool {
    *size == default_sector_size()
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_no(value: &bool) -> bool {
    !*value
}
