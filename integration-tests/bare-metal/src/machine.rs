//! Ports and physical memory, both wide open to the guest's ring 3.

use core::arch::asm;

/// Reads the byte-wide port `port`.
pub fn read_port(port: u16) -> u8 {
    let value;
    // SAFETY: every port is open to ring 3, and no device of this guest's machine writes to memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads the 32-bit port `port`.
pub fn read_port_32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `read_port`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes `value` to the byte-wide port `port`.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: as in `read_port`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads eight bytes at the physical address `address`, aligned or not.
///
/// Beyond [`MAPPED_GIB`](crate::entry::MAPPED_GIB) the guest ends by a triple fault.
pub fn read(address: u64) -> u64 {
    let value;
    // SAFETY: any bits make an integer, and a read of memory changes nothing that Rust knows of.
    unsafe {
        asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(readonly, nostack, preserves_flags))
    };
    value
}

/// Reads four bytes at the physical address `address`.
pub fn read_u32(address: u64) -> u32 {
    read(address) as u32
}

/// Reads one byte at the physical address `address`.
pub fn read_u8(address: u64) -> u8 {
    read(address) as u8
}

/// Reads the four-byte device register at the physical address `address`.
pub fn read_device_32(address: u64) -> u32 {
    let value;
    // SAFETY: as in `read`; a device of this guest writes to the memory that a `virtio::Buffer` describes only.
    unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// Writes `value` to the four-byte device register at the physical address `address`.
pub fn write_device_32(address: u64, value: u32) {
    // SAFETY: as in `write_device` and `read_device_32`.
    unsafe { asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) };
}

/// The processor's time stamp counter.
pub fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and nobody turns it off for ring 3.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes `value` to the byte-wide device register at the physical address `address`.
pub fn write_device(address: u64, value: u8) {
    // SAFETY: the address comes from the loader's tables, and they name no RAM that Rust knows of.
    unsafe { asm!("mov [{}], {}", in(reg) address, in(reg_byte) value, options(nostack, preserves_flags)) };
}

/// Writes eight bytes at the physical address `address`.
///
/// # Safety
///
/// The guest's image and stack do not overlap the eight bytes, or these get their old value back before anything uses
/// them.
pub unsafe fn write(address: u64, value: u64) {
    // SAFETY: the caller's promise; x86 knows unaligned stores.
    unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) };
}
