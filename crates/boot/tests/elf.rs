//! ELF kernels: what is loaded where, which entry is used, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests are outside them.

mod common;

use common::*;
use kindling_boot::{PreferredProtocol, Protocol, Request, registers};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// The message for a kernel that must be refused.
fn refusal(kernel: &[u8]) -> String {
    Guest::new(16 * MIB).load(kernel).expect_err("loaded").to_string()
}

#[test]
fn segments_are_loaded_at_their_physical_addresses_in_any_order() {
    let guest = Guest::new(16 * MIB);
    let kernel =
        elf(3 * MIB + 8, &[Segment::load(3 * MIB, b"the higher one"), Segment::load(MIB, b"the lower one")]);
    let loaded = guest.load(&kernel).unwrap();
    assert_eq!(&guest.read::<14>(3 * MIB), b"the higher one");
    assert_eq!(&guest.read::<13>(MIB), b"the lower one");
    assert_eq!(loaded.entry, GuestAddress(3 * MIB + 8));
    assert_eq!(loaded.kernel_end, GuestAddress(3 * MIB + 14));
    assert_eq!(loaded.protocol, Protocol::Linux64);
}

#[test]
fn memory_beyond_a_segments_file_contents_is_zeroed_and_no_more() {
    let guest = Guest::new(16 * MIB);
    guest.memory.write_slice(&[0xaa; 0x8000], GuestAddress(MIB)).unwrap();
    let segment = Segment { memsz: 0x5003, ..Segment::load(MIB, &[0xf4; 5]) };
    let loaded = guest.load(&elf(MIB, &[segment])).unwrap();
    assert_eq!(guest.read::<5>(MIB), [0xf4; 5]);
    assert_eq!(guest.read::<0x4ffe>(MIB + 5), [0; 0x4ffe]);
    assert_eq!(guest.read::<1>(MIB + 0x5003), [0xaa]);
    assert_eq!(loaded.kernel_end, GuestAddress(MIB + 0x5003));
}

#[test]
fn a_segment_may_take_all_of_ram_and_not_a_byte_more() {
    let segment = Segment { memsz: 15 * MIB, ..Segment::load(MIB, &[0xf4]) };
    assert!(Guest::new(16 * MIB).load(&elf(MIB, std::slice::from_ref(&segment))).is_ok());
    let segment = Segment { memsz: 15 * MIB + 1, ..segment };
    assert_eq!(
        refusal(&elf(MIB, &[segment])),
        "kernel: program header 1 of 1 loads 0x100000..0x1000001, beyond the end of RAM below 4 GiB at 0x1000000"
    );
}

#[test]
fn a_segment_above_4_gib_is_refused_although_there_is_ram() {
    let guest = Guest::new(4096 * MIB);
    let kernel = elf(MIB, &[Segment::load(MIB, &[0xf4]), Segment::load(4096 * MIB, &[0xf4])]);
    let message = guest.load(&kernel).unwrap_err().to_string();
    assert!(message.contains("program header 2 of 2 loads 0x100000000..0x100000001, beyond"), "{message}");
}

#[test]
fn the_pvh_entry_is_used_where_the_note_is_there() {
    let guest = Guest::new(16 * MIB);
    for (align, description) in [
        (4, (MIB as u32 + 16).to_le_bytes().to_vec()),
        (4, (MIB + 16).to_le_bytes().to_vec()),
        (8, (MIB + 16).to_le_bytes().to_vec()),
    ] {
        let mut notes = note(b"GNU\0", 3, &[1, 2, 3, 4, 5], align);
        notes.extend(note(b"Linux\0", 18, &[0; 8], align));
        notes.extend(note(b"", 0, b"", align));
        notes.extend(note(b"Xen\0", 18, &description, align));
        let notes = Segment::notes(&notes, align as u64);
        let kernel = elf(0xffff_ffff_8100_0000, &[Segment::load(MIB, &[0xf4; 4096]), notes]);
        let loaded = guest.load(&kernel).unwrap();
        assert_eq!((loaded.protocol, loaded.entry), (Protocol::Pvh, GuestAddress(MIB + 16)));
    }
}

#[test]
fn the_caller_can_insist_on_either_entry() {
    let guest = Guest::new(16 * MIB);
    let kernel = pvh_elf();
    let load = |kernel, protocol| guest.load_request(Request { protocol, ..request(kernel) });
    let loaded = load(&kernel, PreferredProtocol::Linux64).unwrap();
    assert_eq!((loaded.protocol, loaded.entry), (Protocol::Linux64, GuestAddress(MIB)));
    let loaded = load(&kernel, PreferredProtocol::Pvh).unwrap();
    assert_eq!((loaded.protocol, loaded.entry), (Protocol::Pvh, GuestAddress(MIB + 16)));
    assert_eq!(
        load(&small_elf(), PreferredProtocol::Pvh).unwrap_err().to_string(),
        "kernel: an ELF file without a PVH entry point, which was asked for"
    );
}

#[test]
fn registers_enter_the_kernel_with_its_parameters() {
    let guest = Guest::new(16 * MIB);
    let state = registers(&guest.load(&small_elf()).unwrap());
    assert_eq!((state.rip, state.rsi, state.rbx), (MIB, 0x7000, 0));
    assert!(state.cs.l && !state.cs.db && state.cr0 & 1 << 31 != 0 && state.efer == 0x500);
    let state = registers(&guest.load(&pvh_elf()).unwrap());
    assert_eq!((state.rip, state.rsi, state.rbx), (MIB + 16, 0, 0x1040));
    assert!(!state.cs.l && state.cs.db && state.cr0 & 1 << 31 == 0 && state.efer == 0);
}

#[test]
fn each_header_field_that_cannot_be_used_is_named() {
    let field = |offset, bytes: &[u8]| refusal(&patch(small_elf(), offset, bytes));
    assert_eq!(field(4, &[1]), "kernel: ELF header: EI_CLASS is 0x1, not 2, 64 bits");
    assert_eq!(field(5, &[2]), "kernel: ELF header: EI_DATA is 0x2, not 1, little endian");
    assert_eq!(field(6, &[0]), "kernel: ELF header: EI_VERSION is 0x0, not 1");
    assert_eq!(field(16, &[1]), "kernel: ELF header: e_type is 0x1, not 2 or 3, an executable");
    assert_eq!(field(18, &[183]), "kernel: ELF header: e_machine is 0xb7, not 0x3e, x86_64");
    assert_eq!(field(E_PHENTSIZE, &[32]), "kernel: ELF header: e_phentsize is 0x20, not 0x38");
    assert_eq!(field(E_PHNUM, &[0]), "kernel: ELF header: e_phnum is 0x0, not 1 to 0x40");
    assert_eq!(field(E_PHNUM, &[0xff, 0xff]), "kernel: ELF header: e_phnum is 0xffff, not 1 to 0x40");
}

#[test]
fn a_position_independent_kernel_is_loaded_where_it_was_linked() {
    let kernel = patch(small_elf(), 16, &[3]);
    assert_eq!(Guest::new(16 * MIB).load(&kernel).unwrap().entry, GuestAddress(MIB));
}

#[test]
fn an_elf_file_cut_off_anywhere_is_refused() {
    let guest = Guest::new(16 * MIB);
    let kernel = elf(MIB, &[Segment::notes(&pvh_note(MIB), 4), Segment::load(MIB, &[0xf4; 64])]);
    assert!(guest.load(&kernel).is_ok());
    for length in 0..kernel.len() {
        assert!(guest.load(&kernel[..length]).is_err(), "loaded {length} of {} bytes", kernel.len());
    }
}

#[test]
fn what_lies_outside_the_file_is_named() {
    let kernel = small_elf();
    assert_eq!(
        refusal(&kernel[..40]),
        "kernel: ELF header is at bytes 0x0..0x40 of a file that ends at 0x28"
    );
    assert_eq!(
        refusal(&kernel[..100]),
        "kernel: program header table is at bytes 0x40..0x78 of a file that ends at 0x64"
    );
    assert_eq!(
        refusal(&kernel[..200]),
        "kernel: program header 1 of 1 is at bytes 0x78..0x1078 of a file that ends at 0xc8"
    );
    let message = refusal(&patch(kernel.clone(), E_PHOFF, &[0xff; 8]));
    assert!(
        message.starts_with("kernel: program header table is at bytes 0xffffffffffffffff.."),
        "{message}"
    );
    let message = refusal(&patch(kernel, phdr(0, P_OFFSET), &[0xff; 8]));
    assert!(
        message.starts_with("kernel: program header 1 of 1 is at bytes 0xffffffffffffffff.."),
        "{message}"
    );
}

#[test]
fn segments_that_cannot_be_are_refused() {
    let kernel = small_elf();
    assert_eq!(
        refusal(&patch(kernel.clone(), phdr(0, P_MEMSZ), &4095_u64.to_le_bytes())),
        "kernel: program header 1 of 1 has 0x1000 bytes in the file but 0xfff in memory"
    );
    assert_eq!(
        refusal(&patch(kernel.clone(), phdr(0, P_PADDR), &(MIB - 1).to_le_bytes())),
        "kernel: program header 1 of 1 loads 0xfffff..0x100fff, below the first MiB's end at 0x100000"
    );
    let message = refusal(&patch(kernel.clone(), phdr(0, P_PADDR), &[0xff; 8]));
    assert!(message.contains("loads 0xffffffffffffffff..0xffffffffffffffff, beyond the end"), "{message}");
    let message = refusal(&patch(kernel.clone(), phdr(0, P_MEMSZ), &[0xff; 8]));
    assert!(message.contains("loads 0x100000..0xffffffffffffffff, beyond the end of RAM"), "{message}");
    let nothing = patch(kernel.clone(), phdr(0, P_FILESZ), &[0; 16]);
    assert_eq!(refusal(&nothing), "kernel: none of 1 program headers loads anything");
    let no_load = patch(kernel, phdr(0, 0), &[PT_NOTE as u8]);
    assert!(Guest::new(16 * MIB).load(&no_load).is_err());
}

#[test]
fn overlapping_segments_are_refused_and_touching_ones_are_not() {
    let kernel =
        |second| elf(MIB, &[Segment::load(second, &[0xf4; 16]), Segment::load(MIB, &[0xf4; 0x1000])]);
    assert!(Guest::new(16 * MIB).load(&kernel(MIB + 0x1000)).is_ok());
    assert_eq!(
        refusal(&kernel(MIB + 0xfff)),
        "kernel: program header 1 of 2 loads from 0x100fff, inside program header 2, which ends at 0x101000"
    );
}

#[test]
fn an_entry_point_in_no_segment_is_refused() {
    let kernel = |entry| elf(entry, &[Segment::load(MIB, &[0xf4; 16])]);
    assert!(Guest::new(16 * MIB).load(&kernel(MIB + 15)).is_ok());
    assert_eq!(refusal(&kernel(MIB + 16)), "kernel: entry point 0x100010 is in nothing that is loaded");
    assert_eq!(refusal(&kernel(0)), "kernel: entry point 0x0 is in nothing that is loaded");
    let pvh = |entry| elf(MIB, &[Segment::load(MIB, &[0xf4; 16]), Segment::notes(&pvh_note(entry), 4)]);
    assert_eq!(
        refusal(&pvh(1 << 32 | MIB)),
        "kernel: PVH entry point 0x100100000 is in nothing that is loaded"
    );
}

#[test]
fn malformed_notes_are_refused_unless_pvh_is_ruled_out() {
    let kernel = |notes: &[u8]| elf(MIB, &[Segment::load(MIB, &[0xf4; 16]), Segment::notes(notes, 4)]);
    let three = note(b"Xen\0", 18, &[0; 3], 4);
    assert_eq!(
        refusal(&kernel(&three)),
        "kernel: program header 2 of 2: the PVH entry note holds 3 bytes, not 4 or 8"
    );
    let mut cut = note(b"GNU\0", 3, &[0; 4], 4);
    cut.extend(&pvh_note(MIB)[..20]);
    assert_eq!(
        refusal(&kernel(&cut)),
        "kernel: program header 2 of 2: the note at byte 20 of its notes runs past their end at 40"
    );
    assert_eq!(
        refusal(&kernel(&[0xff; 12])),
        "kernel: program header 2 of 2: the note at byte 0 of its notes runs past their end at 12"
    );
    assert_eq!(
        refusal(&kernel(&vec![0; 65537])),
        "kernel: program header 2 of 2 has 65537 bytes of notes, more than the 65536 that are looked through"
    );
    let kernel = kernel(&three);
    let forced = Request { protocol: PreferredProtocol::Linux64, ..request(&kernel) };
    assert!(Guest::new(16 * MIB).load_request(forced).is_ok());
}

proptest! {
    /// Whatever a few changed bytes do to the headers, a kernel that loads is entered inside RAM it was loaded to.
    #[test]
    fn mutated_headers_load_inside_ram_or_not_at_all(
        changes in prop::collection::vec((0_usize..64 + 3 * 56 + 28, any::<u8>()), 1..6),
    ) {
        let mut kernel = elf(MIB, &[
            Segment::load(MIB, &[0xf4; 64]),
            Segment { memsz: 0x2000, ..Segment::load(2 * MIB, &[0xf4; 64]) },
            Segment::notes(&pvh_note(2 * MIB), 4),
        ]);
        // The notes come last in the file; put them within reach.
        let notes = kernel.len() - 28..;
        let copy: Vec<u8> = kernel[notes].to_vec();
        kernel.splice(64 + 3 * 56..64 + 3 * 56, copy);
        let mut kernel = patch(kernel, phdr(2, P_OFFSET), &(64 + 3 * 56_u64).to_le_bytes());
        for (at, byte) in changes {
            kernel[at] = byte;
        }
        if let Ok(loaded) = Guest::new(4 * MIB).load(&kernel) {
            prop_assert!(loaded.entry >= GuestAddress(MIB) && loaded.entry < loaded.kernel_end);
            prop_assert!(loaded.kernel_end <= GuestAddress(4 * MIB));
        }
    }
}
