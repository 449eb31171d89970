//! A CPUID table one can edit: entries by leaf and subleaf, in order, none twice.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use crate::Error;

/// The entries, sorted by function (EAX) and index (ECX).
#[derive(Debug)]
pub(super) struct Table(Vec<kvm_cpuid_entry2>);

fn key(entry: &kvm_cpuid_entry2) -> (u32, u32) {
    (entry.function, entry.index)
}

impl Table {
    pub fn new(supported: &CpuId) -> Self {
        let mut table = Self(Vec::with_capacity(KVM_MAX_CPUID_ENTRIES));
        for entry in supported.as_slice() {
            table.insert(*entry);
        }
        table
    }

    /// The leaf's first entry, if the table has it.
    pub fn get(&self, function: u32) -> Option<kvm_cpuid_entry2> {
        self.0.iter().find(|entry| key(entry) == (function, 0)).copied()
    }

    /// The leaf's first entry, for change.
    pub fn get_mut(&mut self, function: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0.iter_mut().find(|entry| key(entry) == (function, 0))
    }

    /// The leaf's first entry, which a guest cannot do without.
    pub fn required(&mut self, leaf: u32) -> Result<&mut kvm_cpuid_entry2, Error> {
        self.get_mut(leaf).ok_or(Error::MissingLeaf { leaf })
    }

    /// All subleaves of a leaf, for change.
    pub fn subleaves_mut(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0.iter_mut().filter(move |entry| entry.function == function)
    }

    /// Replaces a leaf and all its subleaves by one entry that holds for every subleaf.
    pub fn replace(&mut self, function: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.remove(function);
        self.insert(kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() });
    }

    /// Replaces a leaf by these subleaves, numbered from zero.
    pub fn replace_subleaves(&mut self, function: u32, subleaves: &[[u32; 4]]) {
        self.remove(function);
        for (index, &[eax, ebx, ecx, edx]) in (0..).zip(subleaves) {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            self.insert(kvm_cpuid_entry2 {
                function,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        }
    }

    /// Makes a leaf and all its subleaves read as zero, as leaves without an entry do.
    pub fn remove(&mut self, function: u32) {
        self.0.retain(|entry| entry.function != function);
    }

    /// The table in the form KVM takes, sorted.
    pub fn into_cpuid(self) -> Result<CpuId, Error> {
        CpuId::from_entries(&self.0)
            .map_err(|_| Error::TooManyEntries { count: self.0.len(), max: KVM_MAX_CPUID_ENTRIES })
    }

    /// Puts an entry in its place, that of an older one with the same key if there is one.
    fn insert(&mut self, entry: kvm_cpuid_entry2) {
        let at = self.0.partition_point(|old| key(old) < key(&entry));
        match self.0.get_mut(at).filter(|old| key(old) == key(&entry)) {
            Some(old) => *old = entry,
            None => self.0.insert(at, entry),
        }
    }
}
