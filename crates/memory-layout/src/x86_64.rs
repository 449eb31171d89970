//! The fixed parts of the guest-physical address space of an x86_64 machine, for whoever boots the guest, describes
//! the machine to it (e820, ACPI) or puts devices into it.
//!
//! RAM fills the addresses from 0 to the 32-bit gap and goes on above the gap at 4 GiB. Everything that is not RAM and
//! needs an address below 4 GiB lives in the gap. The first MiB is RAM too, but the parts of it that firmware owns on
//! a PC are kept from the guest's allocator.

use crate::layout::Range;

/// Start of the extended BIOS data area: conventional memory ends here.
pub const EBDA_START: u64 = 0x9_fc00;

/// The BIOS area that an operating system searches for the RSDP (ACPI 6.5, 5.2.5.1); holds the ACPI tables.
pub const ACPI_TABLES: Range = Range { start: 0xe_0000, size: 0x2_0000 };

/// Start of the RAM above the first MiB, where kernels are loaded.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The 32-bit gap, which never holds RAM.
pub const GAP_32BIT: Range = Range { start: 0xc000_0000, size: 0x4000_0000 };

/// Where a guest can say that it has booted, by a byte of 123. Tools for Firecracker's guests know the address.
pub const BOOT_TIMER: Range = Range { start: 0xc000_0000, size: 0x1000 };

/// The 32-bit memory BARs of PCI devices.
pub const PCI_BAR32: Range = Range { start: 0xc010_0000, size: 0x1ff0_0000 };

/// PCI Express configuration space (ECAM) of segment 0, buses 0 to 255.
pub const ECAM: Range = Range { start: 0xe000_0000, size: 0x1000_0000 };

/// The register blocks of virtio-mmio devices.
pub const VIRTIO_MMIO: Range = Range { start: 0xf000_0000, size: 0x100_0000 };

/// Registers of the I/O APIC.
pub const IOAPIC: Range = Range { start: 0xfec0_0000, size: 0x1000 };

/// Registers of the local APICs, and around them the addresses that MSIs are written to (Intel SDM
/// volume 3A, "Message Address Register Format").
pub const LAPIC: Range = Range { start: 0xfee0_0000, size: 0x10_0000 };

/// The page table that KVM keeps for real mode on Intel processors (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: Range = Range { start: 0xfffb_c000, size: 0x1000 };

/// The task state segment that KVM keeps for real mode on Intel processors (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: Range = Range { start: 0xfffb_d000, size: 0x3000 };

/// Start of the RAM above the 32-bit gap.
pub const RAM64_START: u64 = 0x1_0000_0000;

/// Bits in the widest physical address (Intel SDM, 3A 4.1.4).
pub(crate) const MAX_PHYS_BITS: u8 = 52;

/// Where RAM may be, in the order in which it fills up.
pub(crate) const RAM_AREAS: [Range; 2] = [
    Range { start: 0, size: GAP_32BIT.start },
    Range { start: RAM64_START, size: (1 << MAX_PHYS_BITS) - RAM64_START },
];

#[cfg(test)]
mod tests {
    use super::*;

    const IN_GAP: [Range; 8] =
        [BOOT_TIMER, PCI_BAR32, ECAM, VIRTIO_MMIO, IOAPIC, LAPIC, KVM_IDENTITY_MAP, KVM_TSS];

    #[test]
    fn fixed_ranges_never_overlap() {
        let ebda = Range { start: EBDA_START, size: 0xa_0000 - EBDA_START };
        let all: Vec<Range> = [ebda, ACPI_TABLES].into_iter().chain(IN_GAP).collect();
        for (index, first) in all.iter().enumerate() {
            for second in &all[index + 1..] {
                assert!(!first.overlaps(second), "{first} overlaps {second}");
            }
        }
    }

    #[test]
    fn devices_stay_within_the_32_bit_gap() {
        for range in IN_GAP {
            assert!(GAP_32BIT.start <= range.start && range.end() <= GAP_32BIT.end(), "{range}");
        }
    }

    #[test]
    fn ram_areas_and_the_gap_meet_without_overlapping() {
        assert_eq!(RAM_AREAS[0].end(), GAP_32BIT.start);
        assert_eq!(RAM_AREAS[1].start, GAP_32BIT.end());
    }

    #[test]
    fn pc_areas_meet_at_the_addresses_a_guest_expects() {
        assert_eq!(ACPI_TABLES.end(), HIGH_RAM_START);
        assert_eq!(KVM_IDENTITY_MAP.end(), KVM_TSS.start);
        assert_eq!(ECAM.size, 256 << 20);
    }

    #[test]
    fn ram_areas_start_on_a_huge_page() {
        for area in RAM_AREAS {
            assert_eq!(area.start % crate::HUGE_PAGE_SIZE, 0, "{area}");
        }
    }
}
