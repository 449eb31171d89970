//! Devices of which a machine has at most one: `PUT /vsock`, `PUT /entropy` and `PUT /balloon`, and the sections of those
//! names in the config file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot_source::check_path;
use crate::error::FieldError;
use crate::rate_limiter::RateLimiterConfig;

/// Guest CIDs (VIRTIO 1.2, 5.10.4): 0 to 2 mean the hypervisor, the machine itself and the host.
const GUEST_CID: std::ops::RangeInclusive<u64> = 3..=0xffff_fffe;
/// Longest path of a Unix socket in bytes (`sun_path` less the NUL).
const UNIX_PATH_MAX_LEN: usize = 107;

/// Sockets between guest and host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address: 3 to 4,294,967,294.
    pub guest_cid: u64,
    /// The Unix socket on the host that leads to the guest. Connections from the guest to port N lead to a socket at this
    /// path with `_N` behind it, as far as it is not longer than such a path can be, 107 bytes.
    pub uds_path: PathBuf,
    /// Firecracker's clients may send it; it has no meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

impl VsockConfig {
    /// Checks every field; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        if !GUEST_CID.contains(&self.guest_cid) {
            let cause = format!("must be between 3 and 4294967294, got {}", self.guest_cid);
            return Err(FieldError::new("guest_cid", cause));
        }
        check_path("uds_path", &self.uds_path)?;
        let len = self.uds_path.as_os_str().len();
        if len > UNIX_PATH_MAX_LEN {
            let cause = format!("must be at most {UNIX_PATH_MAX_LEN} bytes, got {len}");
            return Err(FieldError::new("uds_path", cause));
        }
        Ok(())
    }
}

/// A source of random bytes for the guest.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits of what the guest reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

impl EntropyConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        match &self.rate_limiter {
            Some(limiter) => limiter.validate().map_err(|error| error.within("rate_limiter")),
            None => Ok(()),
        }
    }
}

/// A device that takes memory from the guest and gives it back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// How much the guest shall give up, in MiB.
    pub amount_mib: u64,
    /// Whether the guest may take memory back before it kills processes for lack of it.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; 0 for never.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest can say which of its memory is free, when asked.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest says by itself which of its memory is free, for the host to use.
    #[serde(default)]
    pub free_page_reporting: bool,
}

impl BalloonConfig {
    /// Checks every field against a guest with `mem_size_mib` MiB.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self, mem_size_mib: u64) -> Result<(), FieldError> {
        if self.amount_mib > mem_size_mib {
            let cause =
                format!("must be at most the guest's memory of {mem_size_mib} MiB, got {}", self.amount_mib);
            return Err(FieldError::new("amount_mib", cause));
        }
        Ok(())
    }
}
