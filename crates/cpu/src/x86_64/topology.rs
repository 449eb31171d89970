//! How vCPUs are numbered: one package, its cores, and one or two threads in each.
//!
//! APIC ids are contiguous and equal to the vCPU's index, because one and two threads per core both fill the id's
//! thread field without gaps (Intel SDM volume 3A, 10.9.3 "Hierarchical ID of Logical Processors").

use crate::Error;

/// The processors of one guest: a single package of cores, each with one thread or two.
///
/// When `vcpus` is odd and there are two threads per core, the last core has one thread only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Logical processors, 1 to [`Topology::MAX_VCPUS`], those that can only be plugged in later included.
    pub vcpus: u8,
    /// Logical processors in a core, 1 or 2.
    pub threads_per_core: u8,
}

impl Topology {
    /// The most vCPUs a guest can have: ids 0 to 253 leave the broadcast id 255 and one more of the 8 bits free.
    pub const MAX_VCPUS: u8 = 254;

    /// A checked topology.
    ///
    /// # Errors
    /// [`Error::VcpuCount`] unless `vcpus` is 1 to 254, [`Error::ThreadsPerCore`] unless `threads_per_core` is 1 or 2.
    pub fn new(vcpus: u8, threads_per_core: u8) -> Result<Self, Error> {
        let topology = Self { vcpus, threads_per_core };
        topology.validate()?;
        Ok(topology)
    }

    /// Checks a topology whose fields were filled in by hand.
    ///
    /// # Errors
    /// As for [`Topology::new`].
    pub fn validate(&self) -> Result<(), Error> {
        if !(1..=Self::MAX_VCPUS).contains(&self.vcpus) {
            return Err(Error::VcpuCount { vcpus: self.vcpus, max: Self::MAX_VCPUS });
        }
        if !(1..=2).contains(&self.threads_per_core) {
            return Err(Error::ThreadsPerCore { threads_per_core: self.threads_per_core });
        }
        Ok(())
    }

    /// Cores in the package, 1 to 254.
    pub fn cores_per_package(&self) -> u8 {
        self.vcpus.div_ceil(self.threads_per_core.max(1))
    }

    /// The x2APIC id of the vCPU `index`; its initial APIC id is the same number.
    pub fn x2apic_id(&self, index: u8) -> u32 {
        u32::from(index)
    }

    /// The core that the vCPU `index` is a thread of.
    pub fn core_id(&self, index: u8) -> u32 {
        self.x2apic_id(index) >> self.thread_bits()
    }

    /// How many low bits of an APIC id number the thread within its core, 0 or 1.
    pub fn thread_bits(&self) -> u8 {
        id_bits(self.threads_per_core)
    }

    /// How many low bits of an APIC id number the thread and the core within the package, 0 to 8.
    pub fn package_bits(&self) -> u8 {
        self.thread_bits().saturating_add(id_bits(self.cores_per_package()))
    }

    /// The ids that the package's bits can form, 1 to 256. Fields that count "addressable ids" want this number.
    pub(crate) fn addressable_ids(&self) -> u32 {
        1 << self.package_bits().min(8)
    }
}

/// The width of a field that numbers `count` things from zero.
fn id_bits(count: u8) -> u8 {
    // At most 8, the ceiling of log2(255).
    u8::BITS.saturating_sub(count.saturating_sub(1).leading_zeros()) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_outside_the_limits_are_refused_with_the_number_in_the_message() {
        assert_eq!(Topology::new(0, 1), Err(Error::VcpuCount { vcpus: 0, max: 254 }));
        let error = Topology::new(255, 1).unwrap_err();
        assert_eq!(error.to_string(), "the number of vCPUs must be between 1 and 254, not 255");
        for threads_per_core in [0, 3, 255] {
            assert_eq!(Topology::new(4, threads_per_core), Err(Error::ThreadsPerCore { threads_per_core }));
        }
    }

    #[test]
    fn every_allowed_topology_numbers_its_vcpus_without_gaps_inside_its_bits() {
        for threads in 1..=2 {
            for vcpus in 1..=Topology::MAX_VCPUS {
                let topology = Topology::new(vcpus, threads).unwrap();
                assert!(u32::from(vcpus) <= topology.addressable_ids());
                for index in 0..vcpus {
                    let id = topology.x2apic_id(index);
                    assert_eq!(id, u32::from(index));
                    assert_eq!(id >> topology.package_bits(), 0, "one package");
                    assert_eq!(topology.core_id(index), id / u32::from(threads));
                    assert!(topology.core_id(index) < u32::from(topology.cores_per_package()));
                }
            }
        }
    }

    #[test]
    fn id_fields_are_as_wide_as_their_counts_need() {
        let bits = |vcpus, threads| {
            let topology = Topology::new(vcpus, threads).unwrap();
            (topology.thread_bits(), topology.package_bits())
        };
        assert_eq!(bits(1, 1), (0, 0));
        assert_eq!(bits(1, 2), (1, 1));
        assert_eq!(bits(2, 1), (0, 1));
        assert_eq!(bits(2, 2), (1, 1));
        assert_eq!(bits(3, 2), (1, 2));
        assert_eq!(bits(5, 1), (0, 3));
        assert_eq!(bits(8, 2), (1, 3));
        assert_eq!(bits(254, 1), (0, 8));
        assert_eq!(bits(254, 2), (1, 8));
    }
}
