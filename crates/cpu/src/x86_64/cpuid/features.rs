//! Feature bits: no nested virtualisation, no memory encryption, no enclaves, no performance counters unless wanted,
//! and nothing that mirrors the state of the host's own registers.

use super::table::Table;
use super::{CpuidOptions, LEAF_EXTENDED_FEATURES, LEAF_FEATURES, Vendor, set_bit};
use crate::Error;

const LEAF_POWER: u32 = 6;
const LEAF_STRUCTURED_FEATURES: u32 = 7;
const LEAF_PMU: u32 = 0xa;
const LEAF_SGX: u32 = 0x12;
const LEAF_PROCESSOR_TRACE: u32 = 0x14;
const LEAF_LAST_BRANCH_RECORDS: u32 = 0x1c;
const LEAF_PMU_EXTENSIONS: u32 = 0x23;
const LEAF_SVM: u32 = 0x8000_000a;
const LEAF_INSTRUCTION_BASED_SAMPLING: u32 = 0x8000_001b;
const LEAF_ENCRYPTED_MEMORY: u32 = 0x8000_001f;
const LEAF_EXTENDED_PMU: u32 = 0x8000_0022;

/// Leaf 1, ECX.
mod features_ecx {
    pub const DTES64: u32 = 2;
    pub const DS_CPL: u32 = 4;
    pub const VMX: u32 = 5;
    pub const SMX: u32 = 6;
    pub const PDCM: u32 = 15;
    pub const TSC_DEADLINE: u32 = 24;
    pub const OSXSAVE: u32 = 27;
    pub const HYPERVISOR: u32 = 31;
}

/// Leaf 1, EDX: debug store.
const FEATURES_EDX_DS: u32 = 21;

/// Leaf 6, EAX: the APIC timer runs in every sleep state.
const POWER_EAX_ARAT: u32 = 1 << 2;

/// Leaf 7, subleaf 0.
mod structured {
    pub const EBX_SGX: u32 = 2;
    pub const EBX_PROCESSOR_TRACE: u32 = 25;
    pub const ECX_OSPKE: u32 = 4;
    pub const ECX_SGX_LC: u32 = 30;
    pub const EDX_ARCH_LBR: u32 = 19;
    pub const EDX_ARCH_CAPABILITIES: u32 = 29;
}

/// Leaf 0x8000_0001, ECX.
mod extended_ecx {
    pub const SVM: u32 = 2;
    pub const INSTRUCTION_BASED_SAMPLING: u32 = 10;
    pub const SKINIT: u32 = 12;
    pub const PERFORMANCE_COUNTERS: [u32; 4] = [23, 24, 27, 28];
}

pub(super) fn apply(table: &mut Table, vendor: Vendor, options: &CpuidOptions) -> Result<(), Error> {
    let features = table.required(LEAF_FEATURES)?;
    set_bit(&mut features.ecx, features_ecx::HYPERVISOR, true);
    set_bit(&mut features.ecx, features_ecx::TSC_DEADLINE, options.tsc_deadline_timer);
    set_bit(&mut features.ecx, features_ecx::VMX, false);
    set_bit(&mut features.ecx, features_ecx::SMX, false);
    // OSXSAVE, and OSPKE below, mirror the guest's CR4; KVM sets them when the guest does.
    set_bit(&mut features.ecx, features_ecx::OSXSAVE, false);

    // Subleaf 0 holds all the bits below; a table without leaf 7 has none of them.
    if let Some(structured) = table.get_mut(LEAF_STRUCTURED_FEATURES) {
        set_bit(&mut structured.ecx, structured::ECX_OSPKE, false);
        set_bit(&mut structured.ebx, structured::EBX_SGX, false);
        set_bit(&mut structured.ecx, structured::ECX_SGX_LC, false);
        set_bit(&mut structured.ebx, structured::EBX_PROCESSOR_TRACE, false);
        if !options.arch_capabilities {
            set_bit(&mut structured.edx, structured::EDX_ARCH_CAPABILITIES, false);
        }
    }
    table.remove(LEAF_SGX);
    table.remove(LEAF_PROCESSOR_TRACE);

    // None of the power and thermal MSRs exist; the timer of KVM's local APIC never stops.
    table.replace(LEAF_POWER, [POWER_EAX_ARAT, 0, 0, 0]);

    if let Some(extended) = table.get_mut(LEAF_EXTENDED_FEATURES) {
        set_bit(&mut extended.ecx, extended_ecx::SVM, false);
        set_bit(&mut extended.ecx, extended_ecx::SKINIT, false);
        set_bit(&mut extended.ecx, extended_ecx::INSTRUCTION_BASED_SAMPLING, false);
    }
    table.remove(LEAF_INSTRUCTION_BASED_SAMPLING);
    if vendor == Vendor::Amd {
        // Present and zero rather than absent: these leaves are below the highest one announced.
        table.replace(LEAF_SVM, [0; 4]);
        table.replace(LEAF_ENCRYPTED_MEMORY, [0; 4]);
    }

    if !options.pmu {
        remove_pmu(table)?;
    }
    Ok(())
}

fn remove_pmu(table: &mut Table) -> Result<(), Error> {
    let features = table.required(LEAF_FEATURES)?;
    set_bit(&mut features.ecx, features_ecx::PDCM, false);
    set_bit(&mut features.ecx, features_ecx::DTES64, false);
    set_bit(&mut features.ecx, features_ecx::DS_CPL, false);
    set_bit(&mut features.edx, FEATURES_EDX_DS, false);
    if let Some(structured) = table.get_mut(LEAF_STRUCTURED_FEATURES) {
        set_bit(&mut structured.edx, structured::EDX_ARCH_LBR, false);
    }
    if let Some(extended) = table.get_mut(LEAF_EXTENDED_FEATURES) {
        for bit in extended_ecx::PERFORMANCE_COUNTERS {
            set_bit(&mut extended.ecx, bit, false);
        }
    }
    for leaf in [LEAF_PMU, LEAF_LAST_BRANCH_RECORDS, LEAF_PMU_EXTENSIONS, LEAF_EXTENDED_PMU] {
        table.remove(leaf);
    }
    Ok(())
}
