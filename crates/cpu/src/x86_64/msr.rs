//! The MSRs whose value after KVM's reset does not suit a kernel that is entered without firmware.
//!
//! What is *not* here needs no setting, and each entry costs time on every vCPU: the TSC of all vCPUs starts together
//! at zero when KVM creates them; the SYSENTER, STAR, LSTAR, CSTAR, FMASK and KERNEL_GS_BASE registers are zero after
//! reset; the PAT holds its architectural default; EFER and the APIC base travel with the segment registers.

use kvm_bindings::kvm_msr_entry;

/// IA32_MISC_ENABLE (Intel SDM volume 4, table 2-2).
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// REP MOVS and REP STOS run fast.
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// There is no branch trace storage.
const MISC_ENABLE_BTS_UNAVAILABLE: u64 = 1 << 11;
/// There is no precise event-based sampling.
const MISC_ENABLE_PEBS_UNAVAILABLE: u64 = 1 << 12;

/// IA32_MTRR_DEF_TYPE (Intel SDM volume 3A, 13.11.2.1).
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// The MTRRs are in force.
const MTRR_ENABLE: u64 = 1 << 11;
/// Memory no range register speaks of is write-back.
const MTRR_TYPE_WRITE_BACK: u64 = 6;

/// The MSRs to set on every vCPU before its first instruction, in an order KVM accepts.
///
/// - IA32_MISC_ENABLE: KVM resets it with fast strings off, whereupon Linux on Intel stops using REP MOVSB. The two
///   "unavailable" bits are KVM's own reset value and are kept.
/// - IA32_MTRR_DEF_TYPE: zero after reset, which makes all memory uncached by the book; Linux then reports the MTRRs as
///   disabled by the firmware and may leave the PAT unused.
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    vec![
        entry(
            IA32_MISC_ENABLE,
            MISC_ENABLE_FAST_STRING | MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE,
        ),
        entry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_TYPE_WRITE_BACK),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_and_fast_strings_are_on() {
        let value = |index| boot_msrs().iter().find(|msr| msr.index == index).map(|msr| msr.data);
        assert_eq!(value(0x2ff), Some(0x806));
        assert_eq!(value(0x1a0), Some(0x1801));
    }
}
