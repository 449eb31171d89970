//! The tables the processor itself reads: the global descriptor table and the page tables.
//!
//! The 64-bit boot protocol (boot.rst) wants the kernel with its init_size, the zero page and the command line mapped
//! at their own addresses. All of them lie in RAM below 4 GiB, and every GiB with some of that is mapped whole, in pages
//! of 2 MiB: a directory more is a page of guest memory more, which costs the host as much as filling it. Larger pages
//! would need a CPUID bit the guest may not have. Everything else a kernel maps for itself. PVH starts with paging off
//! and gets the descriptor table alone.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::layout::{GDT, PAGE_DIRECTORIES, PDPT, PML4};
use super::ram::Ram;
use super::registers::{Segment, Segments};
use crate::{Error, Protocol};

/// `__BOOT_CS` (boot.rst).
pub(super) const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS` (boot.rst).
pub(super) const BOOT_DS: u16 = 0x18;
/// The task state segment's selector, free to choose.
pub(super) const BOOT_TSS: u16 = 0x20;

/// Two null descriptors, code, data, and the two halves of the task state segment's.
const GDT_ENTRIES: usize = 6;
/// In bytes.
pub(super) const GDT_SIZE: usize = GDT_ENTRIES * 8;
/// The table's last byte.
pub(super) const GDT_LIMIT: u16 = GDT_SIZE as u16 - 1;

/// The most that is mapped: what 32 bits reach.
pub(super) const MAPPED: u64 = 1 << 32;
const ENTRIES: usize = 512;

// Intel SDM volume 3, 4.5.5. Accessed and dirty are set from the start, or the processor would write them.
const PRESENT_WRITABLE_ACCESSED: u64 = 0x23;
const LARGE_DIRTY: u64 = 0xc0;

/// A descriptor as it stands in the table (Intel SDM volume 3, 3.4.5), without the upper half a 64-bit system
/// descriptor has.
const fn descriptor(segment: &Segment) -> u64 {
    let limit = if segment.g { segment.limit >> 12 } else { segment.limit } as u64;
    let access = segment.type_ as u64
        | (segment.s as u64) << 4
        | (segment.dpl as u64) << 5
        | (segment.present as u64) << 7;
    let flags = (segment.l as u64) << 1 | (segment.db as u64) << 2 | (segment.g as u64) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Writes what the processor needs to enter a kernel by `protocol`.
pub(super) fn write<M>(memory: &M, protocol: Protocol, ram: &Ram) -> Result<(), Error>
where
    M: GuestMemoryBackend + ?Sized,
{
    let Segments { code, data, task } = Segments::of(protocol);
    let gdt = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task), 0];
    write_table(memory, "the descriptor table", GDT, gdt)?;
    match protocol {
        Protocol::Linux64 => write_page_tables(memory, ram),
        Protocol::Pvh => Ok(()),
    }
}

fn write_page_tables<M>(memory: &M, ram: &Ram) -> Result<(), Error>
where
    M: GuestMemoryBackend + ?Sized,
{
    let end = ram.loadable(MAPPED).filter(|span| span.size() > 0).map(|span| span.end).max();
    let directories = (0..end.unwrap_or(MAPPED).div_ceil(1 << 30))
        .map(|n| GuestAddress(PAGE_DIRECTORIES.0.saturating_add(n << 12)));
    let what = "the page tables";
    write_table(memory, what, PML4, page([PDPT.0 | PRESENT_WRITABLE_ACCESSED].into_iter()))?;
    let pointers = directories.clone().map(|directory| directory.0 | PRESENT_WRITABLE_ACCESSED);
    write_table(memory, what, PDPT, page(pointers))?;
    let mut pages = (0..MAPPED >> 21).map(|n| n << 21 | PRESENT_WRITABLE_ACCESSED | LARGE_DIRTY);
    for directory in directories {
        write_table(memory, what, directory, page(pages.by_ref()))?;
    }
    Ok(())
}

/// A page table that begins with `entries`, as many of them as fit; the rest is not present.
fn page(entries: impl Iterator<Item = u64>) -> [u64; ENTRIES] {
    let mut page = [0; ENTRIES];
    for (slot, entry) in page.iter_mut().zip(entries) {
        *slot = entry;
    }
    page
}

fn write_table<M, const N: usize>(
    memory: &M,
    what: &'static str,
    address: GuestAddress,
    table: [u64; N],
) -> Result<(), Error>
where
    M: GuestMemoryBackend + ?Sized,
{
    memory
        .write_slice(table.map(u64::to_le_bytes).as_flattened(), address)
        .map_err(Error::write(what, address))
}
