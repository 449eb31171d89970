//! Bodies of requests that change what is there, or have something done: those that are no section of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot_source::check_path;
use crate::error::FieldError;
use crate::machine_config::{CpuTemplate, HugePages, MachineConfig};
use crate::rate_limiter::RateLimiterConfig;

/// `PATCH /machine-config`: what is absent stays as it is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfigPatch {
    /// See [`MachineConfig::vcpu_count`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u64>,
    /// See [`MachineConfig::mem_size_mib`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// See [`MachineConfig::smt`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// See [`MachineConfig::track_dirty_pages`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// See [`MachineConfig::huge_pages`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// See [`MachineConfig::cpu_template`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
}

impl MachineConfigPatch {
    /// `config` with the changes.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn apply(&self, config: &MachineConfig) -> Result<MachineConfig, FieldError> {
        let sizes = MachineConfig::new(
            self.vcpu_count.unwrap_or(config.vcpu_count.into()),
            self.mem_size_mib.unwrap_or(config.mem_size_mib),
        )?;
        let changed = MachineConfig {
            smt: self.smt.unwrap_or(config.smt),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(config.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(config.huge_pages),
            cpu_template: self.cpu_template.or(config.cpu_template),
            ..sizes
        };
        changed.validate()?;
        Ok(changed)
    }
}

/// `PATCH /drives/{drive_id}`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DrivePatch {
    /// The drive.
    pub drive_id: String,
    /// The file or block device to use from now on. The present one again: its size is looked at anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Buckets to exchange; one of size or refill time 0 goes away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

impl DrivePatch {
    /// Checks every field; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        if let Some(path) = &self.path_on_host {
            check_path("path_on_host", path)?;
        }
        validate_limiter("rate_limiter", self.rate_limiter.as_ref())
    }
}

/// `PATCH /network-interfaces/{iface_id}`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfacePatch {
    /// The interface.
    pub iface_id: String,
    /// Buckets of what the guest receives to exchange; one of size or refill time 0 goes away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// The same of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

impl NetworkInterfacePatch {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        validate_limiter("rx_rate_limiter", self.rx_rate_limiter.as_ref())?;
        validate_limiter("tx_rate_limiter", self.tx_rate_limiter.as_ref())
    }
}

fn validate_limiter(field: &str, limiter: Option<&RateLimiterConfig>) -> Result<(), FieldError> {
    limiter.map_or(Ok(()), |limiter| limiter.validate().map_err(|error| error.within(field)))
}

/// `PATCH /balloon`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonPatch {
    /// How much the guest shall give up, in MiB.
    pub amount_mib: u64,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsPatch {
    /// How often the guest is asked, in seconds. Statistics cannot be turned on or off.
    pub stats_polling_interval_s: u16,
}

/// `PATCH /balloon/hinting/start`; the body may be absent.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HintingStart {
    /// Whether the guest gets its pages back as soon as it has told all.
    pub acknowledge_on_stop: bool,
}

impl Default for HintingStart {
    fn default() -> Self {
        HintingStart { acknowledge_on_stop: true }
    }
}

/// `PUT /actions`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRequest {
    /// What is to be done.
    pub action_type: ActionType,
}

/// What `PUT /actions` can have done.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum ActionType {
    /// Start the guest.
    InstanceStart,
    /// Write the metrics now.
    FlushMetrics,
    /// Press Ctrl+Alt+Del on the guest's keyboard.
    SendCtrlAltDel,
    /// Press the guest's power button. Firecracker has no such action.
    PowerButton,
}

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmPatch {
    /// What the machine shall be.
    pub state: VmState,
}

/// What `PATCH /vm` can make of a machine.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum VmState {
    /// At rest.
    Paused,
    /// Running again.
    Resumed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_of_the_machine_changes_what_it_names_and_is_checked_as_a_whole() {
        let machine = MachineConfig { smt: true, vcpu_count: 2, ..MachineConfig::default() };
        let patch = MachineConfigPatch { mem_size_mib: Some(256), ..Default::default() };
        assert_eq!(patch.apply(&machine), Ok(MachineConfig { mem_size_mib: 256, ..machine.clone() }));
        let patch = MachineConfigPatch { vcpu_count: Some(3), ..Default::default() };
        assert_eq!(patch.apply(&machine).unwrap_err().field, "smt");
        let patch = MachineConfigPatch { vcpu_count: Some(300), ..Default::default() };
        assert_eq!(
            patch.apply(&machine).unwrap_err().to_string(),
            "vcpu_count: must be between 1 and 254, got 300"
        );
    }
}
