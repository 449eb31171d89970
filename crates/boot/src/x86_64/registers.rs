//! The first register values of the boot processor, for the two ways a kernel is entered.
//!
//! [`Protocol::Linux64`]: "64-bit Boot Protocol" in the kernel's Documentation/arch/x86/boot.rst.
//! [`Protocol::Pvh`]: Xen's docs/misc/pvh.pandoc, "x86/HVM direct boot ABI".
//!
//! The structures are plain numbers, for any hypervisor to put into its own. Every general-purpose register that has no
//! field here is zero.

use vm_memory::GuestAddress;

use super::layout;
use super::tables;
use crate::{Loaded, Protocol};

const CR0_PE: u64 = 1 << 0;
/// Hard-wired to 1 on every processor that can run this.
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always 1; everything else, interrupts above all, is off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// A segment register with its hidden part (Intel SDM volume 3, 3.4.3 and 3.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// The segment's last offset, in bytes whatever `g` is.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// The four type bits.
    pub type_: u8,
    /// A code or data segment; otherwise a system segment.
    pub s: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// 64-bit code.
    pub l: bool,
    /// 32-bit default operand size.
    pub db: bool,
    /// The limit is stored in pages of 4 KiB.
    pub g: bool,
}

impl Segment {
    const fn code(l: bool) -> Segment {
        Segment {
            base: 0,
            limit: u32::MAX,
            selector: tables::BOOT_CS,
            type_: 0xb, // execute, read, accessed
            s: true,
            dpl: 0,
            present: true,
            l,
            db: !l,
            g: true,
        }
    }

    const fn data() -> Segment {
        // Read, write, accessed.
        Segment { selector: tables::BOOT_DS, type_: 0x3, db: true, ..Segment::code(false) }
    }

    const fn task() -> Segment {
        Segment {
            base: 0,
            limit: 0x67,
            selector: tables::BOOT_TSS,
            type_: 0xb, // busy
            s: false,
            dpl: 0,
            present: true,
            l: false,
            db: false,
            g: false,
        }
    }
}

/// The code, data and task segment a protocol starts with.
pub(super) struct Segments {
    pub code: Segment,
    pub data: Segment,
    pub task: Segment,
}

impl Segments {
    pub const fn of(protocol: Protocol) -> Segments {
        let l = matches!(protocol, Protocol::Linux64);
        Segments { code: Segment::code(l), data: Segment::data(), task: Segment::task() }
    }
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Its last offset, in bytes.
    pub limit: u16,
}

/// What the boot processor's registers hold when the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The registers' own names say all there is.
pub struct InitialState {
    pub rip: u64,
    pub rsp: u64,
    pub rsi: u64,
    pub rbx: u64,
    pub rflags: u64,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub gdt: DescriptorTable,
    /// Empty: an exception before the kernel has its own table shuts the processor down.
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// The registers with which the boot processor enters what has been [loaded](crate::load).
pub fn registers(loaded: &Loaded) -> InitialState {
    let Segments { code, data, task } = Segments::of(loaded.protocol);
    let GuestAddress(params) = loaded.params;
    let state = InitialState {
        rip: loaded.entry.0,
        // Neither protocol asks for a stack; it is there for the small kernels of tests, which may use one at once.
        rsp: layout::STACK_TOP.0,
        rsi: 0,
        rbx: 0,
        rflags: RFLAGS_RESERVED,
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task,
        gdt: DescriptorTable { base: layout::GDT.0, limit: tables::GDT_LIMIT },
        idt: DescriptorTable { base: 0, limit: 0 },
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
    };
    match loaded.protocol {
        Protocol::Linux64 => InitialState {
            rsi: params,
            cr0: state.cr0 | CR0_PG,
            cr3: layout::PML4.0,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..state
        },
        Protocol::Pvh => InitialState { rbx: params, ..state },
    }
}
