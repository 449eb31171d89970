//! The tables the processor reads agree with the registers it starts with.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests are outside them.

mod common;

use common::*;
use kindling_boot::{InitialState, Segment, registers};

const GIB: u64 = 1 << 30;

/// A guest with so much RAM and a kernel entered by the 64-bit boot protocol, or by PVH.
fn booted(ram: u64, kernel: &[u8]) -> (Guest, InitialState) {
    let guest = Guest::new(ram);
    let state = registers(&guest.load(kernel).unwrap());
    (guest, state)
}

/// A segment from its descriptor in the table, as the processor would load it (Intel SDM volume 3, 3.4.5).
fn descriptor(guest: &Guest, state: &InitialState, selector: u16) -> Segment {
    assert!(u64::from(selector) + 7 <= state.gdt.limit.into(), "{selector:#x} is past the table's end");
    let entry = guest.u64(state.gdt.base + u64::from(selector));
    let bit = |n: u32| entry >> n & 1 == 1;
    let limit = (entry & 0xffff | entry >> 32 & 0xf_0000) as u32;
    Segment {
        base: entry >> 16 & 0xff_ffff | entry >> 56 << 24,
        limit: if bit(55) { limit << 12 | 0xfff } else { limit },
        selector,
        type_: (entry >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: (entry >> 45 & 3) as u8,
        present: bit(47),
        l: bit(53),
        db: bit(54),
        g: bit(55),
    }
}

/// Where the page tables lead (Intel SDM volume 3, 4.5.4), if anywhere.
fn translate(guest: &Guest, state: &InitialState, linear: u64) -> Option<u64> {
    let mut table = state.cr3;
    for shift in [39, 30, 21, 12] {
        let entry = guest.u64(table + (linear >> shift & 0x1ff) * 8);
        if entry & 3 != 3 {
            return None; // not present or not writable
        }
        if shift == 12 || entry & 0x80 != 0 {
            let offset = (1 << shift) - 1;
            return Some(entry & 0xf_ffff_ffff_f000 & !offset | linear & offset);
        }
        table = entry & 0xf_ffff_ffff_f000;
    }
    None
}

#[test]
fn every_segment_register_is_what_its_selector_says() {
    for kernel in [small_elf(), pvh_elf()] {
        let (guest, state) = booted(16 * MIB, &kernel);
        let InitialState { cs, ds, es, fs, gs, ss, tr, .. } = state;
        for segment in [cs, ds, es, fs, gs, ss, tr] {
            assert_eq!(descriptor(&guest, &state, segment.selector), segment);
        }
        assert_eq!((cs.selector, ds.selector), (0x10, 0x18));
        assert_eq!((cs.limit, ds.limit, tr.limit), (u32::MAX, u32::MAX, 0x67));
    }
}

#[test]
fn a_64_bit_kernel_has_each_gib_with_ram_below_4_gib_at_its_own_addresses_and_no_more() {
    // The last one has a hole from 3 to 4 GiB and the rest of its RAM above.
    for (ram, mapped) in [(16 * MIB, GIB), (GIB, GIB), (GIB + 2 * MIB, 2 * GIB), (5 * GIB, 3 * GIB)] {
        let (guest, state) = booted(ram, &small_elf());
        for address in [0, 0x7000, 0x2_0fff, MIB, 16 * MIB, mapped - GIB, mapped - 5, mapped - 1] {
            assert_eq!(translate(&guest, &state, address), Some(address));
        }
        for address in [mapped, 4 * GIB, 512 * GIB, 1 << 47] {
            assert_eq!(translate(&guest, &state, address), None);
        }
        assert_eq!((state.cr0, state.cr4, state.efer, state.rflags), (0x8000_0011, 0x20, 0x500, 2));
    }
}

#[test]
fn a_pvh_kernel_starts_in_protected_mode_without_paging() {
    let (_, state) = booted(16 * MIB, &pvh_elf());
    assert_eq!((state.cr0, state.cr3, state.cr4, state.efer, state.rflags), (0x11, 0, 0, 0, 2));
}
