#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod devices;
mod event;
mod power;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use acpi_tables::Aml;
pub use devices::{Com1, GenericEventDevice, Keyboard, VirtioMmio};
pub use event::{EVENT_REGISTER_PORT, EventCause, EventRegister};
pub use power::{POWER_REGISTERS_BASE, POWER_REGISTERS_SIZE, PowerEvent, PowerRegisters};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Config, MAX_VCPUS, write_tables};

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of vCPUs is outside what 8-bit APIC ids can tell apart.
    #[error("the number of vCPUs must be between 1 and {max}, not {vcpus}")]
    VcpuCount {
        /// The number asked for.
        vcpus: u8,
        /// The most there can be.
        max: u8,
    },
    /// The area for the tables is too small for them, most likely for the devices in the DSDT.
    #[error("the ACPI tables need at least {needed} bytes, their area has {available}")]
    DoesNotFit {
        /// Bytes up to the end of the first table that does not fit.
        needed: u64,
        /// Bytes in the area.
        available: u64,
    },
    /// Guest memory does not hold the area for the tables.
    #[error("writing {size} bytes of ACPI tables to guest address {address:#x}")]
    WriteMemory {
        /// Bytes to write.
        size: usize,
        /// Where to.
        address: u64,
        /// What is wrong there.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}
