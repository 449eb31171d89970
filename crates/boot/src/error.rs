//! What can be wrong with a boot request, each with the numbers a user needs to put it right.

use std::fmt;
use std::io;

use vm_memory::{GuestAddress, GuestMemoryError, VolatileMemoryError};

use crate::image::Kind;

/// A piece of an image file, as messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The kernel file as a whole.
    Kernel,
    /// The ELF header.
    ElfHeader,
    /// The table of ELF program headers.
    ProgramHeaders,
    /// What one ELF program header describes.
    Segment {
        /// Which program header, counted from 1.
        number: usize,
        /// How many program headers the file has.
        of: usize,
    },
    /// The setup header of a bzImage.
    SetupHeader,
    /// The protected-mode part of a bzImage: everything after its real-mode sectors.
    ProtectedMode,
    /// The whole initial RAM disk.
    Initrd,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Kernel => f.write_str("kernel"),
            Part::ElfHeader => f.write_str("kernel: ELF header"),
            Part::ProgramHeaders => f.write_str("kernel: program header table"),
            Part::Segment { number, of } => write!(f, "kernel: program header {number} of {of}"),
            Part::SetupHeader => f.write_str("kernel: setup header"),
            Part::ProtectedMode => f.write_str("kernel: protected-mode part"),
            Part::Initrd => f.write_str("initrd"),
        }
    }
}

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line has no room for its terminating zero within the limit that applies: [`crate::CMDLINE_MAX`] or
    /// the kernel's own.
    #[error("command line: {length} bytes, more than the {limit} this kernel takes")]
    CmdlineTooLong {
        /// Length without the terminating zero, in bytes.
        length: usize,
        /// The longest that would be taken, in bytes.
        limit: usize,
    },
    /// The command line has a control character, which the kernel would take for its end or print as garbage.
    #[error("command line: control character {byte:#04x} at byte {position}")]
    CmdlineCharacter {
        /// The character.
        byte: u8,
        /// Where it is, counted from 0.
        position: usize,
    },

    /// The RAM ranges given are not what a PC's memory looks like.
    #[error("guest RAM range of {size:#x} bytes at {start:#x}: {problem}")]
    Ram {
        /// Where the range starts.
        start: u64,
        /// Its size in bytes.
        size: u64,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// Finding out the length of a file failed.
    #[error("{part}: cannot find the length of the file")]
    Length {
        /// The file, named by a part of it.
        part: Part,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Reading from a file failed.
    #[error("{part}: cannot read at byte {offset} of the file")]
    Read {
        /// What was being read.
        part: Part,
        /// Where in the file it is.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Reading from a file straight into guest memory failed.
    #[error("{part}: cannot copy {size} bytes at byte {offset} of the file to guest memory at {address:#x}")]
    Copy {
        /// What was being copied.
        part: Part,
        /// Where in the file it is.
        offset: u64,
        /// How much of it there is, in bytes.
        size: u64,
        /// Where in the guest it goes.
        address: u64,
        /// The cause.
        #[source]
        source: VolatileMemoryError,
    },
    /// A guest address that should be RAM is not in guest memory.
    #[error("cannot write {what} at {address:#x}")]
    Write {
        /// What was being written.
        what: &'static str,
        /// Where.
        address: u64,
        /// The cause.
        #[source]
        source: GuestMemoryError,
    },

    /// The file has no bytes in it.
    #[error("{part}: the file is empty")]
    Empty {
        /// The file, named by a part of it.
        part: Part,
    },
    /// The file is no kernel.
    #[error("kernel: neither an ELF file nor a bzImage, but {0}")]
    NotAKernel(Kind),
    /// A part lies, or would lie, beyond the end of its file.
    #[error("{part} is at bytes {start:#x}..{end:#x} of a file that ends at {file:#x}")]
    Truncated {
        /// What is cut off.
        part: Part,
        /// Its first byte.
        start: u64,
        /// The byte after its last; saturated when it does not fit 64 bits.
        end: u64,
        /// The length of the file in bytes.
        file: u64,
    },
    /// A header field has a value this loader, or any, can do nothing with.
    #[error("{part}: {field} is {found:#x}, not {expected}")]
    Field {
        /// The header.
        part: Part,
        /// The field's name in the specification.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it should have been.
        expected: &'static str,
    },

    /// No program header has the type PT_LOAD and a size.
    #[error("kernel: none of {0} program headers loads anything")]
    NothingToLoad(usize),
    /// A segment has more bytes in the file than in memory.
    #[error("{part} has {file_size:#x} bytes in the file but {memory_size:#x} in memory")]
    SegmentSizes {
        /// The segment.
        part: Part,
        /// `p_filesz`.
        file_size: u64,
        /// `p_memsz`.
        memory_size: u64,
    },
    /// Something would be loaded where firmware and boot structures live.
    #[error("{part} loads {start:#x}..{end:#x}, below the first MiB's end at {lowest:#x}")]
    TooLow {
        /// What would be.
        part: Part,
        /// Its first guest address.
        start: u64,
        /// The address after its last.
        end: u64,
        /// The lowest address allowed.
        lowest: u64,
    },
    /// Something would be loaded where there is no RAM below 4 GiB.
    #[error("{part} loads {start:#x}..{end:#x}, beyond the end of RAM below 4 GiB at {ram_end:#x}")]
    OutsideRam {
        /// What would be.
        part: Part,
        /// Its first guest address.
        start: u64,
        /// The address after its last; saturated when it does not fit 64 bits.
        end: u64,
        /// Where RAM below 4 GiB ends.
        ram_end: u64,
    },
    /// Two segments want the same memory.
    #[error("{part} loads from {start:#x}, inside {other}, which ends at {end:#x}", other = OtherSegment(.other))]
    SegmentsOverlap {
        /// The higher of the two.
        part: Part,
        /// Its first guest address.
        start: u64,
        /// The lower of the two.
        other: Part,
        /// The address after the lower one's last.
        end: u64,
    },
    /// The kernel would be entered where nothing has been loaded.
    #[error("kernel: {what} {entry:#x} is in nothing that is loaded")]
    EntryOutside {
        /// Which entry point.
        what: &'static str,
        /// Its guest-physical address.
        entry: u64,
    },

    /// A note segment is larger than any kernel needs.
    #[error("{part} has {size} bytes of notes, more than the {limit} that are looked through")]
    NotesTooLarge {
        /// The segment.
        part: Part,
        /// Its size in the file, in bytes.
        size: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// A note runs past the end of its segment.
    #[error("{part}: the note at byte {offset} of its notes runs past their end at {size}")]
    NoteTruncated {
        /// The segment.
        part: Part,
        /// Where in the segment the note starts.
        offset: usize,
        /// The segment's size in bytes.
        size: usize,
    },
    /// The note with the PVH entry point is not 4 or 8 bytes long.
    #[error("{part}: the PVH entry note holds {size} bytes, not 4 or 8")]
    PvhNoteSize {
        /// The segment with the note.
        part: Part,
        /// The size of the note's description in bytes.
        size: usize,
    },
    /// PVH was asked for and the kernel has no such entry.
    #[error("kernel: {0} without a PVH entry point, which was asked for")]
    NoPvhEntry(&'static str),

    /// The initial RAM disk does not fit into what the kernel leaves of RAM below 4 GiB.
    #[error("initrd: {size} bytes, more than the {room} there is room for")]
    InitrdTooLarge {
        /// Size of the file in bytes.
        size: u64,
        /// The largest that would fit, in bytes.
        room: u64,
    },
}

/// The same segment without the leading "kernel:", for the middle of a sentence.
struct OtherSegment<'a>(&'a Part);

impl fmt::Display for OtherSegment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Part::Segment { number, .. } => write!(f, "program header {number}"),
            other => other.fmt(f),
        }
    }
}

impl Error {
    /// For `map_err` on a write of `what` to guest memory.
    pub(crate) fn write(what: &'static str, address: GuestAddress) -> impl FnOnce(GuestMemoryError) -> Error {
        move |source| Error::Write { what, address: address.0, source }
    }
}

/// An error unless the value `found` in a header's `field` `fits`.
pub(crate) fn check_field(
    part: Part,
    field: &'static str,
    found: u64,
    fits: bool,
    expected: &'static str,
) -> Result<(), Error> {
    if fits { Ok(()) } else { Err(Error::Field { part, field, found, expected }) }
}
