//! A CPUID table one can edit: entries by leaf and subleaf, in order, none twice.

use std::collections::BTreeMap;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use crate::Error;

/// The entries by function (EAX) and index (ECX).
#[derive(Debug)]
pub(super) struct Table(BTreeMap<(u32, u32), kvm_cpuid_entry2>);

impl Table {
    pub fn new(supported: &CpuId) -> Self {
        Self(supported.as_slice().iter().map(|entry| ((entry.function, entry.index), *entry)).collect())
    }

    /// The leaf's first entry, if the table has it.
    pub fn get(&self, function: u32) -> Option<kvm_cpuid_entry2> {
        self.0.get(&(function, 0)).copied()
    }

    /// The leaf's first entry, for change.
    pub fn get_mut(&mut self, function: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0.get_mut(&(function, 0))
    }

    /// The leaf's first entry, which a guest cannot do without.
    pub fn required(&mut self, leaf: u32) -> Result<&mut kvm_cpuid_entry2, Error> {
        self.get_mut(leaf).ok_or(Error::MissingLeaf { leaf })
    }

    /// All subleaves of a leaf, for change.
    pub fn subleaves_mut(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0.range_mut((function, 0)..=(function, u32::MAX)).map(|(_, entry)| entry)
    }

    /// Replaces a leaf and all its subleaves by one entry that holds for every subleaf.
    pub fn replace(&mut self, function: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.remove(function);
        let entry = kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() };
        self.0.insert((function, 0), entry);
    }

    /// Replaces a leaf by these subleaves, numbered from zero.
    pub fn replace_subleaves(&mut self, function: u32, subleaves: &[[u32; 4]]) {
        self.remove(function);
        for (index, &[eax, ebx, ecx, edx]) in (0..).zip(subleaves) {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            let entry = kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() };
            self.0.insert((function, index), entry);
        }
    }

    /// Makes a leaf and all its subleaves read as zero, as leaves without an entry do.
    pub fn remove(&mut self, function: u32) {
        while let Some((&key, _)) = self.0.range((function, 0)..=(function, u32::MAX)).next() {
            self.0.remove(&key);
        }
    }

    /// The table in the form KVM takes, sorted.
    pub fn into_cpuid(self) -> Result<CpuId, Error> {
        let entries: Vec<_> = self.0.into_values().collect();
        CpuId::from_entries(&entries)
            .map_err(|_| Error::TooManyEntries { count: entries.len(), max: KVM_MAX_CPUID_ENTRIES })
    }
}
