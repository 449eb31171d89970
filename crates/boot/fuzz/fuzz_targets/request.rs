//! A valid ELF kernel with everything around it of any size: RAM ranges, segments, initial RAM disk, command line.

#![no_main]

use std::io::Cursor;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use kindling_boot::{PreferredProtocol, Request, load};
use kindling_memory_layout::Range;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
/// Two pieces of memory, below and at 4 GiB, so that addresses of both kinds occur.
const PIECES: [(u64, u64); 2] = [(0, 8 * MIB), (1 << 32, MIB)];

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    ram: Vec<(u32, u32)>,
    high_ram: bool,
    entry: u64,
    segments: Vec<Segment<'a>>,
    initrd_size: Option<u32>,
    cmdline: &'a str,
    rsdp: Option<u64>,
}

#[derive(Arbitrary, Debug)]
struct Segment<'a> {
    note: bool,
    paddr: u32,
    memsz: u32,
    align: u8,
    data: &'a [u8],
}

/// An initial RAM disk of up to 16 MiB.
static INITRD: [u8; 16 << 20] = [0; 16 << 20];

fuzz_target!(|input: Input<'_>| {
    static MEMORY: OnceLock<GuestMemoryMmap> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        let pieces = PIECES.map(|(start, size)| (GuestAddress(start), size as usize));
        GuestMemoryMmap::from_ranges(&pieces).unwrap_or_else(|_| std::process::abort())
    });
    // Ranges and addresses are kept near what is there, or hardly anything would load.
    let near = |value: u32| u64::from(value) % (10 * MIB);
    let mut ram: Vec<Range> =
        input.ram.iter().map(|&(start, size)| Range { start: near(start), size: near(size) }).collect();
    if ram.is_empty() {
        ram.push(Range { start: 0, size: 8 * MIB });
    }
    if input.high_ram {
        ram.push(Range { start: 1 << 32, size: MIB });
    }
    let kernel = elf(&input, near);
    let initrd = input.initrd_size.and_then(|size| INITRD.get(..size as usize % INITRD.len()));
    let request = Request {
        kernel: Cursor::new(kernel.as_slice()),
        initrd: initrd.map(Cursor::new),
        cmdline: input.cmdline,
        rsdp: input.rsdp.map(GuestAddress),
        protocol: PreferredProtocol::Auto,
    };
    let Ok(loaded) = load(memory, &ram, request) else { return };
    let in_ram =
        |start, end| ram.iter().any(|range| range.start <= start && end <= range.end() && end <= 1 << 32);
    assert!(loaded.entry.0 >= MIB && in_ram(loaded.entry.0, loaded.entry.0 + 1));
    assert!(loaded.entry < loaded.kernel_end);
    assert_eq!(loaded.initrd.is_some(), initrd.is_some());
    if let (Some(place), Some(initrd)) = (loaded.initrd, initrd) {
        assert!(place.start >= MIB && place.start.is_multiple_of(4096) && in_ram(place.start, place.end()));
        assert_eq!(place.size, initrd.len() as u64);
        for segment in input.segments.iter().filter(|segment| !segment.note && segment.size() > 0) {
            let start = near(segment.paddr);
            assert!(place.end() <= start || start + segment.size() <= place.start);
        }
    }
    // The command line arrived: it lies in low RAM, with its terminating zero.
    let mut cmdline = vec![0xff; input.cmdline.len() + 1];
    assert!(memory.read_slice(&mut cmdline, GuestAddress(0x1d00)).is_ok());
    assert!(cmdline.strip_suffix(&[0]) == Some(input.cmdline.as_bytes()));
});

impl Segment<'_> {
    fn size(&self) -> u64 {
        // At most 4 MiB beyond the file, to keep an iteration short.
        self.data.len() as u64 + u64::from(self.memsz) % (4 * MIB)
    }
}

fn elf(input: &Input<'_>, near: impl Fn(u32) -> u64) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let entry = input.segments.first().map_or(0, |segment| near(segment.paddr) + input.entry % 64);
    file.extend(entry.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 14]);
    file.extend(56_u16.to_le_bytes());
    file.extend((input.segments.len() as u16).to_le_bytes());
    file.extend([0; 6]);
    let mut offset = 64 + 56 * input.segments.len() as u64;
    for segment in &input.segments {
        file.extend(if segment.note { 4_u64 } else { 1 }.to_le_bytes());
        let size = segment.data.len() as u64;
        for field in [offset, 0, near(segment.paddr), size, segment.size(), segment.align.into()] {
            file.extend(field.to_le_bytes());
        }
        offset += size;
    }
    for segment in &input.segments {
        file.extend(segment.data);
    }
    file
}
