#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod error;
mod image;
mod initrd;
mod span;
pub mod x86_64;

use kindling_memory_layout::Range;
use vm_memory::{GuestAddress, GuestMemoryBackend};

pub use error::{Error, Part};
pub use image::{Image, Kind};
pub use x86_64::layout::CMDLINE_MAX;
pub use x86_64::registers::{DescriptorTable, InitialState, Segment, registers};

use image::Source;
use x86_64::Kernel;
use x86_64::params::Parameters;
use x86_64::ram::Ram;

/// What x86 Linux reads of a command line, without the terminating zero (COMMAND_LINE_SIZE in its asm/setup.h), unless
/// it says otherwise.
const LINUX_CMDLINE_MAX: usize = 2047;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In 64-bit mode with RSI pointing to `struct boot_params` (boot.rst, "64-bit Boot Protocol").
    Linux64,
    /// In 32-bit mode without paging, EBX pointing to `struct hvm_start_info` (Xen's docs/misc/pvh.pandoc).
    Pvh,
}

/// How a kernel is to be entered if it leaves a choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PreferredProtocol {
    /// PVH where an ELF kernel has the note for it, otherwise the 64-bit boot protocol.
    ///
    /// The note is a kernel's promise that it can be started from the ELF file. The ELF header's own entry point, with the
    /// zero page in RSI, works on every x86_64 Linux there is but is written down only for bzImages.
    #[default]
    Auto,
    /// The 64-bit boot protocol.
    Linux64,
    /// PVH; a kernel that cannot be entered that way is an error.
    Pvh,
}

/// What is to be booted.
#[derive(Debug)]
pub struct Request<'a, R> {
    /// The kernel: an uncompressed ELF file (`vmlinux`) or a bzImage.
    pub kernel: R,
    /// The initial RAM disk.
    pub initrd: Option<R>,
    /// The command line, without control characters and shorter than [`CMDLINE_MAX`] bytes.
    pub cmdline: &'a str,
    /// Where the ACPI root table is, if there is one.
    pub rsdp: Option<GuestAddress>,
    /// How to enter a kernel that can be entered in more than one way.
    pub protocol: PreferredProtocol,
}

/// What has been loaded, and how to start it: see [`registers`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// How the kernel is to be entered.
    pub protocol: Protocol,
    /// The first instruction.
    pub entry: GuestAddress,
    /// `struct boot_params` or `struct hvm_start_info`, as the protocol has it.
    pub params: GuestAddress,
    /// Where the initial RAM disk is.
    pub initrd: Option<Range>,
    /// The first address above everything that belongs to the kernel, with its zero-initialised data and, for a bzImage,
    /// the room it decompresses itself to.
    pub kernel_end: GuestAddress,
}

/// Loads a kernel into guest memory, with everything it finds when it starts.
///
/// `ram` is what the guest is told is RAM: in ascending order, the first range from 0 past 1 MiB, each whole in `memory`,
/// no two adjacent (a kernel's segments and the initial RAM disk must each lie in one). Kernel and initial RAM disk
/// are loaded between 1 MiB and 4 GiB, the rest below 640 KiB.
///
/// # Errors
///
/// Everything that can be wrong with the request has its own [`Error`]; nearly all are found before guest memory is
/// written. A file that cannot be read to its end is found later: after an error the contents of guest memory are
/// unspecified.
pub fn load<M, R>(memory: &M, ram: &[Range], request: Request<'_, R>) -> Result<Loaded, Error>
where
    M: GuestMemoryBackend + ?Sized,
    R: Image,
{
    let Request { kernel, initrd, cmdline, rsdp, protocol } = request;
    let ram = Ram::new(memory, ram)?;
    check_cmdline(cmdline)?;
    let mut kernel_file = Source::new(kernel, Part::Kernel)?;
    let kernel = Kernel::open(&mut kernel_file, &ram, protocol)?;
    match (cmdline.len(), kernel.cmdline_limit) {
        (length, Some(limit)) if length > limit => return Err(Error::CmdlineTooLong { length, limit }),
        (length, None) if length > LINUX_CMDLINE_MAX => {
            log::warn!("command line: of {length} bytes, Linux reads the first {LINUX_CMDLINE_MAX}");
        }
        _ => {}
    }
    let initrd = match initrd {
        Some(file) => {
            let file = Source::new(file, Part::Initrd)?;
            let place = initrd::place(file.length(), kernel.initrd_limit, kernel.memory, &ram)?;
            Some((file, place))
        }
        None => None,
    };

    kernel.load(&mut kernel_file, memory)?;
    let initrd = match initrd {
        Some((mut file, place)) => {
            file.copy(Part::Initrd, 0, place.size(), memory, place.start)?;
            Some(place)
        }
        None => None,
    };
    let (protocol, entry, end) = (kernel.protocol, kernel.entry, kernel.memory.end);
    let parameters = Parameters { ram: &ram, cmdline, initrd, rsdp };
    let params = x86_64::write_structures(memory, kernel, &parameters)?;
    Ok(Loaded {
        protocol,
        entry: GuestAddress(entry),
        params,
        initrd: initrd.map(|place| Range { start: place.start, size: place.size() }),
        kernel_end: GuestAddress(end),
    })
}

/// That a command line is one line of text that fits the memory set aside for it.
fn check_cmdline(cmdline: &str) -> Result<(), Error> {
    if cmdline.len() >= CMDLINE_MAX {
        return Err(Error::CmdlineTooLong { length: cmdline.len(), limit: CMDLINE_MAX - 1 });
    }
    match cmdline.bytes().enumerate().find(|(_, byte)| byte.is_ascii_control()) {
        Some((position, byte)) => Err(Error::CmdlineCharacter { byte, position }),
        None => Ok(()),
    }
}
