//! The hypervisor's own leaves, by which a guest finds KVM's clock and its frequencies.

use super::table::Table;
use super::{APIC_BUS_KHZ, CpuidOptions};

const LEAF_SIGNATURE: u32 = 0x4000_0000;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_TIMING: u32 = 0x4000_0010;

/// "KVMKVMKVM" and three zero bytes, in EBX, ECX and EDX.
const SIGNATURE: [u32; 3] =
    [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];

pub(super) fn apply(table: &mut Table, options: &CpuidOptions) {
    let supported_max = table.get(LEAF_SIGNATURE).map_or(0, |entry| entry.eax);
    let mut max = supported_max.max(LEAF_KVM_FEATURES);
    if let Some(tsc_khz) = options.tsc_khz.filter(|khz| *khz != 0) {
        table.replace(LEAF_TIMING, [tsc_khz, APIC_BUS_KHZ, 0, 0]);
        max = max.max(LEAF_TIMING);
    }
    let [ebx, ecx, edx] = SIGNATURE;
    table.replace(LEAF_SIGNATURE, [max, ebx, ecx, edx]);
}
