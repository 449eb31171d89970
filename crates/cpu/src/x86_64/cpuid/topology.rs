//! The leaves that tell packages, cores, threads and the caches they share, and each vCPU's ids in them.
//!
//! Intel says how many ids its fields can form (powers of two), AMD how many processors there are.

use kvm_bindings::kvm_cpuid_entry2;

use super::super::Topology;
use super::table::Table;
use super::{LEAF_EXTENDED_FEATURES, LEAF_FEATURES, LEAF_VENDOR, Vendor, raise_max_leaf, set_bit, set_field};
use crate::Error;

const LEAF_CACHES: u32 = 4;
const LEAF_EXTENDED_TOPOLOGY: u32 = 0xb;
const LEAF_EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_EXTENDED_MAX: u32 = 0x8000_0000;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_EXTENDED_TOPOLOGY: u32 = 0x8000_0026;

/// Leaf 1, EDX: more than one logical processor in the package.
const FEATURES_EDX_HTT: u32 = 28;
/// What leaf 1 counts cache lines in for CLFLUSH: 64 bytes are eight of its units.
const CLFLUSH_UNITS: u32 = 8;
/// Leaf 0x8000_0001, ECX: leaf 1's count is one of cores; and: leaves 0x8000_001D and 0x8000_001E are there.
const EXTENDED_ECX_CMP_LEGACY: u32 = 1;
const EXTENDED_ECX_TOPOEXT: u32 = 22;

/// Level types in leaves 0xB and 0x1F.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

pub(super) fn apply(table: &mut Table, vendor: Vendor, topology: &Topology) -> Result<(), Error> {
    let vcpus = u32::from(topology.vcpus);
    let features = table.required(LEAF_FEATURES)?;
    let in_package = match vendor {
        Vendor::Intel => topology.addressable_ids(),
        Vendor::Amd => vcpus,
    };
    set_field(&mut features.ebx, 16, 0xff, in_package);
    if (features.ebx >> 8) & 0xff == 0 {
        set_field(&mut features.ebx, 8, 0xff, CLFLUSH_UNITS);
    }
    set_bit(&mut features.edx, FEATURES_EDX_HTT, topology.vcpus > 1);

    extended_topology(table, vendor, topology)?;
    match vendor {
        Vendor::Intel => intel_caches(table, topology),
        Vendor::Amd => amd(table, topology),
    }
    Ok(())
}

/// Leaf 0xB, which any processor may have, and 0x1F, its successor on Intel.
fn extended_topology(table: &mut Table, vendor: Vendor, topology: &Topology) -> Result<(), Error> {
    let threads = u32::from(topology.threads_per_core.min(topology.vcpus));
    let level = |index: u32, kind: u32| index | kind.wrapping_shl(8);
    let levels = [
        [u32::from(topology.thread_bits()), threads, level(0, LEVEL_THREAD), 0],
        [u32::from(topology.package_bits()), u32::from(topology.vcpus), level(1, LEVEL_CORE), 0],
        [0, 0, level(2, 0), 0],
    ];
    table.replace_subleaves(LEAF_EXTENDED_TOPOLOGY, &levels);
    raise_max_leaf(table, LEAF_EXTENDED_TOPOLOGY)?;
    if vendor == Vendor::Intel && table.required(LEAF_VENDOR)?.eax >= LEAF_EXTENDED_TOPOLOGY_V2 {
        table.replace_subleaves(LEAF_EXTENDED_TOPOLOGY_V2, &levels);
    } else {
        table.remove(LEAF_EXTENDED_TOPOLOGY_V2);
    }
    Ok(())
}

fn intel_caches(table: &mut Table, topology: &Topology) {
    let package_ids = topology.addressable_ids();
    let thread_ids = 1_u32.wrapping_shl(topology.thread_bits().into());
    let core_ids = package_ids.wrapping_shr(topology.thread_bits().into());
    for cache in table.subleaves_mut(LEAF_CACHES).filter(|cache| cache_kind(cache) != 0) {
        let sharing = if cache_level(cache) < 3 { thread_ids } else { package_ids };
        set_field(&mut cache.eax, 14, 0xfff, sharing.saturating_sub(1));
        set_field(&mut cache.eax, 26, 0x3f, core_ids.saturating_sub(1));
    }
}

fn amd(table: &mut Table, topology: &Topology) {
    let vcpus = u32::from(topology.vcpus);
    let threads = u32::from(topology.threads_per_core);
    let mut has_topology_leaves = false;
    if let Some(extended) = table.get_mut(LEAF_EXTENDED_FEATURES) {
        set_bit(&mut extended.ecx, EXTENDED_ECX_CMP_LEGACY, topology.vcpus > 1);
        // Linux looks for threads, in leaf 0xB too, only where this bit is set, and what it announces is made up here
        // anyway. A host without it has no cache leaves to go with it; the guest then knows of no caches.
        if threads > 1 {
            set_bit(&mut extended.ecx, EXTENDED_ECX_TOPOEXT, true);
        }
        has_topology_leaves = extended.ecx & (1 << EXTENDED_ECX_TOPOEXT) != 0;
    }
    if let Some(sizes) = table.get_mut(LEAF_AMD_SIZES) {
        set_field(&mut sizes.ecx, 0, 0xff, vcpus.saturating_sub(1));
        set_field(&mut sizes.ecx, 12, 0xf, topology.package_bits().into());
    }
    if has_topology_leaves {
        for cache in table.subleaves_mut(LEAF_AMD_CACHES).filter(|cache| cache_kind(cache) != 0) {
            let sharing = if cache_level(cache) < 3 { threads.min(vcpus) } else { vcpus };
            set_field(&mut cache.eax, 14, 0xfff, sharing.saturating_sub(1));
        }
        // One node; the ids are the vCPU's. Older kernels' tables end before this leaf.
        if let Some(max) = table.get_mut(LEAF_EXTENDED_MAX) {
            max.eax = max.eax.max(LEAF_AMD_TOPOLOGY);
        }
        table.replace(LEAF_AMD_TOPOLOGY, [0, threads.saturating_sub(1).wrapping_shl(8), 0, 0]);
    }
    // Leaf 0xB says it all, and is what is read in the absence of this one.
    table.remove(LEAF_AMD_EXTENDED_TOPOLOGY);
}

/// The cache's type in leaf 4 and 0x8000_001D, zero after the last one.
fn cache_kind(cache: &kvm_cpuid_entry2) -> u32 {
    cache.eax & 0x1f
}

/// The cache's level in leaf 4 and 0x8000_001D.
fn cache_level(cache: &kvm_cpuid_entry2) -> u32 {
    (cache.eax >> 5) & 0x7
}

/// Puts the ids of the vCPU `index` into an entry, if it has any.
pub(super) fn set_ids(entry: &mut kvm_cpuid_entry2, topology: &Topology, index: u8) {
    let id = topology.x2apic_id(index);
    match entry.function {
        LEAF_FEATURES => set_field(&mut entry.ebx, 24, 0xff, id),
        LEAF_EXTENDED_TOPOLOGY | LEAF_EXTENDED_TOPOLOGY_V2 => entry.edx = id,
        LEAF_AMD_TOPOLOGY => {
            entry.eax = id;
            set_field(&mut entry.ebx, 0, 0xff, topology.core_id(index));
        }
        _ => {}
    }
}
