#![doc = include_str!("../README.md")]

mod aligned;
mod layout;
mod memory;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

use std::io;

pub use layout::{Layout, Range};
pub use memory::{Backing, build, build_with_bitmap};
use vm_memory::{GuestRegionCollectionError, mmap::MmapRegionError};
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

/// Size of a huge page, and the alignment of guest memory in the host's address space: 2 MiB.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// Why a memory map could not be laid out, or its RAM not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The amount of RAM is too small or not a whole number of pages.
    #[error("guest ram of {bytes} bytes is not a multiple of 4096 bytes of at least 1048576")]
    RamSize {
        /// Bytes of RAM asked for.
        bytes: u64,
    },
    /// The processor cannot have physical addresses of this width.
    #[error("physical addresses of {bits} bits are wider than the architecture's {max}")]
    PhysBits {
        /// Width asked for.
        bits: u8,
        /// Width of the widest physical address there is.
        max: u8,
    },
    /// RAM and the windows above it need more physical addresses than there are.
    #[error("guest ram of {ram_bytes} bytes does not fit physical addresses of {phys_bits} bits")]
    TooLarge {
        /// Bytes of RAM asked for.
        ram_bytes: u64,
        /// Width of a guest-physical address.
        phys_bits: u8,
    },
    /// RAM on huge pages has to be a whole number of them.
    #[error("guest ram of {bytes} bytes is not a multiple of a huge page of 2 MiB")]
    PartHugePage {
        /// Bytes of RAM asked for.
        bytes: u64,
    },
    /// The file behind guest memory could not be created.
    #[error("creating a memfd for guest ram")]
    CreateMemfd(#[source] io::Error),
    /// The file behind guest memory could not be given its size.
    #[error("sizing the memfd for guest ram to {bytes} bytes")]
    ResizeMemfd {
        /// Bytes of RAM.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The size of the file behind guest memory could not be fixed.
    #[error("sealing the memfd for guest ram")]
    SealMemfd(#[source] io::Error),
    /// The host refused to map this much.
    #[error("mapping {} bytes of guest ram at {range}", range.size)]
    Map {
        /// The part of RAM that was being mapped.
        range: Range,
        /// What the kernel said.
        source: MmapRegionError,
    },
    /// The host has not got that many free huge pages.
    #[error("reserving guest ram at {range}, of {pages} huge pages of 2 MiB in all")]
    HugePages {
        /// Huge pages that all of the guest's RAM needs.
        pages: u64,
        /// The part of RAM that was being mapped.
        range: Range,
        /// What the kernel said.
        source: MmapRegionError,
    },
    /// The kernel refused a hint about guest memory.
    #[error("advising {advice} for guest ram at {range}")]
    Advise {
        /// Name of the hint.
        advice: &'static str,
        /// The part of RAM the hint was for.
        range: Range,
        /// What the kernel said.
        source: io::Error,
    },
    /// A part of RAM is larger than this process can address.
    #[error("guest ram at {range} is beyond what this process can address")]
    Unaddressable {
        /// The part of RAM.
        range: Range,
    },
    /// The mapped parts do not make up one guest memory.
    #[error("putting the parts of guest ram together")]
    Collect(#[source] GuestRegionCollectionError),
}
