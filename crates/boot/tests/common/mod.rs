//! Kernel images built by hand, and guest memory to load them into.
#![allow(dead_code)] // Each test file uses a part.

use std::io::Cursor;

use kindling_boot::{Error, Loaded, PreferredProtocol, Request, load};
use kindling_memory_layout::{Backing, Layout, build};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const MIB: u64 = 1 << 20;

pub const PT_LOAD: u32 = 1;
pub const PT_NOTE: u32 = 4;

/// Guest memory, and the layout it was built from.
pub struct Guest {
    pub layout: Layout,
    pub memory: GuestMemoryMmap,
}

impl Guest {
    pub fn new(ram: u64) -> Guest {
        let layout = Layout::new(ram, 46).unwrap();
        let memory = build(&layout, Backing::Anonymous { transparent_huge: false }).unwrap();
        Guest { layout, memory }
    }

    pub fn load(&self, kernel: &[u8]) -> Result<Loaded, Error> {
        self.load_request(request(kernel))
    }

    pub fn load_request(&self, request: Request<'_, Cursor<&[u8]>>) -> Result<Loaded, Error> {
        load(&self.memory, self.layout.ram(), request)
    }

    pub fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.read(address))
    }

    pub fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address))
    }

    /// The zero-terminated string at an address.
    pub fn string(&self, address: u64) -> String {
        let bytes: [u8; 4096] = self.read(address);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }
}

/// A request for a kernel alone.
pub fn request(kernel: &[u8]) -> Request<'_, Cursor<&[u8]>> {
    Request {
        kernel: Cursor::new(kernel),
        initrd: None,
        cmdline: "console=ttyS0",
        rsdp: None,
        protocol: PreferredProtocol::Auto,
    }
}

/// A program header with what it describes.
#[derive(Clone)]
pub struct Segment {
    pub kind: u32,
    pub paddr: u64,
    pub data: Vec<u8>,
    pub memsz: u64,
    pub align: u64,
}

impl Segment {
    pub fn load(paddr: u64, data: &[u8]) -> Segment {
        Segment { kind: PT_LOAD, paddr, data: data.to_vec(), memsz: data.len() as u64, align: 0x1000 }
    }

    pub fn notes(data: &[u8], align: u64) -> Segment {
        Segment { kind: PT_NOTE, align, ..Segment::load(0, data) }
    }
}

/// Offsets of ELF header and program header fields, for tests that spoil them.
pub const E_PHOFF: usize = 32;
pub const E_PHENTSIZE: usize = 54;
pub const E_PHNUM: usize = 56;
pub const P_OFFSET: usize = 8;
pub const P_PADDR: usize = 24;
pub const P_FILESZ: usize = 32;
pub const P_MEMSZ: usize = 40;

/// The file offset of a field of the program header `index`, counted from 0.
pub fn phdr(index: usize, field: usize) -> usize {
    64 + index * 56 + field
}

/// An ELF file: header, program headers, contents one after the other.
pub fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2_u16.to_le_bytes()); // ET_EXEC
    file.extend(62_u16.to_le_bytes()); // EM_X86_64
    file.extend(1_u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(64_u64.to_le_bytes()); // e_phoff
    file.extend(0_u64.to_le_bytes()); // e_shoff
    file.extend(0_u32.to_le_bytes());
    file.extend(64_u16.to_le_bytes()); // e_ehsize
    file.extend(56_u16.to_le_bytes()); // e_phentsize
    file.extend((segments.len() as u16).to_le_bytes());
    file.extend([0; 6]);
    let mut offset = 64 + 56 * segments.len() as u64;
    for segment in segments {
        file.extend(segment.kind.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for field in [
            offset,
            segment.paddr | 0xffff_ffff_8000_0000, // p_vaddr, which must not matter
            segment.paddr,
            segment.data.len() as u64,
            segment.memsz,
            segment.align,
        ] {
            file.extend(field.to_le_bytes());
        }
        offset += segment.data.len() as u64;
    }
    for segment in segments {
        file.extend(&segment.data);
    }
    file
}

/// A kernel of one page at 1 MiB without notes.
pub fn small_elf() -> Vec<u8> {
    elf(MIB, &[Segment::load(MIB, &[0xf4; 4096])])
}

/// A note, padded as `align` has it.
pub fn note(name: &[u8], kind: u32, description: &[u8], align: usize) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((name.len() as u32).to_le_bytes());
    note.extend((description.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    note.extend(name);
    note.resize(note.len().next_multiple_of(align), 0);
    note.extend(description);
    note.resize(note.len().next_multiple_of(align), 0);
    note
}

/// The note that holds the PVH entry point, as Linux writes it.
pub fn pvh_note(entry: u64) -> Vec<u8> {
    note(b"Xen\0", 18, &entry.to_le_bytes(), 4)
}

/// A kernel of one page at 1 MiB with the PVH entry point at its 16th byte.
pub fn pvh_elf() -> Vec<u8> {
    elf(MIB, &[Segment::load(MIB, &[0xf4; 4096]), Segment::notes(&pvh_note(MIB + 16), 4)])
}

/// Puts `bytes` into `file` at `offset`.
pub fn patch(mut file: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

/// A relocatable bzImage with two real-mode sectors besides the first and one page of protected-mode code, which wants to
/// be at 16 MiB with 8 MiB of room.
pub fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 3 * 512];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[2]); // setup_sects
    put(0x1f4, &256_u32.to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x6a]); // jump
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes()); // version
    put(0x211, &[0x01]); // loadflags
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1]); // relocatable_kernel
    put(0x236, &0x7f_u16.to_le_bytes()); // xloadflags
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &(16 * MIB).to_le_bytes()); // pref_address
    put(0x260, &(8 * MIB as u32).to_le_bytes()); // init_size
    put(0x268, &0x1234_5678_u32.to_le_bytes()); // kernel_info_offset
    file.extend([0xf4; 4096]);
    file
}
