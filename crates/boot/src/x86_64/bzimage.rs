//! Compressed kernels: bzImages, entered by the 64-bit boot protocol.
//!
//! "The Real-Mode Kernel Header" and "64-bit Boot Protocol" in the kernel's Documentation/arch/x86/boot.rst. The
//! protected-mode part decompresses the kernel itself; the loader's work is to put it where it wants to be, with the room
//! it asks for.

use kindling_memory_layout::x86_64::HIGH_RAM_START;
use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, boot_params, setup_header};
use vm_memory::ByteValued;

use super::ram::Ram;
use super::{Kernel, Segment};
use crate::error::{Error, Part, check_field};
use crate::image::{HEAD_SIZE, Image, Source};
use crate::{PreferredProtocol, Protocol};

/// Where the setup header starts, in the file as in the zero page.
const SETUP_HEADER: usize = 0x1f1;
/// The header's length is the byte at 0x201, counted from 0x202: the operand of the jump over it.
const LENGTH_AT: usize = 0x201;
const LENGTH_FROM: usize = 0x202;
/// The end of `init_size`, the last field used.
const NEEDED: usize = 0x264;

const SECTOR: u64 = 512;
/// What `setup_sects` of 0 stands for.
const SETUP_SECTS_DEFAULT: u64 = 4;
/// `syssize` counts these.
const PARAGRAPH: u64 = 16;
/// The 64-bit entry point's offset in the protected-mode part.
const ENTRY64: u64 = 0x200;

/// The first version with `xloadflags`, by which a kernel says that it has the 64-bit entry point.
const VERSION_MIN: u16 = 0x20c;

/// Reads and checks a bzImage; `head` is the beginning of the file.
pub(super) fn open<R: Image>(
    source: &mut Source<R>,
    head: &[u8],
    ram: &Ram,
    preference: PreferredProtocol,
) -> Result<Kernel, Error> {
    if preference == PreferredProtocol::Pvh {
        return Err(Error::NoPvhEntry("a bzImage"));
    }
    let mut zero_page = zero_page(source, head)?;
    let header = zero_page.hdr;
    check(&header)?;

    let setup_sects = match u64::from(header.setup_sects) {
        0 => SETUP_SECTS_DEFAULT,
        sectors => sectors,
    };
    let offset = setup_sects.saturating_add(1).saturating_mul(SECTOR);
    let size = u64::from(header.syssize).saturating_mul(PARAGRAPH);
    source.check(Part::ProtectedMode, offset, size)?;

    // A relocatable kernel loaded lower than it prefers would move itself up to there. One that is not relocatable
    // is loaded where the protocol says and runs where it says.
    let preferred = header.pref_address;
    let (load, run) = match header.relocatable_kernel {
        0 => (HIGH_RAM_START, preferred),
        _ => {
            let alignment = u64::from(header.kernel_alignment);
            let fits = alignment.is_power_of_two() && preferred & alignment.wrapping_sub(1) == 0;
            check_field(
                Part::SetupHeader,
                "kernel_alignment",
                alignment,
                fits,
                "a power of two that pref_address is a multiple of",
            )?;
            (preferred, preferred)
        }
    };
    let loaded = ram.check(Part::ProtectedMode, load, size)?;
    let running = ram.check(Part::ProtectedMode, run, u64::from(header.init_size).max(size))?;

    // Below 4 GiB, as has just been checked.
    zero_page.hdr.code32_start = load as u32;
    Ok(Kernel {
        protocol: Protocol::Linux64,
        entry: load.saturating_add(ENTRY64),
        segments: vec![Segment { part: Part::ProtectedMode, offset, file_size: size, memory: loaded }],
        memory: loaded.hull(running),
        zero_page,
        initrd_limit: u64::from(header.initrd_addr_max).saturating_add(1),
        cmdline_limit: usize::try_from(header.cmdline_size).ok(),
    })
}

/// A zero page with nothing but the file's setup header, as long as the header says it is.
fn zero_page<R: Image>(source: &Source<R>, head: &[u8]) -> Result<Box<boot_params>, Error> {
    let part = Part::SetupHeader;
    source.check(part, 0, NEEDED as u64)?;
    let length = usize::from(head.get(LENGTH_AT).copied().unwrap_or_default());
    let end = length.saturating_add(LENGTH_FROM);
    let fits = (NEEDED..=HEAD_SIZE).contains(&end);
    check_field(part, "the header's end", end as u64, fits, "0x264 to 0x290")?;
    source.check(part, 0, end as u64)?;

    let mut zero_page = Box::new(boot_params::default());
    let fields = zero_page.as_mut_slice().iter_mut().zip(head).take(end).skip(SETUP_HEADER);
    for (to, from) in fields {
        *to = *from;
    }
    Ok(zero_page)
}

/// That the kernel is one this protocol can start.
fn check(header: &setup_header) -> Result<(), Error> {
    let check = |field, found, fits, expected| check_field(Part::SetupHeader, field, found, fits, expected);
    check("boot_flag", header.boot_flag.into(), header.boot_flag == 0xaa55, "0xaa55")?;
    let version = header.version;
    check("version", version.into(), version >= VERSION_MIN, "0x20c or later")?;
    let loadflags = header.loadflags;
    check("loadflags", loadflags.into(), loadflags & LOADED_HIGH != 0, "odd: no bzImage, but a zImage")?;
    let xloadflags = header.xloadflags;
    let fits = xloadflags & XLF_KERNEL_64 != 0;
    check("xloadflags", xloadflags.into(), fits, "odd: the kernel has no 64-bit entry point")?;
    let size = u64::from(header.syssize).saturating_mul(PARAGRAPH);
    check("syssize", header.syssize.into(), size > ENTRY64, "enough to reach the 64-bit entry point")
}
