//! The CPUID a guest sees: what KVM supports, with the host's topology and identity replaced by the guest's.
//!
//! Specifications: Intel SDM volume 2A, "CPUID"; AMD APM volume 3, appendix E; for the hypervisor's leaves
//! `Documentation/virt/kvm/x86/cpuid.rst` of the Linux kernel. Almost everything is the same on all vCPUs and is
//! computed once; see [`CpuidTemplate::for_vcpu`] for the rest.

mod features;
mod frequency;
mod hypervisor;
mod table;
mod topology;

use kvm_bindings::CpuId;

use self::table::Table;
use super::Topology;
use crate::Error;

pub use self::frequency::APIC_BUS_KHZ;

/// Leaf 0: vendor and highest basic leaf.
const LEAF_VENDOR: u32 = 0;
/// Leaf 1: version and feature bits.
const LEAF_FEATURES: u32 = 1;
/// Leaf 0x8000_0001: AMD's feature bits.
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;

/// What the guest shall have beyond what KVM's table of supported leaves says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuidOptions {
    /// The guest's TSC frequency in kHz, as KVM_GET_TSC_KHZ or KVM_SET_TSC_KHZ has it, so that the guest need not
    /// measure it. `None` (or zero) when it is not known.
    pub tsc_khz: Option<u32>,
    /// Whether KVM_CAP_TSC_DEADLINE_TIMER is there and the local APIC is KVM's. KVM's own table leaves the bit to us.
    pub tsc_deadline_timer: bool,
    /// Whether the host lets IA32_ARCH_CAPABILITIES be set; without that the guest is not told of the register.
    pub arch_capabilities: bool,
    /// Whether the guest gets performance counters. When it does not, disable them in KVM as well
    /// (KVM_CAP_PMU_CAPABILITY): AMD's first four counters need no CPUID bit.
    pub pmu: bool,
}

/// Whose leaves the host's processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
}

impl Vendor {
    fn new(table: &Table) -> Result<Self, Error> {
        let leaf = table.get(LEAF_VENDOR).ok_or(Error::MissingLeaf { leaf: LEAF_VENDOR })?;
        let mut vendor = [0; 12];
        let registers = [leaf.ebx, leaf.edx, leaf.ecx].into_iter().flat_map(u32::to_le_bytes);
        for (character, byte) in vendor.iter_mut().zip(registers) {
            *character = byte;
        }
        match &vendor {
            b"GenuineIntel" => Ok(Self::Intel),
            b"AuthenticAMD" | b"HygonGenuine" => Ok(Self::Amd),
            _ => Err(Error::UnknownVendor { vendor }),
        }
    }
}

/// The CPUID of a guest, but for the few fields that hold a vCPU's own ids.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuidTemplate {
    cpuid: CpuId,
    topology: Topology,
}

impl CpuidTemplate {
    /// Makes the guest's table from the one that KVM_GET_SUPPORTED_CPUID gave.
    ///
    /// # Errors
    /// When the topology is invalid, the vendor unknown, leaf 0 or 1 missing, or the result longer than KVM takes.
    pub fn new(supported: &CpuId, topology: &Topology, options: &CpuidOptions) -> Result<Self, Error> {
        topology.validate()?;
        let mut table = Table::new(supported);
        let vendor = Vendor::new(&table)?;
        features::apply(&mut table, vendor, options)?;
        topology::apply(&mut table, vendor, topology)?;
        hypervisor::apply(&mut table, options);
        if vendor == Vendor::Intel {
            frequency::apply(&mut table, options)?;
        }
        Ok(Self { cpuid: table.into_cpuid()?, topology: *topology })
    }

    /// The table for the vCPU `index`, to be given to KVM_SET_CPUID2.
    ///
    /// `index` is below the topology's `vcpus`; a larger one yields ids the other vCPUs do not know of.
    pub fn for_vcpu(&self, index: u8) -> CpuId {
        let mut cpuid = self.cpuid.clone();
        for entry in cpuid.as_mut_slice() {
            topology::set_ids(entry, &self.topology, index);
        }
        cpuid
    }
}

/// Puts `value` into the bits of `register` from `shift` on that `mask` (not shifted) has room for, saturating.
fn set_field(register: &mut u32, shift: u32, mask: u32, value: u32) {
    *register &= !mask.wrapping_shl(shift);
    *register |= value.min(mask).wrapping_shl(shift);
}

/// Sets or clears one bit.
fn set_bit(register: &mut u32, bit: u32, on: bool) {
    set_field(register, bit, 1, u32::from(on));
}

/// Raises the highest basic leaf that leaf 0 announces.
fn raise_max_leaf(table: &mut Table, leaf: u32) -> Result<(), Error> {
    let entry = table.required(LEAF_VENDOR)?;
    entry.eax = entry.eax.max(leaf);
    Ok(())
}

#[cfg(test)]
mod tests;
