//! What the guest tells of its memory (VIRTIO 1.2, 5.5.6.4).

use kindling_virtio_device::Readable;

/// The names of the statistics, by their tags: those of the specification first, then those that Linux added.
pub const STATISTICS: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// The most entries that are looked at. There are not as many tags.
const ENTRIES_MAX: usize = 64;

/// What the guest told last. Memory is in bytes, the rest are counts since the guest's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// By tag; `None` for what the guest does not tell.
    values: [Option<u64>; STATISTICS.len()],
}

impl Statistics {
    /// What the guest told of `name`, which is one of [`STATISTICS`].
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter().find_map(|(present, value)| (present == name).then_some(value))
    }

    /// All that the guest told, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STATISTICS.into_iter().zip(self.values).filter_map(|(name, value)| Some((name, value?)))
    }

    /// Reads what the guest tells, entries of a 16-bit tag and a 64-bit value; `None` unless it is a whole number of them.
    /// Tags that are not known are left out.
    pub(crate) fn read(buffer: &mut Readable) -> Option<Self> {
        let mut statistics = Self::default();
        for _ in 0..ENTRIES_MAX {
            if buffer.is_empty() {
                return Some(statistics);
            }
            let (tag, value) = (u16::from_le_bytes(buffer.take()?), u64::from_le_bytes(buffer.take()?));
            if let Some(place) = statistics.values.get_mut(usize::from(tag)) {
                *place = Some(value);
            }
        }
        None
    }
}
