//! The tables of an x86_64 machine: RSDP, XSDT, FADT, MADT and DSDT (ACPI 6.5, chapter 5.2), laid out one behind the
//! other in the area where operating systems look for them.
//!
//! There is no FACS: it holds what sleeping with fixed hardware needs, and a hardware-reduced platform announces its
//! absence by leaving both of the FADT's pointers to it zero (5.2.9, FIRMWARE_CTRL).

use acpi_tables::aml::{Name, Package, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use kindling_memory_layout::x86_64::{ACPI_TABLES, IOAPIC, LAPIC};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::Error;
use crate::power::{
    POWER_REGISTERS_BASE, RESET_OFFSET, RESET_VALUE, S5_SLEEP_TYPE, SLEEP_CONTROL_OFFSET, SLEEP_STATUS_OFFSET,
};

/// The most vCPUs: APIC ids are 8 bits wide, and 255 addresses all of them.
pub const MAX_VCPUS: u8 = 254;

const OEM_ID: [u8; 6] = *b"KINDLG";
const OEM_TABLE_ID: [u8; 8] = *b"KINDLING";
const OEM_REVISION: u32 = 1;

/// Bytes in the header that all tables but the RSDP begin with.
const HEADER_SIZE: u32 = 36;
/// Tables start at multiples of this; the RSDP has to (5.2.5.1), the others like it.
const ALIGNMENT: usize = 16;

/// IAPC_BOOT_ARCH: there are devices no bus enumerates (the serial port).
const LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH: there is a keyboard controller.
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
/// IAPC_BOOT_ARCH: do not probe for VGA.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// IAPC_BOOT_ARCH: there is no CMOS clock.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The machine to describe.
#[derive(Clone, Copy)]
pub struct Config<'a> {
    /// Processors, 1 to [`MAX_VCPUS`]; their UIDs and APIC ids are 0 and up.
    pub vcpus: u8,
    /// What stands in the scope `\_SB` of the DSDT, in this order. Names are the caller's to keep distinct.
    pub devices: &'a [&'a dyn Aml],
}

/// Writes the tables to guest memory at 0xE0000 to 0xFFFFF and returns the address of the RSDP, 0xE0000.
///
/// # Errors
/// When the number of vCPUs is out of range, the tables are too long for the area, or guest memory has no such area.
/// Nothing is written in the first two cases.
pub fn write_tables<M: GuestMemory>(memory: &M, config: &Config) -> Result<GuestAddress, Error> {
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return Err(Error::VcpuCount { vcpus: config.vcpus, max: MAX_VCPUS });
    }
    let image = Image::new(config)?;
    let address = ACPI_TABLES.start;
    memory.write_slice(&image.bytes, GuestAddress(address)).map_err(|source| Error::WriteMemory {
        size: image.bytes.len(),
        address,
        source,
    })?;
    Ok(GuestAddress(address))
}

/// The contents of the area from its start.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn new(config: &Config) -> Result<Self, Error> {
        // The RSDP comes first in memory and last in order, when it is known where it has to point to.
        let mut image = Self { bytes: vec![0; Rsdp::len()] };
        let dsdt = image.place(&dsdt(config))?;
        let fadt = image.place(&fadt(dsdt))?;
        let madt = image.place(&madt(config))?;
        let xsdt = image.place(&xsdt(&[fadt, madt]))?;
        let rsdp = serialize(&Rsdp::new(OEM_ID, xsdt));
        for (byte, new) in image.bytes.iter_mut().zip(rsdp) {
            *byte = new;
        }
        Ok(image)
    }

    /// Appends a table and returns its guest address.
    fn place(&mut self, table: &[u8]) -> Result<u64, Error> {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT);
        // Lengths of things in memory: neither sum comes near the limit of its type.
        let needed = offset.saturating_add(table.len()) as u64;
        if needed > ACPI_TABLES.size {
            return Err(Error::DoesNotFit { needed, available: ACPI_TABLES.size });
        }
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(table);
        Ok(ACPI_TABLES.start.saturating_add(offset as u64))
    }
}

fn serialize(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with this body behind the header. The body goes in at once because each change costs a checksum.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, HEADER_SIZE, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    serialize(&table)
}

fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for address in tables {
        xsdt.add_entry(*address);
    }
    serialize(&xsdt)
}

/// Fixed ACPI Description Table (5.2.9).
fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set means "not in the fixed hardware": there are no such buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch =
        (LEGACY_DEVICES | KEYBOARD_CONTROLLER | VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = power_register(RESET_OFFSET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = power_register(SLEEP_CONTROL_OFFSET);
    fadt.sleep_status_reg = power_register(SLEEP_STATUS_OFFSET);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"KINDLING").into();
    serialize(&fadt.finalize())
}

fn power_register(offset: u8) -> GAS {
    let port = POWER_REGISTERS_BASE.saturating_add(offset.into());
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

/// Multiple APIC Description Table (5.2.12).
///
/// PCAT_COMPAT stays clear: whatever 8259 the hypervisor has, nothing is to be expected from it. ISA interrupts are
/// wired to the I/O APIC's inputs of the same number, edge-triggered and active high, which needs no overrides.
fn madt(config: &Config) -> Vec<u8> {
    /// Revision of ACPI 6.5's MADT.
    const REVISION: u8 = 6;
    const NO_FLAGS: u32 = 0;
    const IOAPIC_ID: u8 = 0;
    const FIRST_GSI: u32 = 0;
    /// Local APIC NMI (5.2.12.7): type, length, all processors, polarity and trigger as the bus has them, LINT1.
    const NMI_ON_LINT1: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

    let mut body = Vec::new();
    // Both addresses lie in the gap below 4 GiB.
    body.dword(LAPIC.start as u32);
    body.dword(NO_FLAGS);
    for id in 0..config.vcpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(IOAPIC_ID, IOAPIC.start as u32, FIRST_GSI).to_aml_bytes(&mut body);
    body.vec(&NMI_ON_LINT1);
    table(*b"APIC", REVISION, &body)
}

/// Differentiated System Description Table: the devices, and how to power off.
fn dsdt(config: &Config) -> Vec<u8> {
    /// From this revision on, AML integers have 64 bits.
    const REVISION: u8 = 2;

    let mut body = Vec::new();
    Scope::new("\\_SB_".into(), config.devices.to_vec()).to_aml_bytes(&mut body);
    // 7.4.2: the types for SLP_TYPa and SLP_TYPb, of which there is only the first, and two reserved elements.
    let s5 = Package::new(vec![&S5_SLEEP_TYPE, &0_u8, &0_u8, &0_u8]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut body);
    table(*b"DSDT", REVISION, &body)
}

#[cfg(test)]
mod tests;
