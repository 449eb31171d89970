//! x86_64: kernel images, boot parameters, tables and registers.

use linux_loader::loader::bootparam::boot_params;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::{Error, Part};
use crate::image::{Image, Kind, Source};
use crate::span::Span;
use crate::{PreferredProtocol, Protocol};

mod bzimage;
mod elf;
mod fields;
pub mod layout;
mod note;
pub(crate) mod params;
pub(crate) mod ram;
pub(crate) mod registers;
mod tables;

use ram::Ram;

/// A part of a kernel file and the memory it goes to.
pub(crate) struct Segment {
    pub part: Part,
    /// Where it is in the file, in bytes.
    pub offset: u64,
    /// How much of it the file has, in bytes.
    pub file_size: u64,
    /// All it takes of memory; what the file does not have is zero.
    pub memory: Span,
}

/// A kernel file that has been read and checked, but not loaded.
pub(crate) struct Kernel {
    pub protocol: Protocol,
    pub entry: u64,
    pub segments: Vec<Segment>,
    /// All the memory that must be left to the kernel, loaded or not.
    pub memory: Span,
    /// A zero page with what the kernel file puts there itself, its setup header.
    pub zero_page: Box<boot_params>,
    /// No byte of the initial RAM disk may be at or past this address.
    pub initrd_limit: u64,
    /// Longest command line the kernel says it takes, without the terminating zero, in bytes.
    pub cmdline_limit: Option<usize>,
}

impl Kernel {
    /// Reads and checks everything about a kernel but the contents of its segments.
    pub fn open<R: Image>(
        source: &mut Source<R>,
        ram: &Ram,
        preference: PreferredProtocol,
    ) -> Result<Kernel, Error> {
        let head = source.head()?;
        match Kind::of(&head) {
            Kind::Elf => elf::open(source, &head, ram, preference),
            Kind::BzImage => bzimage::open(source, &head, ram, preference),
            other => Err(Error::NotAKernel(other)),
        }
    }

    /// Copies the kernel into guest memory.
    pub fn load<M, R>(&self, source: &mut Source<R>, memory: &M) -> Result<(), Error>
    where
        M: GuestMemoryBackend + ?Sized,
        R: Image,
    {
        for segment in &self.segments {
            let Span { start, end } = segment.memory;
            source.copy(segment.part, segment.offset, segment.file_size, memory, start)?;
            zero(memory, Span { start: start.saturating_add(segment.file_size), end })?;
        }
        Ok(())
    }
}

/// Fills memory with zeroes.
fn zero<M: GuestMemoryBackend + ?Sized>(memory: &M, span: Span) -> Result<(), Error> {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut address = span.start;
    while address < span.end {
        let size = span.end.saturating_sub(address).min(ZEROES.len() as u64);
        let zeroes = ZEROES.get(..size as usize).unwrap_or(&ZEROES);
        let at = GuestAddress(address);
        memory.write_slice(zeroes, at).map_err(Error::write("a segment's zeroes", at))?;
        address = address.saturating_add(size);
    }
    Ok(())
}

/// Writes everything but the kernel and the initial RAM disk: command line, boot parameters, tables.
pub(crate) fn write_structures<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    kernel: Kernel,
    boot: &params::Parameters<'_>,
) -> Result<GuestAddress, Error> {
    params::write_cmdline(memory, boot.cmdline)?;
    tables::write(memory, kernel.protocol, boot.ram)?;
    match kernel.protocol {
        Protocol::Linux64 => params::write_zero_page(memory, kernel.zero_page, boot),
        Protocol::Pvh => params::write_start_info(memory, boot),
    }
}
