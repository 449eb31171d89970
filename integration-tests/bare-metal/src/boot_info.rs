//! What the loader told the guest, from either boot protocol.

use crate::machine::{read, read_u8, read_u32};

// Linux `struct boot_params` and its `setup_header`.
const ACPI_RSDP_ADDR: u64 = 0x70;
const E820_ENTRIES: u64 = 0x1e8;
const CMD_LINE_PTR: u64 = 0x228;
const E820_TABLE: u64 = 0x2d0;
const E820_ENTRY_SIZE: u64 = 20;

// Xen `struct hvm_start_info`, version 1, and `struct hvm_memmap_table_entry`.
const CMDLINE_PADDR: u64 = 24;
const RSDP_PADDR: u64 = 32;
const MEMMAP_PADDR: u64 = 40;
const MEMMAP_ENTRIES: u64 = 48;
const MEMMAP_ENTRY_SIZE: u64 = 24;

const MAX_COMMAND_LINE: usize = 4096;

/// The boot parameters.
pub struct BootInfo {
    /// The name of the boot protocol, for the guest's greeting.
    pub protocol: &'static str,
    /// Physical address of the root system description pointer, 0 if the loader gave none.
    pub rsdp: u64,
    command_line: u64,
    memory_map: u64,
    memory_map_entries: u64,
    memory_map_entry_size: u64,
}

/// An entry of the memory map.
pub struct MemoryRange {
    /// Physical address of the first byte.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// The e820 type, 1 for RAM.
    pub kind: u32,
}

impl BootInfo {
    /// Reads the `boot_params` at `parameters`.
    pub fn from_linux(parameters: u64) -> Self {
        Self {
            protocol: "Linux",
            rsdp: read(parameters + ACPI_RSDP_ADDR),
            command_line: u64::from(read_u32(parameters + CMD_LINE_PTR)),
            memory_map: parameters + E820_TABLE,
            memory_map_entries: u64::from(read_u8(parameters + E820_ENTRIES)),
            memory_map_entry_size: E820_ENTRY_SIZE,
        }
    }

    /// Reads the `hvm_start_info` at `parameters`.
    pub fn from_pvh(parameters: u64) -> Self {
        Self {
            protocol: "PVH",
            rsdp: read(parameters + RSDP_PADDR),
            command_line: read(parameters + CMDLINE_PADDR),
            memory_map: read(parameters + MEMMAP_PADDR),
            memory_map_entries: u64::from(read_u32(parameters + MEMMAP_ENTRIES)),
            memory_map_entry_size: MEMMAP_ENTRY_SIZE,
        }
    }

    /// The kernel command line, empty if the loader gave none or one that is not UTF-8.
    pub fn command_line(&self) -> &'static str {
        if self.command_line == 0 {
            return "";
        }
        let mut length = 0;
        while length < MAX_COMMAND_LINE && read_u8(self.command_line + length as u64) != 0 {
            length += 1;
        }
        // SAFETY: the bytes are mapped, were just read, and nothing writes to the loader's data while the guest runs
        // but `scenario=memory`, which puts back what it finds.
        let bytes = unsafe { core::slice::from_raw_parts(self.command_line as *const u8, length) };
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The value of the last word `NAME=VALUE` of the command line.
    pub fn option(&self, name: &str) -> Option<&'static str> {
        let value = |word: &'static str| word.strip_prefix(name)?.strip_prefix('=');
        self.command_line().split_ascii_whitespace().rev().find_map(value)
    }

    /// The memory map in the loader's order.
    pub fn memory_map(&self) -> impl Iterator<Item = MemoryRange> {
        (0..self.memory_map_entries).map(|index| {
            let entry = self.memory_map + index * self.memory_map_entry_size;
            MemoryRange { start: read(entry), size: read(entry + 8), kind: read_u32(entry + 16) }
        })
    }
}
