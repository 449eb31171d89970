//! What a kernel is told: the memory map, the command line, where the initial RAM disk and the ACPI tables are.
//!
//! The zero page is described in the kernel's Documentation/arch/x86/boot.rst and zero-page.rst, `struct hvm_start_info`
//! in xen/include/public/arch-x86/hvm/start_info.h. Both hold the same memory map, with the same types of range.

use std::mem::size_of;

use kindling_memory_layout::x86_64::{EBDA_START, HIGH_RAM_START};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::layout;
use super::ram::Ram;
use crate::error::Error;
use crate::span::Span;

/// Memory the kernel may use.
const E820_RAM: u32 = 1;
/// Memory the kernel must leave alone.
const E820_RESERVED: u32 = 2;

/// "xEn3" with the top bit of the E set.
const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;
/// The version with a memory map.
const START_INFO_VERSION: u32 = 1;

#[cfg(test)]
pub(super) const START_INFO_SIZE: usize = size_of::<hvm_start_info>();
#[cfg(test)]
pub(super) const MODULE_SIZE: usize = size_of::<hvm_modlist_entry>();
pub(super) const MEMMAP_ENTRY_SIZE: usize = size_of::<hvm_memmap_table_entry>();

/// What goes into either kind of boot parameters.
pub(crate) struct Parameters<'a> {
    pub ram: &'a Ram,
    pub cmdline: &'a str,
    pub initrd: Option<Span>,
    pub rsdp: Option<GuestAddress>,
}

impl Parameters<'_> {
    fn rsdp(&self) -> u64 {
        self.rsdp.map_or(0, |rsdp| rsdp.0)
    }
}

/// The memory map, in ascending order: RAM, but for the end of the first MiB, which is left to firmware and has the ACPI
/// tables in it.
fn memory_map(ram: &Ram) -> impl Iterator<Item = (Span, u32)> {
    let firmware = Span { start: EBDA_START, end: HIGH_RAM_START };
    // The first range reaches from 0 past the firmware area, and only it is divided.
    let below = Span { start: 0, end: firmware.start };
    let ram = ram.spans().iter().map(move |span| Span { start: span.start.max(firmware.end), ..*span });
    [(below, E820_RAM), (firmware, E820_RESERVED)].into_iter().chain(ram.map(|span| (span, E820_RAM)))
}

/// Writes the command line with its terminating zero.
pub(super) fn write_cmdline<M>(memory: &M, cmdline: &str) -> Result<(), Error>
where
    M: GuestMemoryBackend + ?Sized,
{
    let error = || Error::write("the command line", layout::CMDLINE);
    memory.write_slice(cmdline.as_bytes(), layout::CMDLINE).map_err(error())?;
    let end = layout::CMDLINE.0.saturating_add(cmdline.len() as u64);
    memory.write_obj(0_u8, GuestAddress(end)).map_err(error())
}

/// Fills in and writes `struct boot_params`, which has the kernel's own setup header in it.
pub(super) fn write_zero_page<M>(
    memory: &M,
    mut zero_page: Box<boot_params>,
    boot: &Parameters<'_>,
) -> Result<GuestAddress, Error>
where
    M: GuestMemoryBackend + ?Sized,
{
    // No identifier is assigned to this boot loader.
    zero_page.hdr.type_of_loader = 0xff;
    zero_page.hdr.cmd_line_ptr = low(layout::CMDLINE.0);
    zero_page.ext_cmd_line_ptr = high(layout::CMDLINE.0);
    let initrd = boot.initrd.unwrap_or(Span { start: 0, end: 0 });
    zero_page.hdr.ramdisk_image = low(initrd.start);
    zero_page.ext_ramdisk_image = high(initrd.start);
    zero_page.hdr.ramdisk_size = low(initrd.size());
    zero_page.ext_ramdisk_size = high(initrd.size());
    zero_page.acpi_rsdp_addr = boot.rsdp();
    for (slot, (span, kind)) in zero_page.e820_table.iter_mut().zip(memory_map(boot.ram)) {
        *slot = boot_e820_entry { addr: span.start, size: span.size(), r#type: kind };
        zero_page.e820_entries = zero_page.e820_entries.saturating_add(1);
    }
    let address = layout::ZERO_PAGE;
    memory.write_obj(*zero_page, address).map_err(Error::write("the zero page", address))?;
    Ok(address)
}

/// Writes `struct hvm_start_info` and what it points to.
pub(super) fn write_start_info<M>(memory: &M, boot: &Parameters<'_>) -> Result<GuestAddress, Error>
where
    M: GuestMemoryBackend + ?Sized,
{
    let mut start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: START_INFO_VERSION,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: boot.rsdp(),
        memmap_paddr: layout::MEMMAP.0,
        ..Default::default()
    };
    let mut slot = layout::MEMMAP;
    for (span, kind) in memory_map(boot.ram) {
        let entry = hvm_memmap_table_entry { addr: span.start, size: span.size(), type_: kind, reserved: 0 };
        memory.write_obj(entry, slot).map_err(Error::write("the memory map", slot))?;
        slot = GuestAddress(slot.0.saturating_add(MEMMAP_ENTRY_SIZE as u64));
        start_info.memmap_entries = start_info.memmap_entries.saturating_add(1);
    }
    if let Some(initrd) = boot.initrd {
        let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.size(), ..Default::default() };
        let at = layout::MODULE;
        memory.write_obj(module, at).map_err(Error::write("the module list", at))?;
        start_info.modlist_paddr = at.0;
        start_info.nr_modules = 1;
    }
    let address = layout::START_INFO;
    memory.write_obj(start_info, address).map_err(Error::write("the start info", address))?;
    Ok(address)
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
