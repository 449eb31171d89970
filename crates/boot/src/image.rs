//! Image files: reading them with every offset checked against the file's length, and telling what a file is from its
//! first bytes.

use std::fmt;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use vm_memory::{GuestAddress, GuestMemoryBackend, ReadVolatile};

use crate::error::{Error, Part};

/// What a kernel or an initial RAM disk is read from: `&File`, `File`, `Cursor<&[u8]>`.
///
/// Files are read from beginning to end whatever their position is, and are left at an unspecified one.
pub trait Image: Read + Seek + ReadVolatile {}

impl<T: Read + Seek + ReadVolatile> Image for T {}

/// How much of a kernel file is needed to tell what it is: as far as a bzImage's setup header can reach.
pub(crate) const HEAD_SIZE: usize = 0x290;

/// An image file of known length.
pub(crate) struct Source<R> {
    reader: R,
    length: u64,
}

impl<R: Image> Source<R> {
    /// Takes a file that must not be empty; `part` names it in errors.
    pub fn new(reader: R, part: Part) -> Result<Source<R>, Error> {
        let mut source = Source { reader, length: 0 };
        // Read before asking for the length: a directory has one on some file systems and cannot be read on any.
        source.seek(part, 0)?;
        match source.reader.read_exact(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(Error::Empty { part }),
            result => result.map_err(|source| Error::Read { part, offset: 0, source })?,
        }
        source.length =
            source.reader.seek(SeekFrom::End(0)).map_err(|source| Error::Length { part, source })?;
        // Character devices have bytes but no length.
        if source.length == 0 { Err(Error::Empty { part }) } else { Ok(source) }
    }

    /// In bytes; at least 1.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// That `size` bytes at `offset` are inside the file.
    pub fn check(&self, part: Part, offset: u64, size: u64) -> Result<(), Error> {
        let end = offset.saturating_add(size);
        if end > self.length || offset.checked_add(size).is_none() {
            return Err(Error::Truncated { part, start: offset, end, file: self.length });
        }
        Ok(())
    }

    fn seek(&mut self, part: Part, offset: u64) -> Result<(), Error> {
        match self.reader.seek(SeekFrom::Start(offset)) {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Read { part, offset, source }),
        }
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&mut self, part: Part, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.check(part, offset, buffer.len() as u64)?;
        self.seek(part, offset)?;
        self.reader.read_exact(buffer).map_err(|source| Error::Read { part, offset, source })
    }

    /// Reads `size` bytes from `offset` straight into guest memory at `address`.
    pub fn copy<M>(
        &mut self,
        part: Part,
        offset: u64,
        size: u64,
        memory: &M,
        address: u64,
    ) -> Result<(), Error>
    where
        M: GuestMemoryBackend + ?Sized,
    {
        self.check(part, offset, size)?;
        self.seek(part, offset)?;
        // Guest memory fits the address space of this process, and what does not fit guest memory fails below.
        let count = usize::try_from(size).unwrap_or(usize::MAX);
        for slice in memory.get_slices(GuestAddress(address), count) {
            let mut slice = slice.map_err(|source| Error::Write { what: "an image", address, source })?;
            self.reader.read_exact_volatile(&mut slice).map_err(|source| Error::Copy {
                part,
                offset,
                size,
                address,
                source,
            })?;
        }
        Ok(())
    }

    /// The first [`HEAD_SIZE`] bytes, or the whole file if it is shorter.
    pub fn head(&mut self) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(self.length).unwrap_or(HEAD_SIZE).min(HEAD_SIZE);
        let mut head = vec![0; size];
        self.read(Part::Kernel, 0, &mut head)?;
        Ok(head)
    }
}

/// What a file is, to judge by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// An ELF file, of whatever class and machine.
    Elf,
    /// A Linux/x86 boot image with a setup header.
    BzImage,
    /// Compressed by the program named.
    Compressed(&'static str),
    /// A PE/COFF executable that is no Linux/x86 boot image.
    Pe,
    /// A cpio archive, as an initial RAM disk is.
    Cpio,
    /// Text.
    Text,
    /// Nothing but zeroes, as far as was looked.
    Zeroes,
    /// None of these.
    Unknown,
}

impl Kind {
    /// `head` is the beginning of the file: [`HEAD_SIZE`] bytes, or fewer if it is shorter.
    pub(crate) fn of(head: &[u8]) -> Kind {
        const COMPRESSED: [(&[u8], &str); 6] = [
            (b"\x1f\x8b", "gzip"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"\x02\x21\x4c\x18", "lz4"),
            (b"BZh", "bzip2"),
        ];
        // Linux/x86 boot images have been PE files too for as long as they have had an EFI stub: look for them first.
        if head.starts_with(b"\x7fELF") {
            Kind::Elf
        } else if head.get(0x202..).is_some_and(|rest| rest.starts_with(b"HdrS")) {
            Kind::BzImage
        } else if let Some((_, program)) = COMPRESSED.iter().find(|(magic, _)| head.starts_with(magic)) {
            Kind::Compressed(program)
        } else if head.starts_with(b"MZ") {
            Kind::Pe
        } else if head.starts_with(b"07070") {
            Kind::Cpio
        } else if head.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r')) {
            Kind::Text
        } else if head.iter().all(|byte| *byte == 0) {
            Kind::Zeroes
        } else {
            Kind::Unknown
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Elf => f.write_str("an ELF file"),
            Kind::BzImage => f.write_str("a bzImage"),
            Kind::Compressed(program) => write!(f, "a file compressed by {program}: decompress it first"),
            Kind::Pe => f.write_str("a PE executable"),
            Kind::Cpio => f.write_str("a cpio archive: is it the initrd?"),
            Kind::Text => f.write_str("text"),
            Kind::Zeroes => f.write_str("zeroes"),
            Kind::Unknown => f.write_str("something unknown"),
        }
    }
}
