//! Processors and memory: `PUT /machine-config`, section `machine-config` of the config file.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::FieldError;

/// Number of vCPUs a guest can have. The last is the largest for which every local APIC id fits in the 8 bits of an xAPIC
/// (255 is the broadcast id).
pub const VCPU_COUNT: RangeInclusive<u8> = 1..=254;

/// Guest memory in MiB. The last is all that the 52 bits of an x86-64 physical address can reach, so that the size in
/// bytes fits in a `u64` with room to spare; whether the host can give that much shows when the memory is mapped.
pub const MEM_SIZE_MIB: RangeInclusive<u64> = 1..=1 << 32;

/// How many processors and how much memory the guest has. By default 1 vCPU and 128 MiB.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, in [`VCPU_COUNT`].
    #[serde(deserialize_with = "vcpu_count")]
    pub vcpu_count: u8,
    /// Guest memory in MiB, in [`MEM_SIZE_MIB`].
    #[serde(deserialize_with = "mem_size_mib")]
    pub mem_size_mib: u64,
    /// Whether the guest sees two vCPUs as the hardware threads of one core. Needs one vCPU or an even number of them.
    #[serde(default)]
    pub smt: bool,
    /// Whether writes to guest memory are recorded. Not supported yet; clients that know the field send `false`.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Pages behind guest memory.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// A ready-made CPU model. Not supported yet; clients that know the field send `"None"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
}

/// Pages behind guest memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum HugePages {
    /// Ordinary 4 KiB pages.
    #[default]
    None,
    /// Ordinary memory that the host kernel is asked to back with huge pages where it can.
    Transparent,
    /// 2 MiB pages from the host's hugetlbfs pool. The memory size must be a multiple of 2 MiB.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// A ready-made CPU model.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String")]
pub enum CpuTemplate {
    /// The host's CPU as KVM offers it.
    None,
}

impl TryFrom<String> for CpuTemplate {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "None" => Ok(CpuTemplate::None),
            _ => Err(format!("CPU templates are not supported yet, must be \"None\", got {name:?}")),
        }
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            cpu_template: None,
        }
    }
}

impl MachineConfig {
    /// A machine of that size, the rest as by default.
    ///
    /// # Errors
    ///
    /// If a number is outside [`VCPU_COUNT`] or [`MEM_SIZE_MIB`].
    pub fn new(vcpu_count: u64, mem_size_mib: u64) -> Result<Self, FieldError> {
        Ok(MachineConfig {
            vcpu_count: VCPU_RANGE.check(vcpu_count).map_err(|cause| FieldError::new("vcpu_count", cause))?,
            mem_size_mib: MEM_RANGE
                .check(mem_size_mib)
                .map_err(|cause| FieldError::new("mem_size_mib", cause))?,
            ..MachineConfig::default()
        })
    }

    /// Checks every field, and those that depend on one another.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        MachineConfig::new(self.vcpu_count.into(), self.mem_size_mib)?;
        if self.smt && self.vcpu_count > 1 && !self.vcpu_count.is_multiple_of(2) {
            let cause = format!("needs one vCPU or an even number of them, got {}", self.vcpu_count);
            return Err(FieldError::new("smt", cause));
        }
        if self.track_dirty_pages {
            let cause = "dirty page tracking is not supported yet, must be false";
            return Err(FieldError::new("track_dirty_pages", cause));
        }
        if self.huge_pages == HugePages::Hugetlbfs2M && !self.mem_size_mib.is_multiple_of(2) {
            let cause = format!("must be even with huge_pages 2M, got {}", self.mem_size_mib);
            return Err(FieldError::new("mem_size_mib", cause));
        }
        Ok(())
    }
}

const VCPU_RANGE: Bounded<u8> = Bounded { range: VCPU_COUNT };
const MEM_RANGE: Bounded<u64> = Bounded { range: MEM_SIZE_MIB };

fn vcpu_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    deserializer.deserialize_u64(VCPU_RANGE)
}

fn mem_size_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_u64(MEM_RANGE)
}

/// A whole number in a range, with one message for every way in: a config file, a request, an option.
struct Bounded<T> {
    range: RangeInclusive<T>,
}

impl<T: Copy + PartialOrd + fmt::Display + TryFrom<u64>> Bounded<T> {
    fn check(&self, value: u64) -> Result<T, String> {
        T::try_from(value).ok().filter(|value| self.range.contains(value)).ok_or_else(|| {
            format!("must be between {} and {}, got {value}", self.range.start(), self.range.end())
        })
    }
}

impl<T: Copy + PartialOrd + fmt::Display + TryFrom<u64>> Visitor<'_> for Bounded<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number between {} and {}", self.range.start(), self.range.end())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        self.check(value).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_machine_is_valid() {
        assert_eq!(MachineConfig::default().validate(), Ok(()));
    }

    #[test]
    fn an_option_out_of_range_says_so_in_words_that_fit_any_option_name() {
        let cause = |vcpus, mib| MachineConfig::new(vcpus, mib).unwrap_err().cause;
        assert_eq!(cause(0, 128), "must be between 1 and 254, got 0");
        assert_eq!(cause(255, 128), "must be between 1 and 254, got 255");
        assert_eq!(cause(256, 128), "must be between 1 and 254, got 256");
        assert_eq!(cause(1, 0), "must be between 1 and 4294967296, got 0");
        assert_eq!(cause(1, (1 << 32) + 1), "must be between 1 and 4294967296, got 4294967297");
        assert!(MachineConfig::new(254, 1 << 32).is_ok());
    }

    #[test]
    fn hardware_threads_come_in_pairs() {
        let smt = |vcpu_count| MachineConfig { vcpu_count, smt: true, ..Default::default() }.validate();
        assert_eq!(smt(1), Ok(()));
        assert_eq!(smt(4), Ok(()));
        let message = smt(3).unwrap_err().to_string();
        assert_eq!(message, "smt: needs one vCPU or an even number of them, got 3");
    }

    #[test]
    fn memory_of_2m_pages_is_made_of_whole_pages() {
        let huge = |mem_size_mib| {
            MachineConfig { mem_size_mib, huge_pages: HugePages::Hugetlbfs2M, ..Default::default() }
                .validate()
        };
        assert_eq!(huge(2), Ok(()));
        let message = huge(129).unwrap_err().to_string();
        assert_eq!(message, "mem_size_mib: must be even with huge_pages 2M, got 129");
    }
}
