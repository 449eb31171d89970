//! What goes with a kernel: initial RAM disk, command line, memory map, boot parameters; and files that are no kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests are outside them.

mod common;

use std::fs::File;
use std::io::{Cursor, Write};

use common::*;
use kindling_boot::{CMDLINE_MAX, Error, PreferredProtocol, Request, load};
use kindling_memory_layout::{Layout, Range};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ZERO_PAGE: u64 = 0x7000;
const START_INFO: u64 = 0x1040;
const CMDLINE: u64 = 0x1d00;
const EBDA: u64 = 0x9fc00;
const GIB: u64 = 1 << 30;

/// Both kinds of boot parameters for the same request, each in its own guest.
fn both(ram: u64, request: impl Fn(&'static [u8]) -> Request<'static, Cursor<&'static [u8]>>) -> [Guest; 2] {
    [small_elf(), pvh_elf()].map(|kernel| {
        let guest = Guest::new(ram);
        guest.load_request(request(kernel.leak())).unwrap();
        guest
    })
}

/// The memory map in the zero page.
fn e820(guest: &Guest) -> Vec<(u64, u64, u32)> {
    let [entries] = guest.read(ZERO_PAGE + 0x1e8);
    (0..u64::from(entries))
        .map(|entry| ZERO_PAGE + 0x2d0 + entry * 20)
        .map(|at| (guest.u64(at), guest.u64(at + 8), guest.u32(at + 16)))
        .collect()
}

/// The memory map the start info points to.
fn memmap(guest: &Guest) -> Vec<(u64, u64, u32)> {
    let table = guest.u64(START_INFO + 40);
    (0..u64::from(guest.u32(START_INFO + 48)))
        .map(|entry| table + entry * 24)
        .map(|at| (guest.u64(at), guest.u64(at + 8), guest.u32(at + 16)))
        .collect()
}

#[test]
fn the_memory_map_leaves_firmware_memory_out_and_divides_ram_at_the_gap() {
    let [linux, pvh] = both(5 * GIB, request);
    let expected = [(0, EBDA, 1), (EBDA, MIB - EBDA, 2), (MIB, 3 * GIB - MIB, 1), (4 * GIB, 2 * GIB, 1)];
    assert_eq!(e820(&linux), expected);
    assert_eq!(memmap(&pvh), expected);
}

#[test]
fn the_memory_map_of_a_small_guest_has_no_ram_above_4_gib() {
    let [linux, pvh] = both(16 * MIB, request);
    let expected = [(0, EBDA, 1), (EBDA, MIB - EBDA, 2), (MIB, 15 * MIB, 1)];
    assert_eq!(e820(&linux), expected);
    assert_eq!(memmap(&pvh), expected);
}

#[test]
fn boot_parameters_point_to_command_line_and_acpi_tables() {
    let rsdp = Some(GuestAddress(0xe_0000));
    let [linux, pvh] = both(16 * MIB, |kernel| Request { rsdp, ..request(kernel) });
    assert_eq!(linux.u64(ZERO_PAGE + 0x70), 0xe_0000);
    assert_eq!(linux.string(linux.u32(ZERO_PAGE + 0x228).into()), "console=ttyS0");
    assert_eq!(linux.u32(ZERO_PAGE + 0xc8), 0, "ext_cmd_line_ptr");
    assert_eq!(linux.read::<1>(ZERO_PAGE + 0x210), [0xff], "type_of_loader");
    assert_eq!(linux.read::<4>(ZERO_PAGE + 0x202), *b"HdrS");

    assert_eq!(pvh.u32(START_INFO), 0x336e_c578, "magic");
    assert_eq!(pvh.u32(START_INFO + 4), 1, "version");
    assert_eq!(pvh.u32(START_INFO + 8), 0, "flags");
    assert_eq!(pvh.u64(START_INFO + 32), 0xe_0000);
    assert_eq!(pvh.string(pvh.u64(START_INFO + 24)), "console=ttyS0");
}

#[test]
fn without_initrd_and_acpi_tables_their_fields_are_zero() {
    let [linux, pvh] = both(16 * MIB, request);
    assert_eq!(linux.u64(ZERO_PAGE + 0x70), 0);
    assert_eq!((linux.u32(ZERO_PAGE + 0x218), linux.u32(ZERO_PAGE + 0x21c)), (0, 0));
    assert_eq!((pvh.u32(START_INFO + 12), pvh.u64(START_INFO + 16), pvh.u64(START_INFO + 32)), (0, 0, 0));
}

#[test]
fn the_initrd_lies_at_the_end_of_ram_and_the_kernel_is_told() {
    let initrd: &[u8] = &[0xee; 5000];
    let [linux, pvh] =
        both(16 * MIB, |kernel| Request { initrd: Some(Cursor::new(initrd)), ..request(kernel) });
    let start = 16 * MIB - 0x2000;
    for guest in [&linux, &pvh] {
        assert_eq!(guest.read::<5000>(start), [0xee; 5000]);
        assert_eq!(guest.read::<1>(start + 5000), [0]);
    }
    assert_eq!(u64::from(linux.u32(ZERO_PAGE + 0x218)), start);
    assert_eq!(linux.u32(ZERO_PAGE + 0x21c), 5000);
    assert_eq!((linux.u32(ZERO_PAGE + 0xc0), linux.u32(ZERO_PAGE + 0xc4)), (0, 0));
    assert_eq!(pvh.u32(START_INFO + 12), 1, "nr_modules");
    let module = pvh.u64(START_INFO + 16);
    assert_eq!((pvh.u64(module), pvh.u64(module + 8)), (start, 5000));
}

#[test]
fn the_initrd_stays_below_the_gap_although_there_is_ram_above() {
    let guest = Guest::new(5 * GIB);
    let kernel = small_elf();
    let request = Request { initrd: Some(Cursor::new(&[1_u8; 4096][..])), ..request(&kernel) };
    let place = guest.load_request(request).unwrap().initrd.unwrap();
    assert_eq!(place.end(), 3 * GIB);
}

#[test]
fn the_initrd_goes_below_a_kernel_at_the_end_of_ram() {
    let guest = Guest::new(16 * MIB);
    let kernel = elf(8 * MIB, &[Segment { memsz: 8 * MIB - 0x800, ..Segment::load(8 * MIB, &[0xf4]) }]);
    let request = Request { initrd: Some(Cursor::new(&[1_u8; 4096][..])), ..request(&kernel) };
    let place = guest.load_request(request).unwrap().initrd.unwrap();
    assert_eq!((place.start, place.size), (8 * MIB - 4096, 4096));
}

#[test]
fn an_initrd_that_fills_the_room_loads_and_a_larger_one_is_refused() {
    let guest = Guest::new(4 * MIB);
    let kernel = small_elf();
    let with = |initrd| Request { initrd: Some(Cursor::new(initrd)), ..request(&kernel) };
    let room = 3 * MIB as usize - 4096;
    let initrd = vec![0xee; room + 1];
    let place = guest.load_request(with(&initrd[..room])).unwrap().initrd.unwrap();
    assert_eq!(place.start, MIB + 4096);
    assert_eq!(
        guest.load_request(with(&initrd)).unwrap_err().to_string(),
        format!("initrd: {} bytes, more than the {room} there is room for", room + 1)
    );
    assert_eq!(guest.load_request(with(&[])).unwrap_err().to_string(), "initrd: the file is empty");
}

#[test]
fn an_empty_command_line_is_one() {
    let guest = Guest::new(16 * MIB);
    guest.memory.write_slice(b"left over", GuestAddress(CMDLINE)).unwrap();
    guest.load_request(Request { cmdline: "", ..request(&small_elf()) }).unwrap();
    assert_eq!(guest.string(guest.u32(ZERO_PAGE + 0x228).into()), "");
}

#[test]
fn the_longest_command_line_arrives_whole_and_a_longer_one_is_refused() {
    let guest = Guest::new(16 * MIB);
    let longest = "x".repeat(CMDLINE_MAX - 1);
    guest.load_request(Request { cmdline: &longest, ..request(&small_elf()) }).unwrap();
    assert_eq!(guest.string(guest.u32(ZERO_PAGE + 0x228).into()), longest);
    let too_long = "x".repeat(CMDLINE_MAX);
    assert_eq!(
        guest.load_request(Request { cmdline: &too_long, ..request(&small_elf()) }).unwrap_err().to_string(),
        "command line: 4096 bytes, more than the 4095 this kernel takes"
    );
}

#[test]
fn control_characters_in_the_command_line_are_refused() {
    let guest = Guest::new(16 * MIB);
    for (cmdline, message) in [
        ("quiet\0", "command line: control character 0x00 at byte 5"),
        ("\nquiet", "command line: control character 0x0a at byte 0"),
        ("ü\x7f", "command line: control character 0x7f at byte 2"),
    ] {
        let kernel = small_elf();
        let request = Request { cmdline, ..request(&kernel) };
        assert_eq!(guest.load_request(request).unwrap_err().to_string(), message);
    }
}

#[test]
fn what_a_file_seems_to_be_is_said() {
    let guest = Guest::new(16 * MIB);
    for (file, kind) in [
        (&b"\x1f\x8b\x08\0"[..], "a file compressed by gzip: decompress it first"),
        (b"\xfd7zXZ\0\0", "a file compressed by xz: decompress it first"),
        (b"\x28\xb5\x2f\xfd\0", "a file compressed by zstd: decompress it first"),
        (b"\x04\x22\x4d\x18\0", "a file compressed by lz4: decompress it first"),
        (b"MZ\0\0", "a PE executable"),
        (b"070701000", "a cpio archive: is it the initrd?"),
        (b"#!/bin/sh\n", "text"),
        (&[0; 1024], "zeroes"),
        (b"\x01\x02", "something unknown"),
    ] {
        assert_eq!(
            guest.load(file).unwrap_err().to_string(),
            format!("kernel: neither an ELF file nor a bzImage, but {kind}")
        );
    }
    assert_eq!(guest.load(b"").unwrap_err().to_string(), "kernel: the file is empty");
}

#[test]
fn files_are_read_from_their_beginning_and_directories_not_at_all() {
    let guest = Guest::new(16 * MIB);
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&small_elf()).unwrap(); // and leaves the position at the end
    let directory = File::open("/").unwrap();
    let request = |kernel, initrd| Request {
        kernel,
        initrd,
        cmdline: "",
        rsdp: None,
        protocol: PreferredProtocol::Auto,
    };
    let ram = guest.layout.ram();
    load(&guest.memory, ram, request(&kernel, Some(&kernel))).unwrap();
    assert_eq!(guest.read::<4096>(MIB), [0xf4; 4096]);
    let error = load(&guest.memory, ram, request(&directory, None)).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
    let error = load(&guest.memory, ram, request(&kernel, Some(&directory))).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn ram_that_is_not_like_a_pcs_is_refused() {
    let guest = Guest::new(16 * MIB);
    let refused = |ram: &[(u64, u64)]| {
        let ram: Vec<Range> = ram.iter().map(|&(start, size)| Range { start, size }).collect();
        match load(&guest.memory, &ram, request(&small_elf())) {
            Err(Error::Ram { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&[]), "there is none");
    for first in [(MIB, MIB), (0, MIB), (4096, 8 * MIB)] {
        assert_eq!(refused(&[first]), "the first range must reach from 0 past 1 MiB");
    }
    assert_eq!(refused(&[(0, 32 * MIB)]), "it is not in guest memory");
    assert_eq!(refused(&[(0, 4 * MIB), (u64::MAX, 2)]), "it passes the end of the address space");
    for second in [(2 * MIB, MIB), (0, 16 * MIB), (8 * MIB, 0)] {
        assert_eq!(
            refused(&[(0, 4 * MIB), second]),
            "ranges must be in ascending order and neither be empty nor overlap"
        );
    }
    let mut many = vec![(0, 2 * MIB)];
    many.extend((0..125).map(|n| (2 * MIB + n * 8192, 4096)));
    assert_eq!(refused(&many), "there are too many for the memory map");
}

#[test]
fn as_many_ram_ranges_as_are_allowed_fit_both_memory_maps() {
    let mut ram = vec![Range { start: 0, size: 2 * MIB }];
    ram.extend((0..124).map(|n| Range { start: 2 * MIB + n * 8192, size: 4096 }));
    for kernel in [small_elf(), pvh_elf()] {
        let guest = Guest::new(16 * MIB);
        load(&guest.memory, &ram, request(&kernel)).unwrap();
        let map = if kernel == small_elf() { e820(&guest) } else { memmap(&guest) };
        assert_eq!(map.len(), 127);
        assert_eq!(map[126], (2 * MIB + 123 * 8192, 4096, 1));
    }
}

#[test]
fn memory_in_many_pieces_is_loaded_across() {
    let pieces: Vec<_> = (0..16).map(|n| (GuestAddress(n * MIB), MIB as usize)).collect();
    let memory = GuestMemoryMmap::<()>::from_ranges(&pieces).unwrap();
    let segment = Segment { memsz: 3 * MIB, ..Segment::load(MIB + 0x8_0000, &[0xf4; 2 << 20]) };
    let kernel = elf(MIB + 0x8_0000, &[segment]);
    let layout = Layout::new(16 * MIB, 46).unwrap();
    load(&memory, layout.ram(), request(&kernel)).unwrap();
    let mut loaded = vec![0; 2 << 20];
    memory.read_slice(&mut loaded, GuestAddress(MIB + 0x8_0000)).unwrap();
    assert!(loaded.iter().all(|byte| *byte == 0xf4));
}

proptest! {
    #[test]
    fn an_initrd_never_meets_the_kernel_and_never_leaves_ram(
        ram in 2_u64..12,
        start in 0x100_u64..0xc00,
        pages in 1_u64..0x400,
        size in 1_usize..4 << 20,
    ) {
        let guest = Guest::new(ram * MIB);
        let (start, end) = (start << 12, (start + pages) << 12);
        let kernel = elf(start, &[Segment { memsz: end - start, ..Segment::load(start, &[0xf4]) }]);
        let initrd = vec![0xee; size];
        let request = Request { initrd: Some(Cursor::new(&initrd[..])), ..request(&kernel) };
        let size = size as u64;
        let room = (ram * MIB).saturating_sub(end).max(start - MIB);
        match guest.load_request(request) {
            Ok(loaded) => {
                let place = loaded.initrd.unwrap();
                prop_assert_eq!(place.size, size);
                prop_assert!(place.start % 4096 == 0 && place.start >= MIB && place.end() <= ram * MIB);
                prop_assert!(place.end() <= start || place.start >= end);
                prop_assert_eq!(guest.read::<1>(start), [0xf4]);
            }
            Err(Error::InitrdTooLarge { room: said, .. }) => {
                prop_assert!(size > room && said == room);
            }
            Err(Error::OutsideRam { .. }) => prop_assert!(end > ram * MIB),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
