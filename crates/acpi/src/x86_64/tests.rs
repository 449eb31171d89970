//! Reads the tables back out of guest memory the way an operating system finds them.

use vm_memory::GuestMemoryMmap;

use super::*;
use crate::{Com1, GenericEventDevice, Keyboard, VirtioMmio};

/// An AML object of a given length.
struct Filler(usize);

impl Aml for Filler {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&vec![0xa3; self.0]);
    }
}

struct Guest(GuestMemoryMmap);

impl Guest {
    fn new(vcpus: u8, devices: &[&dyn Aml]) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let rsdp = write_tables(&memory, &Config { vcpus, devices }).unwrap();
        assert_eq!(rsdp, GuestAddress(0xe_0000));
        Self(memory)
    }

    fn bytes(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.0.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// The table at `address`, after checks of what all tables have in common.
    fn table(&self, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        assert_eq!(address % 16, 0);
        let size = u32_at(&self.bytes(address, 36), 4);
        let table = self.bytes(address, size as usize);
        assert!(address > 0xe_0000 && address + u64::from(size) <= 0x10_0000);
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(&table), 0, "checksum of {}", signature.escape_ascii());
        assert_eq!(&table[10..28], b"KINDLGKINDLING\x01\0\0\0");
        table
    }

    fn xsdt(&self) -> Vec<u8> {
        let rsdp = self.bytes(0xe_0000, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(sum(&rsdp[..20]), 0, "checksum of the first version's part");
        assert_eq!(sum(&rsdp), 0, "extended checksum");
        assert_eq!(rsdp[15], 2, "revision");
        assert_eq!(u32_at(&rsdp, 16), 0, "no RSDT");
        assert_eq!(u32_at(&rsdp, 20), 36, "length");
        self.table(u64_at(&rsdp, 24), b"XSDT")
    }

    fn fadt(&self) -> Vec<u8> {
        self.table(u64_at(&self.xsdt(), 36), b"FACP")
    }

    fn madt(&self) -> Vec<u8> {
        self.table(u64_at(&self.xsdt(), 44), b"APIC")
    }

    fn dsdt(&self) -> Vec<u8> {
        let fadt = self.fadt();
        assert_eq!(u32_at(&fadt, 40), 0, "32-bit pointer");
        self.table(u64_at(&fadt, 140), b"DSDT")
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn every_table_is_reachable_from_the_rsdp_and_sums_to_zero() {
    let guest = Guest::new(2, &[&Com1, &Keyboard]);
    assert_eq!(guest.xsdt().len(), 36 + 2 * 8);
    assert_eq!(guest.fadt().len(), 276);
    assert_eq!(guest.madt().len(), 44 + 2 * 8 + 12 + 6);
    assert!(guest.dsdt().len() > 36);
}

#[test]
fn tables_do_not_overlap() {
    let guest = Guest::new(254, &[&Com1, &Keyboard]);
    let rsdp = guest.bytes(0xe_0000, 36);
    let xsdt = guest.xsdt();
    let fadt = guest.fadt();
    let mut extents = [
        (0xe_0000, 36),
        (u64_at(&rsdp, 24), xsdt.len()),
        (u64_at(&xsdt, 36), fadt.len()),
        (u64_at(&xsdt, 44), guest.madt().len()),
        (u64_at(&fadt, 140), guest.dsdt().len()),
    ];
    extents.sort_unstable();
    assert!(extents.windows(2).all(|pair| pair[0].0 + pair[0].1 as u64 <= pair[1].0), "{extents:x?}");
}

#[test]
fn fadt_describes_a_hardware_reduced_platform_with_its_power_registers() {
    let fadt = Guest::new(1, &[]).fadt();
    assert_eq!((fadt[8], fadt[131]), (6, 5), "ACPI 6.5");
    assert_eq!((u32_at(&fadt, 36), u64_at(&fadt, 132)), (0, 0), "no FACS");
    assert_eq!(u32_at(&fadt, 112), 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4 | 1, "flags");
    assert_eq!(fadt[109..111], [0b10_0111, 0], "boot architecture: legacy, 8042, no VGA, no CMOS clock");
    // System I/O, 8 bits at 0, byte access, port.
    let port = |port: u64| [&[1, 8, 0, 1][..], &port.to_le_bytes()].concat();
    assert_eq!(fadt[116..128], port(0x602), "reset register");
    assert_eq!(fadt[128], 1, "reset value");
    assert_eq!(fadt[244..256], port(0x600), "sleep control register");
    assert_eq!(fadt[256..268], port(0x601), "sleep status register");
    assert_eq!(&fadt[268..], b"KINDLING");
    assert!(fadt[46..109].iter().all(|byte| *byte == 0), "no fixed hardware");
    assert!(fadt[148..244].iter().all(|byte| *byte == 0), "no fixed hardware");
}

#[test]
fn writing_what_the_fadt_says_resets_the_machine() {
    let fadt = Guest::new(1, &[]).fadt();
    let offset = u64_at(&fadt, 120) - crate::POWER_REGISTERS_BASE;
    let event = crate::PowerRegisters::new().write(offset as u8, fadt[128]);
    assert_eq!(event, Some(crate::PowerEvent::Reset));
}

#[test]
fn madt_lists_every_processor_the_ioapic_and_the_nmi_pin() {
    for vcpus in [1, 2, 8, 254] {
        let madt = Guest::new(vcpus, &[]).madt();
        assert_eq!(madt[8], 6, "revision");
        assert_eq!(u32_at(&madt, 36), 0xfee0_0000, "local APIC address");
        assert_eq!(u32_at(&madt, 40), 0, "no 8259");
        let (processors, rest) = madt[44..].split_at(8 * usize::from(vcpus));
        for (id, processor) in (0..).zip(processors.chunks(8)) {
            assert_eq!(processor, [0, 8, id, id, 1, 0, 0, 0]);
        }
        let (ioapic, nmi) = rest.split_at(12);
        assert_eq!(ioapic, [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(nmi, [4, 6, 0xff, 0, 0, 1]);
    }
}

#[test]
fn dsdt_holds_the_devices_in_sb_and_the_s5_package() {
    let dsdt = Guest::new(1, &[&Com1, &Keyboard]).dsdt();
    assert_eq!(dsdt[8], 2, "64-bit integers");
    #[rustfmt::skip]
    let com1 = [
        &b"\x5b\x82\x31COM1"[..],
        b"\x08_HID\x0c\x41\xd0\x05\x01",                    // PNP0501
        b"\x08_UID\x01",
        b"\x08_CRS\x11\x16\x0a\x13",
        b"\x47\x01\xf8\x03\xf8\x03\x01\x08",                // ports 0x3f8 to 0x3ff
        b"\x89\x06\x00\x03\x01\x04\x00\x00\x00",            // interrupt 4, edge, active high, exclusive
        b"\x79\x00",
    ]
    .concat();
    #[rustfmt::skip]
    let keyboard = [
        &b"\x5b\x82\x33KBD_"[..],
        b"\x08_HID\x0c\x41\xd0\x03\x03",                    // PNP0303
        b"\x08_CRS\x11\x1e\x0a\x1b",
        b"\x47\x01\x60\x00\x60\x00\x01\x01",
        b"\x47\x01\x64\x00\x64\x00\x01\x01",
        b"\x89\x06\x00\x03\x01\x01\x00\x00\x00",
        b"\x79\x00",
    ]
    .concat();
    let aml = [&b"\x10\x4f\x06\\_SB_"[..], &com1, &keyboard, b"\x08\\_S5_\x12\x07\x04\x0a\x05\x00\x00\x00"]
        .concat();
    assert_eq!(dsdt[36..], aml, "{}", dsdt[36..].escape_ascii());
}

#[test]
fn event_device_has_one_edge_and_a_method_that_notifies_the_power_button() {
    let dsdt = Guest::new(1, &[&GenericEventDevice { gsi: 3 }]).dsdt();
    #[rustfmt::skip]
    let aml = [
        &b"\x10\x45\x07\\_SB_"[..],
        b"\x5b\x82\x0fPWRB\x08_HID\x0c\x41\xd0\x0c\x0c",          // PNP0C0C
        b"\x5b\x82\x4b\x05GED_",
        b"\x08_HID\x0dACPI0013\x00",
        b"\x08_CRS\x11\x0e\x0a\x0b",
        b"\x89\x06\x00\x03\x01\x03\x00\x00\x00",                  // interrupt 3, edge, active high, exclusive
        b"\x79\x00",
        b"\x5b\x80EVTR\x01\x0b\x04\x06\x01",                      // port 0x604, one byte
        b"\x5b\x81\x0bEVTR\x01PEND\x08",                          // accessed as a byte, 8 bits
        b"\x14\x19_EVT\x09",                                      // one argument, serialized
        b"\x70PEND\x60",                                          // Local0 = PEND
        b"\xa0\x0c\x7b\x60\x01\x00",                              // if Local0 & 1
        b"\x86PWRB\x0a\x80",                                      // notify PWRB, 0x80
        b"\x08\\_S5_\x12\x07\x04\x0a\x05\x00\x00\x00",
    ]
    .concat();
    assert_eq!(dsdt[36..], aml, "{}", dsdt[36..].escape_ascii());
}

#[test]
fn guest_without_devices_still_powers_off() {
    let dsdt = Guest::new(1, &[]).dsdt();
    assert_eq!(dsdt[36..], *b"\x10\x06\\_SB_\x08\\_S5_\x12\x07\x04\x0a\x05\x00\x00\x00");
}

#[test]
fn too_many_devices_for_the_area_are_refused_and_nothing_is_written() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let fits = |size| write_tables(&memory, &Config { vcpus: 254, devices: &[&Filler(size)] });
    let error = fits(0x2_0000).unwrap_err();
    assert!(matches!(error, Error::DoesNotFit { needed: 0x2_0001.., available: 0x2_0000 }), "{error}");
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0xe_0000)).unwrap(), 0);

    let (mut fitting, mut too_large) = (0, 0x2_0000);
    while too_large - fitting > 1 {
        let middle = (fitting + too_large) / 2;
        if fits(middle).is_ok() { fitting = middle } else { too_large = middle }
    }
    fits(fitting).unwrap();
    let last_table = memory.read_obj::<u64>(GuestAddress(0xe_0018)).unwrap();
    assert!((0xf_ffb0..0x10_0000).contains(&last_table), "the last table at {last_table:#x} ends the area");
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x10_0000)).unwrap(), 0, "nothing beyond the area");
}

#[test]
fn vcpu_counts_outside_the_limits_are_refused() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    for vcpus in [0, 255] {
        let error = write_tables(&memory, &Config { vcpus, devices: &[] }).unwrap_err();
        assert_eq!(error.to_string(), format!("the number of vCPUs must be between 1 and 254, not {vcpus}"));
    }
}

#[test]
fn memory_that_ends_before_the_area_is_an_error() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0xe_0000)]).unwrap();
    let error = write_tables(&memory, &Config { vcpus: 1, devices: &[] }).unwrap_err();
    assert!(matches!(error, Error::WriteMemory { address: 0xe_0000, .. }), "{error}");
}

#[test]
fn hundreds_of_virtio_devices_fit_each_with_its_registers_and_line() {
    let devices: Vec<_> = (0..500_u16)
        .map(|index| VirtioMmio {
            index,
            base: 0xf000_0000 + u32::from(index) * 0x1000,
            size: 0x1000,
            gsi: 5,
        })
        .collect();
    let devices: Vec<&dyn Aml> = devices.iter().map(|device| device as &dyn Aml).collect();
    let dsdt = Guest::new(1, &devices).dsdt();
    let count = |wanted: &[u8]| dsdt.windows(wanted.len()).filter(|bytes| *bytes == wanted).count();
    assert_eq!(count(b"LNRO0005"), 500);
    assert_eq!(count(b"V000"), 1);
    assert_eq!(count(b"V1F3"), 1);
    // Memory32Fixed (ACPI 6.5, 6.4.3.4): writable, base, length.
    assert_eq!(count(&[0x86, 9, 0, 1, 0x00, 0x30, 0x1f, 0xf0, 0x00, 0x10, 0, 0]), 1);
    // Extended interrupt (6.4.3.6): consumer, edge-triggered, active high, shared; one line: 5.
    assert_eq!(count(&[0x89, 6, 0, 0b1011, 1, 5, 0, 0, 0]), 500);
}
