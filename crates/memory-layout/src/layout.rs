//! Where RAM and the windows above it lie in guest-physical memory, worked out from how much RAM the guest has.
//!
//! The map follows from the amount of RAM alone, not from the host, so that a snapshot finds the same map elsewhere;
//! the width of a physical address decides only whether the map fits.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fmt;

use crate::{Error, arch};

/// Guest RAM comes in pages of this size.
const PAGE_SIZE: u64 = 4096;

/// The smallest guest: the first MiB.
const MIN_RAM_BYTES: u64 = 1 << 20;

/// Alignment of the windows above RAM: 1 GiB.
const WINDOW_ALIGN: u64 = 1 << 30;

/// Size of the window for 64-bit BARs. Fits the 36-bit physical addresses of the smallest 64-bit hosts.
const PCI64_WINDOW_SIZE: u64 = 32 << 30;

/// A range of guest-physical addresses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Number of bytes.
    pub size: u64,
}

impl Range {
    /// The first address behind the range; `u64::MAX` for a range that reaches beyond it.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether the byte at `address` is in the range.
    pub const fn contains(&self, address: u64) -> bool {
        match address.checked_sub(self.start) {
            Some(offset) => offset < self.size,
            None => false,
        }
    }

    /// Whether the ranges have a byte in common.
    pub const fn overlaps(&self, other: &Range) -> bool {
        (other.size > 0 && self.contains(other.start)) || (self.size > 0 && other.contains(self.start))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

/// The guest-physical map of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    ram: Vec<Range>,
    ram_bytes: u64,
    pci64_window: Range,
}

impl Layout {
    /// Lays out a guest with `ram_bytes` bytes of RAM and physical addresses of `phys_bits` bits.
    ///
    /// # Errors
    ///
    /// [`Error::RamSize`] unless `ram_bytes` is a multiple of 4096 and at least 1 MiB, [`Error::PhysBits`] for
    /// addresses wider than the architecture has, [`Error::TooLarge`] when the addresses are too few.
    pub fn new(ram_bytes: u64, phys_bits: u8) -> Result<Self, Error> {
        if ram_bytes < MIN_RAM_BYTES || !ram_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(Error::RamSize { bytes: ram_bytes });
        }
        if phys_bits > arch::MAX_PHYS_BITS {
            return Err(Error::PhysBits { bits: phys_bits, max: arch::MAX_PHYS_BITS });
        }
        let too_large = Error::TooLarge { ram_bytes, phys_bits };
        let address_limit = 1_u64.checked_shl(phys_bits.into()).unwrap_or(u64::MAX);

        let mut ram = Vec::new();
        let mut remaining = ram_bytes;
        for area in arch::RAM_AREAS {
            let size = remaining.min(area.size);
            if size > 0 {
                ram.push(Range { start: area.start, size });
            }
            remaining = remaining.saturating_sub(size);
        }
        if remaining > 0 {
            return Err(too_large);
        }

        let ram_end = ram.last().map_or(0, Range::end);
        let window_start = ram_end.max(arch::RAM64_START).checked_next_multiple_of(WINDOW_ALIGN);
        let Some(start) = window_start else { return Err(too_large) };
        match start.checked_add(PCI64_WINDOW_SIZE) {
            Some(end) if end <= address_limit => {}
            _ => return Err(too_large),
        }
        Ok(Self { ram, ram_bytes, pci64_window: Range { start, size: PCI64_WINDOW_SIZE } })
    }

    /// The parts of RAM in ascending order: one below the 32-bit gap and, when that is full, another above it.
    pub fn ram(&self) -> &[Range] {
        &self.ram
    }

    /// Bytes of RAM in all.
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// The window for 64-bit BARs of PCI devices: 32 GiB above RAM, from 4 GiB on, aligned to 1 GiB.
    pub fn pci64_window(&self) -> Range {
        self.pci64_window
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x86_64::*;

    const GIB: u64 = 1 << 30;

    fn ram(bytes: u64) -> Vec<(u64, u64)> {
        Layout::new(bytes, 52).unwrap().ram().iter().map(|range| (range.start, range.size)).collect()
    }

    #[test]
    fn ram_up_to_the_gap_is_one_range() {
        for bytes in [MIN_RAM_BYTES, MIN_RAM_BYTES + 4096, 128 << 20, 3 * GIB - 4096, 3 * GIB] {
            assert_eq!(ram(bytes), [(0, bytes)]);
        }
    }

    #[test]
    fn ram_beyond_the_gap_goes_on_at_4_gib() {
        for above in [4096, GIB, 1024 * GIB, 4096 * GIB + 4096] {
            assert_eq!(ram(3 * GIB + above), [(0, 3 * GIB), (4 * GIB, above)]);
        }
    }

    #[test]
    fn amount_of_ram_is_refused_unless_whole_pages_of_at_least_1_mib() {
        for bytes in [0, 1, 4096, MIN_RAM_BYTES - 4096, MIN_RAM_BYTES + 1, 3 * GIB - 1, u64::MAX] {
            assert!(
                matches!(Layout::new(bytes, 46), Err(Error::RamSize { bytes: refused }) if refused == bytes)
            );
        }
    }

    #[test]
    fn pci_window_follows_ram_on_the_next_gib() {
        for (bytes, start) in [
            (MIN_RAM_BYTES, 4 * GIB),
            (3 * GIB, 4 * GIB),
            (3 * GIB + 4096, 5 * GIB),
            (4 * GIB, 5 * GIB),
            (4 * GIB + 4096, 6 * GIB),
        ] {
            let window = Layout::new(bytes, 46).unwrap().pci64_window();
            assert_eq!(window, Range { start, size: 32 * GIB }, "{bytes:#x} bytes of RAM");
        }
    }

    #[test]
    fn map_fits_physical_addresses_to_the_last_page() {
        for phys_bits in [36, 39, 40, 46, 48, 52] {
            let most = (1_u64 << phys_bits) - 32 * GIB - GIB;
            let layout = Layout::new(most, phys_bits).unwrap();
            assert_eq!(layout.pci64_window().end(), 1 << phys_bits);
            assert!(matches!(Layout::new(most + 4096, phys_bits), Err(Error::TooLarge { .. })));
        }
    }

    #[test]
    fn physical_addresses_too_narrow_or_too_wide_are_refused() {
        for phys_bits in [0, 1, 31, 32, 35] {
            assert!(matches!(Layout::new(MIN_RAM_BYTES, phys_bits), Err(Error::TooLarge { .. })));
        }
        for phys_bits in [53, 63, 64, 255] {
            assert!(matches!(Layout::new(MIN_RAM_BYTES, phys_bits), Err(Error::PhysBits { max: 52, .. })));
        }
    }

    #[test]
    fn absurd_amounts_of_ram_are_refused() {
        for bytes in [1 << 52, 1 << 63, u64::MAX - 4095] {
            assert!(matches!(Layout::new(bytes, 52), Err(Error::TooLarge { .. })));
        }
    }

    #[test]
    fn range_ends_are_exclusive() {
        let range = Range { start: 0x1000, size: 0x1000 };
        assert!(range.contains(0x1000) && range.contains(0x1fff));
        assert!(!range.contains(0xfff) && !range.contains(0x2000));
        assert!(!range.overlaps(&Range { start: 0x2000, size: 1 }));
        assert!(range.overlaps(&Range { start: 0, size: 0x1001 }));
        assert!(range.overlaps(&Range { start: 0, size: u64::MAX }));
        assert_eq!(range.to_string(), "0x1000..0x2000");
    }

    #[test]
    fn empty_range_overlaps_nothing() {
        let empty = Range { start: 0x1800, size: 0 };
        let range = Range { start: 0x1000, size: 0x1000 };
        assert!(!empty.overlaps(&range) && !range.overlaps(&empty) && !empty.overlaps(&empty));
        assert!(!empty.contains(0x1800));
    }

    #[test]
    fn range_to_the_end_of_the_address_space_is_exact() {
        let top = Range { start: u64::MAX - 0xfff, size: 0x1000 };
        assert!(top.contains(u64::MAX));
        assert!(top.overlaps(&Range { start: u64::MAX, size: 1 }));
        assert_eq!(top.end(), u64::MAX);
    }

    proptest! {
        #[test]
        fn ram_is_complete_and_clear_of_everything_else(
            pages in prop_oneof![256_u64..0x10_0000, 256_u64..=(1 << 28), 256_u64..(1 << 39)],
        ) {
            let layout = Layout::new(pages * 4096, 52).unwrap();
            prop_assert_eq!(layout.ram().iter().map(|range| range.size).sum::<u64>(), pages * 4096);
            prop_assert_eq!(layout.ram_bytes(), pages * 4096);
            prop_assert!(matches!(layout.ram().len(), 1 | 2));

            for range in layout.ram() {
                prop_assert!(range.size > 0);
                prop_assert!(!range.overlaps(&GAP_32BIT));
                prop_assert!(range.end() <= layout.pci64_window().start);
            }
            prop_assert!(!GAP_32BIT.overlaps(&layout.pci64_window()));
            prop_assert_eq!(layout.pci64_window().start % GIB, 0);
        }

        #[test]
        fn map_is_refused_or_stays_within_physical_addresses(bytes: u64, shift in 0_u32..64, phys_bits: u8) {
            if let Ok(layout) = Layout::new((bytes >> shift) & !4095, phys_bits) {
                prop_assert!(layout.pci64_window().end() <= 1 << phys_bits);
                prop_assert_eq!(layout.ram_bytes(), (bytes >> shift) & !4095);
            }
        }

        #[test]
        fn overlap_means_a_common_byte(a in 0_u64..24, b in 0_u64..12, c in 0_u64..24, d in 0_u64..12) {
            let (first, second) = (Range { start: a, size: b }, Range { start: c, size: d });
            let common = (0..48).any(|address| first.contains(address) && second.contains(address));
            prop_assert_eq!(first.overlaps(&second), common);
            prop_assert_eq!(second.overlaps(&first), common);
        }
    }
}
