//! The ways to end: through the keyboard controller, through the registers that the ACPI tables name (ACPI 6.5,
//! sections 4.8.3.6, 4.8.3.7 and 7.4.2), and by a triple fault.

use core::convert::Infallible;

use crate::machine::{read, read_u8, read_u32, write_device, write_port};

// Offsets in the root system description pointer (5.2.5.3), a table's header (5.2.6), the FADT (5.2.9) and a generic
// address structure (5.2.3.2).
const XSDT_ADDRESS: u64 = 24;
const LENGTH: u64 = 4;
const HEADER_SIZE: u64 = 36;
const RESET_REG: u64 = 116;
const RESET_VALUE: u64 = 128;
const X_DSDT: u64 = 140;
const SLEEP_CONTROL_REG: u64 = 244;
const GENERIC_ADDRESS: u64 = 4;
const SYSTEM_MEMORY: u8 = 0;
const SYSTEM_IO: u8 = 1;

/// SLP_EN of the sleep control register; SLP_TYP lies from bit 2 on.
const SLP_EN: u8 = 1 << 5;

/// Resets the machine through the keyboard controller.
///
/// # Errors
///
/// The machine goes on.
pub fn reset_by_keyboard_controller() -> Result<Infallible, &'static str> {
    write_port(0x64, 0xfe);
    give_time_to_end();
    Err("the machine goes on after the reset command to the keyboard controller")
}

/// Resets the machine through RESET_REG of the FADT.
///
/// # Errors
///
/// What the tables lack.
pub fn reset_by_acpi(rsdp: u64) -> Result<Infallible, &'static str> {
    let fadt = fadt(rsdp)?;
    write_register(fadt + RESET_REG, read_u8(fadt + RESET_VALUE))?;
    give_time_to_end();
    Err("the machine goes on after the write to RESET_REG")
}

/// Powers the machine off: the sleep type of `\_S5` goes to SLEEP_CONTROL_REG.
///
/// # Errors
///
/// What the tables lack.
pub fn power_off(rsdp: u64) -> Result<Infallible, &'static str> {
    let fadt = fadt(rsdp)?;
    let sleep_type = s5_sleep_type(read(fadt + X_DSDT))?;
    write_register(fadt + SLEEP_CONTROL_REG, sleep_type << 2 | SLP_EN)?;
    give_time_to_end();
    Err("the machine goes on after the write to SLEEP_CONTROL_REG")
}

/// Ends by a fault that cannot be delivered: HLT is not for ring 3, and the interrupt table has no gate for #GP.
pub fn triple_fault() -> ! {
    loop {
        // SAFETY: nothing runs after it.
        unsafe { core::arch::asm!("hlt", options(nomem, nostack)) };
    }
}

/// A monitor need not stop the processor within the instruction that asks for the end: a second or more is enough.
fn give_time_to_end() {
    for _ in 0..1 << 26 {
        core::hint::spin_loop();
    }
}

fn fadt(rsdp: u64) -> Result<u64, &'static str> {
    if rsdp == 0 {
        return Err("the loader gave no address of the ACPI tables");
    }
    let xsdt = read(rsdp + XSDT_ADDRESS);
    if xsdt == 0 {
        return Err("the ACPI tables have no XSDT");
    }
    let end = xsdt + u64::from(read_u32(xsdt + LENGTH));
    (xsdt + HEADER_SIZE..end)
        .step_by(8)
        .map(read)
        .find(|&table| read_u32(table) == u32::from_le_bytes(*b"FACP"))
        .ok_or("the XSDT has no FADT")
}

/// Writes to the byte-wide register that the generic address structure at `register` describes.
fn write_register(register: u64, value: u8) -> Result<(), &'static str> {
    let address = read(register + GENERIC_ADDRESS);
    match read_u8(register) {
        SYSTEM_MEMORY => write_device(address, value),
        SYSTEM_IO => write_port(address as u16, value),
        _ => return Err("the FADT's register is neither in memory nor a port"),
    }
    Ok(())
}

/// The first element of the package `\_S5` in the DSDT at `dsdt`, found without an interpreter: a name, a package of a
/// length below 64, a count, then a number (20.2.4 and 20.2.5).
fn s5_sleep_type(dsdt: u64) -> Result<u8, &'static str> {
    const PACKAGE_OP: u8 = 0x12;
    const ZERO_OP: u8 = 0x00;
    const ONE_OP: u8 = 0x01;
    const BYTE_PREFIX: u8 = 0x0a;
    let end = dsdt + u64::from(read_u32(dsdt + LENGTH));
    let is_package = |&name: &u64| {
        read_u32(name) == u32::from_le_bytes(*b"_S5_")
            && read_u8(name + 4) == PACKAGE_OP
            && read_u8(name + 5) < 64
    };
    let name = (dsdt + HEADER_SIZE..end).find(is_package).ok_or("the DSDT has no package _S5")?;
    match (read_u8(name + 7), read_u8(name + 8)) {
        (ZERO_OP, _) => Ok(0),
        (ONE_OP, _) => Ok(1),
        (BYTE_PREFIX, value) => Ok(value),
        _ => Err("the first element of _S5 is not a number"),
    }
}
