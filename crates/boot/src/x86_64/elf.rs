//! Uncompressed kernels: ELF files, entered by the 64-bit boot protocol or by PVH.
//!
//! System V ABI, "ELF Header" and "Program Header". Segments are loaded at their physical addresses, and nothing is
//! relocated: a kernel of type ET_DYN must be content with the addresses it was linked for.

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_params};

use super::fields::Fields;
use super::ram::Ram;
use super::tables::MAPPED;
use super::{Kernel, Segment, note};
use crate::error::{Error, Part, check_field};
use crate::image::{Image, Source};
use crate::span::Span;
use crate::{PreferredProtocol, Protocol};

const HEADER_SIZE: u64 = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;
/// The most program headers that are looked at; kernels have about five.
const PROGRAM_HEADERS_MAX: u16 = 64;

const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EV_CURRENT: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Reads and checks an ELF kernel; `head` is the beginning of the file.
pub(super) fn open<R: Image>(
    source: &mut Source<R>,
    head: &[u8],
    ram: &Ram,
    preference: PreferredProtocol,
) -> Result<Kernel, Error> {
    let truncated =
        Error::Truncated { part: Part::ElfHeader, start: 0, end: HEADER_SIZE, file: source.length() };
    let header = Header::parse(head).ok_or(truncated)?;
    header.check()?;
    let program_headers = header.program_headers(source)?;
    let segments = segments(source, &program_headers, ram)?;
    let start = segments.iter().map(|segment| segment.memory.start).min();
    let end = segments.iter().map(|segment| segment.memory.end).max();
    let (Some(start), Some(end)) = (start, end) else {
        return Err(Error::NothingToLoad(program_headers.len()));
    };

    let pvh_entry = match preference {
        PreferredProtocol::Linux64 => None,
        PreferredProtocol::Auto | PreferredProtocol::Pvh => pvh_entry(source, &program_headers)?,
    };
    let (protocol, what, entry) = match pvh_entry {
        Some(entry) => (Protocol::Pvh, "PVH entry point", entry),
        None if preference == PreferredProtocol::Pvh => return Err(Error::NoPvhEntry("an ELF file")),
        None => (Protocol::Linux64, "entry point", header.entry),
    };
    if !segments.iter().any(|segment| (segment.memory.start..segment.memory.end).contains(&entry)) {
        return Err(Error::EntryOutside { what, entry });
    }

    let mut zero_page = Box::new(boot_params::default());
    zero_page.hdr.boot_flag = 0xaa55;
    zero_page.hdr.header = u32::from_le_bytes(*b"HdrS");
    zero_page.hdr.version = 0x20f;
    zero_page.hdr.loadflags = LOADED_HIGH;
    Ok(Kernel {
        protocol,
        entry,
        segments,
        memory: Span { start, end },
        zero_page,
        initrd_limit: MAPPED,
        // A bzImage says in its header what it takes; an ELF file has no place for it.
        cmdline_limit: None,
    })
}

/// The fields of the ELF header that are used.
struct Header {
    class: u8,
    data: u8,
    version: u8,
    kind: u16,
    machine: u16,
    entry: u64,
    phoff: u64,
    phentsize: u16,
    phnum: u16,
}

impl Header {
    /// `None` when `head` is too short.
    fn parse(head: &[u8]) -> Option<Header> {
        let mut fields = Fields(head);
        let [_, _, _, _, class, data, version, ..] = fields.bytes::<16>()?;
        let (kind, machine, _version) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let (entry, phoff, _shoff) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (_flags, _ehsize) = (fields.u32()?, fields.u16()?);
        let (phentsize, phnum) = (fields.u16()?, fields.u16()?);
        Some(Header { class, data, version, kind, machine, entry, phoff, phentsize, phnum })
    }

    fn check(&self) -> Result<(), Error> {
        let check = |field, found, fits, expected| check_field(Part::ElfHeader, field, found, fits, expected);
        check("EI_CLASS", self.class.into(), self.class == ELFCLASS64, "2, 64 bits")?;
        check("EI_DATA", self.data.into(), self.data == ELFDATA2LSB, "1, little endian")?;
        check("EI_VERSION", self.version.into(), self.version == EV_CURRENT, "1")?;
        let loadable = matches!(self.kind, ET_EXEC | ET_DYN);
        check("e_type", self.kind.into(), loadable, "2 or 3, an executable")?;
        check("e_machine", self.machine.into(), self.machine == EM_X86_64, "0x3e, x86_64")?;
        let fits = self.phentsize == PROGRAM_HEADER_SIZE;
        check("e_phentsize", self.phentsize.into(), fits, "0x38")?;
        let fits = (1..=PROGRAM_HEADERS_MAX).contains(&self.phnum);
        check("e_phnum", self.phnum.into(), fits, "1 to 0x40")
    }

    fn program_headers<R: Image>(&self, source: &mut Source<R>) -> Result<Vec<ProgramHeader>, Error> {
        let size = usize::from(self.phnum).saturating_mul(PROGRAM_HEADER_SIZE.into());
        let mut table = vec![0; size];
        source.read(Part::ProgramHeaders, self.phoff, &mut table)?;
        let of = usize::from(self.phnum);
        let numbered = (1..).zip(table.chunks_exact(PROGRAM_HEADER_SIZE.into()));
        Ok(numbered
            .filter_map(|(number, entry)| ProgramHeader::parse(Part::Segment { number, of }, entry))
            .collect())
    }
}

/// The fields of a program header that are used.
struct ProgramHeader {
    part: Part,
    kind: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

impl ProgramHeader {
    /// `None` when `entry` is too short.
    fn parse(part: Part, entry: &[u8]) -> Option<ProgramHeader> {
        let mut fields = Fields(entry);
        let (kind, _flags) = (fields.u32()?, fields.u32()?);
        let (offset, _vaddr, paddr) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (filesz, memsz, align) = (fields.u64()?, fields.u64()?, fields.u64()?);
        Some(ProgramHeader { part, kind, offset, paddr, filesz, memsz, align })
    }
}

/// What is to be loaded, lowest address first.
fn segments<R: Image>(
    source: &Source<R>,
    program_headers: &[ProgramHeader],
    ram: &Ram,
) -> Result<Vec<Segment>, Error> {
    let mut segments = Vec::new();
    for header in program_headers.iter().filter(|header| header.kind == PT_LOAD) {
        let part = header.part;
        if header.filesz > header.memsz {
            let (file_size, memory_size) = (header.filesz, header.memsz);
            return Err(Error::SegmentSizes { part, file_size, memory_size });
        }
        if header.memsz == 0 {
            continue;
        }
        source.check(part, header.offset, header.filesz)?;
        let memory = ram.check(part, header.paddr, header.memsz)?;
        segments.push(Segment { part, offset: header.offset, file_size: header.filesz, memory });
    }
    segments.sort_by_key(|segment| segment.memory.start);
    for (lower, higher) in segments.iter().zip(segments.iter().skip(1)) {
        let (start, end) = (higher.memory.start, lower.memory.end);
        if start < end {
            return Err(Error::SegmentsOverlap { part: higher.part, start, other: lower.part, end });
        }
    }
    Ok(segments)
}

/// The PVH entry point, from the first note segment that has one.
fn pvh_entry<R: Image>(source: &mut Source<R>, headers: &[ProgramHeader]) -> Result<Option<u64>, Error> {
    for &ProgramHeader { part, offset, filesz, align, .. } in
        headers.iter().filter(|header| header.kind == PT_NOTE)
    {
        if filesz > note::NOTES_MAX {
            return Err(Error::NotesTooLarge { part, size: filesz, limit: note::NOTES_MAX });
        }
        let mut notes = vec![0; filesz as usize];
        source.read(part, offset, &mut notes)?;
        if let Some(entry) = note::pvh_entry(part, &notes, align)? {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}
