//! bzImages: where they are loaded, what the zero page keeps of their header, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests are outside them.

mod common;

use common::*;
use kindling_boot::{PreferredProtocol, Protocol, Request};
use proptest::prelude::*;
use vm_memory::GuestAddress;

const ZERO_PAGE: u64 = 0x7000;

fn refusal(kernel: &[u8]) -> String {
    Guest::new(64 * MIB).load(kernel).expect_err("loaded").to_string()
}

#[test]
fn a_relocatable_kernel_is_loaded_where_it_prefers_with_the_room_it_asks_for() {
    let guest = Guest::new(64 * MIB);
    let loaded = guest.load(&bzimage()).unwrap();
    assert_eq!(guest.read::<4096>(16 * MIB), [0xf4; 4096]);
    assert_eq!(guest.read::<1>(16 * MIB + 4096), [0]);
    assert_eq!(loaded.protocol, Protocol::Linux64);
    assert_eq!(loaded.entry, GuestAddress(16 * MIB + 0x200));
    assert_eq!(loaded.params, GuestAddress(ZERO_PAGE));
    assert_eq!(loaded.kernel_end, GuestAddress(24 * MIB));
    assert_eq!(guest.u32(ZERO_PAGE + 0x214), 16 << 20, "code32_start");
}

#[test]
fn a_kernel_that_is_not_relocatable_is_loaded_at_1_mib_and_given_room_where_it_runs() {
    let guest = Guest::new(64 * MIB);
    let loaded = guest.load(&patch(bzimage(), 0x234, &[0])).unwrap();
    assert_eq!(guest.read::<4096>(MIB), [0xf4; 4096]);
    assert_eq!(loaded.entry, GuestAddress(MIB + 0x200));
    assert_eq!(loaded.kernel_end, GuestAddress(24 * MIB));
}

#[test]
fn the_zero_page_keeps_the_setup_header_and_nothing_else_of_the_file() {
    let guest = Guest::new(64 * MIB);
    let mut kernel = patch(bzimage(), 0, &[0xcc; 0x1f1]);
    kernel = patch(kernel, 0x26c, &[0xcc; 0x40]);
    guest.load(&kernel).unwrap();
    assert_eq!(guest.read::<4>(ZERO_PAGE + 0x202), *b"HdrS");
    assert_eq!(guest.u32(ZERO_PAGE + 0x268), 0x1234_5678, "kernel_info_offset");
    assert_eq!(guest.read::<1>(ZERO_PAGE + 0x210), [0xff], "type_of_loader");
    assert_eq!(guest.read::<0x24>(ZERO_PAGE + 0x26c), [0; 0x24], "past the header's own end");
    assert_eq!(guest.read::<0x70>(ZERO_PAGE), [0; 0x70], "before the header");
    assert_eq!(guest.read::<1>(ZERO_PAGE + 0x1ef), [0], "sentinel");
}

#[test]
fn a_setup_header_longer_than_today_is_kept_whole() {
    let guest = Guest::new(64 * MIB);
    let kernel = patch(patch(bzimage(), 0x201, &[0x8e]), 0x26c, &[0xcc; 0x40]);
    guest.load(&kernel).unwrap();
    assert_eq!(guest.read::<0x24>(ZERO_PAGE + 0x26c), [0xcc; 0x24]);
    assert_eq!(guest.read::<4>(ZERO_PAGE + 0x290), [0; 4]);
}

#[test]
fn no_setup_sectors_stand_for_four() {
    let guest = Guest::new(64 * MIB);
    let mut kernel = patch(bzimage(), 0x1f1, &[0]);
    kernel.splice(3 * 512..3 * 512, [0; 2 * 512]);
    guest.load(&kernel).unwrap();
    assert_eq!(guest.read::<4096>(16 * MIB), [0xf4; 4096]);
}

#[test]
fn bytes_after_the_protected_mode_part_are_not_loaded() {
    let guest = Guest::new(64 * MIB);
    let mut kernel = bzimage();
    kernel.extend([0xaa; 4096]);
    guest.load(&kernel).unwrap();
    assert_eq!(guest.read::<16>(16 * MIB + 4096), [0; 16]);
}

#[test]
fn each_header_field_that_cannot_be_used_is_named() {
    let field = |offset, bytes: &[u8]| refusal(&patch(bzimage(), offset, bytes));
    assert_eq!(field(0x1fe, &[0]), "kernel: setup header: boot_flag is 0xaa00, not 0xaa55");
    assert_eq!(field(0x206, &[0xb]), "kernel: setup header: version is 0x20b, not 0x20c or later");
    assert_eq!(
        field(0x211, &[0]),
        "kernel: setup header: loadflags is 0x0, not odd: no bzImage, but a zImage"
    );
    assert_eq!(
        field(0x236, &[0x7e]),
        "kernel: setup header: xloadflags is 0x7e, not odd: the kernel has no 64-bit entry point"
    );
    assert_eq!(field(0x201, &[0x61]), "kernel: setup header: the header's end is 0x263, not 0x264 to 0x290");
    assert_eq!(field(0x201, &[0x8f]), "kernel: setup header: the header's end is 0x291, not 0x264 to 0x290");
    assert_eq!(
        field(0x1f4, &[0x20, 0]),
        "kernel: setup header: syssize is 0x20, not enough to reach the 64-bit entry point"
    );
    for alignment in [0_u32, 3 << 20, 0x8000_0000] {
        let message = field(0x230, &alignment.to_le_bytes());
        assert!(message.starts_with("kernel: setup header: kernel_alignment is "), "{message}");
    }
}

#[test]
fn a_kernel_that_does_not_fit_ram_is_refused() {
    let small = Guest::new(24 * MIB - 4096);
    assert_eq!(
        small.load(&bzimage()).unwrap_err().to_string(),
        "kernel: protected-mode part loads 0x1000000..0x1800000, beyond the end of RAM below 4 GiB at 0x17ff000"
    );
    assert!(Guest::new(24 * MIB).load(&bzimage()).is_ok());
    let message = refusal(&patch(bzimage(), 0x258, &0xffff_ffff_ff00_0000_u64.to_le_bytes()));
    assert!(message.contains("loads 0xffffffffff000000..0xffffffffff001000, beyond"), "{message}");
    let message = refusal(&patch(bzimage(), 0x258, &0_u64.to_le_bytes()));
    assert!(message.contains("loads 0x0..0x1000, below the first MiB's end"), "{message}");
}

#[test]
fn a_bzimage_cut_off_anywhere_is_refused() {
    let guest = Guest::new(64 * MIB);
    let kernel = bzimage();
    for length in (0..kernel.len()).step_by(7).chain([kernel.len() - 1]) {
        assert!(guest.load(&kernel[..length]).is_err(), "loaded {length} of {} bytes", kernel.len());
    }
    assert_eq!(
        refusal(&kernel[..0x210]),
        "kernel: setup header is at bytes 0x0..0x264 of a file that ends at 0x210"
    );
    assert_eq!(
        refusal(&kernel[..4096]),
        "kernel: protected-mode part is at bytes 0x600..0x1600 of a file that ends at 0x1000"
    );
}

#[test]
fn there_is_no_pvh_entry_in_a_bzimage() {
    let kernel = bzimage();
    let forced = Request { protocol: PreferredProtocol::Pvh, ..request(&kernel) };
    assert_eq!(
        Guest::new(64 * MIB).load_request(forced).unwrap_err().to_string(),
        "kernel: a bzImage without a PVH entry point, which was asked for"
    );
}

#[test]
fn the_kernels_own_limits_on_command_line_and_initrd_hold() {
    let guest = Guest::new(64 * MIB);
    let kernel = bzimage();
    let (fits, too_long) = ("x".repeat(2047), "x".repeat(2048));
    assert!(guest.load_request(Request { cmdline: &fits, ..request(&kernel) }).is_ok());
    assert_eq!(
        guest.load_request(Request { cmdline: &too_long, ..request(&kernel) }).unwrap_err().to_string(),
        "command line: 2048 bytes, more than the 2047 this kernel takes"
    );
    // The last byte the initial RAM disk may take is the 15th of a page.
    let kernel = patch(kernel, 0x22c, &(0x0180_300e_u32).to_le_bytes());
    let initrd = [0xee; 0x1010];
    let request = Request { initrd: Some(std::io::Cursor::new(&initrd[..])), ..request(&kernel) };
    let place = guest.load_request(request).unwrap().initrd.unwrap();
    assert_eq!((place.start, place.size), (0x0180_1000, 0x1010));
}

proptest! {
    /// Whatever a few changed bytes do to the header, a kernel that loads is entered inside RAM it was loaded to.
    #[test]
    fn mutated_headers_load_inside_ram_or_not_at_all(
        changes in prop::collection::vec((0x1f1_usize..0x26c, any::<u8>()), 1..4),
    ) {
        let mut kernel = bzimage();
        for (at, byte) in changes {
            kernel[at] = byte;
        }
        if let Ok(loaded) = Guest::new(32 * MIB).load(&kernel) {
            prop_assert!(loaded.entry >= GuestAddress(MIB) && loaded.entry < loaded.kernel_end);
            prop_assert!(loaded.kernel_end <= GuestAddress(32 * MIB));
        }
    }
}
