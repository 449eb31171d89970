//! Where the boot structures lie in the guest's first 640 KiB.
//!
//! The kernel copies what it needs out of them in its first instructions and then treats the memory as free, so they
//! may lie anywhere that is RAM in the memory map. Page 0 stays untouched: it is where a stray null pointer leads. Small
//! structures share a page, since every page that is written is one that the host has to find.

use vm_memory::GuestAddress;

/// Room for the command line with its terminating zero, in bytes.
pub const CMDLINE_MAX: usize = 0x1000;

/// The global descriptor table.
pub const GDT: GuestAddress = GuestAddress(0x1000);
/// `struct hvm_start_info`.
pub const START_INFO: GuestAddress = GuestAddress(0x1040);
/// The `struct hvm_modlist_entry` that describes the initial RAM disk.
pub const MODULE: GuestAddress = GuestAddress(0x1080);
/// The table of `struct hvm_memmap_table_entry`.
pub const MEMMAP: GuestAddress = GuestAddress(0x1100);
/// The command line, the beginning of it in the same page as what stands above.
pub const CMDLINE: GuestAddress = GuestAddress(0x1d00);
/// `struct boot_params`, the "zero page".
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The initial stack grows down from here, a page long.
pub const STACK_TOP: GuestAddress = GuestAddress(0x9000);
/// Page tables: the PML4, the page directory pointer table and four page directories, a page each.
pub const PML4: GuestAddress = GuestAddress(0xa000);
/// See [`PML4`].
pub const PDPT: GuestAddress = GuestAddress(0xb000);
/// See [`PML4`].
pub const PAGE_DIRECTORIES: GuestAddress = GuestAddress(0xc000);

/// How many RAM ranges the memory map has room for: 128 entries fit the zero page, and below 1 MiB there are two more
/// than RAM ranges. Kernels entered by PVH add one of their own.
pub const RAM_RANGES_MAX: usize = 125;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::{params, tables};

    #[test]
    fn no_two_structures_overlap_and_all_are_in_low_ram() {
        let mut structures = [
            (GDT.0, tables::GDT_SIZE as u64),
            (START_INFO.0, params::START_INFO_SIZE as u64),
            (MODULE.0, params::MODULE_SIZE as u64),
            (MEMMAP.0, ((RAM_RANGES_MAX + 2) * params::MEMMAP_ENTRY_SIZE) as u64),
            (ZERO_PAGE.0, 0x1000),
            (STACK_TOP.0 - 0x1000, 0x1000),
            (PML4.0, 0x1000),
            (PDPT.0, 0x1000),
            (PAGE_DIRECTORIES.0, 4 * 0x1000),
            (CMDLINE.0, CMDLINE_MAX as u64),
        ];
        structures.sort_unstable();
        assert!(structures[0].0 >= 0x1000, "page 0 is in use");
        for pair in structures.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?} overlap");
        }
        let (last, size) = structures[structures.len() - 1];
        assert!(last + size <= kindling_memory_layout::x86_64::EBDA_START);
    }
}
