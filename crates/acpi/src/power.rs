//! The registers a guest resets and powers off the machine with: the sleep registers of hardware-reduced ACPI
//! (ACPI 6.5, 4.8.3.7) and the reset register (4.8.3.6).
//!
//! | offset | register |
//! |---|---|
//! | 0 | SLEEP_CONTROL_REG |
//! | 1 | SLEEP_STATUS_REG |
//! | 2 | RESET_REG |
//! | 3 | reserved |

/// The first of the registers' I/O ports.
pub const POWER_REGISTERS_BASE: u64 = 0x600;
/// The number of the registers' I/O ports.
pub const POWER_REGISTERS_SIZE: u64 = 4;

pub(crate) const SLEEP_CONTROL_OFFSET: u8 = 0;
pub(crate) const SLEEP_STATUS_OFFSET: u8 = 1;
pub(crate) const RESET_OFFSET: u8 = 2;

/// What the guest writes to the reset register.
pub(crate) const RESET_VALUE: u8 = 0x01;
/// The sleep type of S5, "soft off", in the package `\_S5` and in SLP_TYPx.
pub(crate) const S5_SLEEP_TYPE: u8 = 5;

/// SLP_TYPx, bits 2 to 4 of SLEEP_CONTROL_REG.
const SLP_TYP_MASK: u8 = 0b111 << SLP_TYP_SHIFT;
const SLP_TYP_SHIFT: u32 = 2;
/// SLP_EN, bit 5 of SLEEP_CONTROL_REG, which always reads as zero.
const SLP_EN: u8 = 1 << 5;

/// What the guest asks of the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Start over.
    Reset,
    /// Switch off (sleep state S5).
    PowerOff,
}

/// The registers' state: the sleep type last written. No sleep state but S5 exists, so nothing ever wakes up and the
/// wake status is never set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PowerRegisters {
    sleep_control: u8,
}

impl PowerRegisters {
    /// Registers after reset.
    pub fn new() -> Self {
        Self::default()
    }

    /// The guest reads the register at `offset` from [`POWER_REGISTERS_BASE`]; zero where there is none to read.
    pub fn read(&self, offset: u8) -> u8 {
        match offset {
            SLEEP_CONTROL_OFFSET => self.sleep_control,
            _ => 0,
        }
    }

    /// The guest writes the register at `offset` from [`POWER_REGISTERS_BASE`]. Values and offsets without a meaning
    /// are ignored.
    pub fn write(&mut self, offset: u8, value: u8) -> Option<PowerEvent> {
        match offset {
            SLEEP_CONTROL_OFFSET => {
                self.sleep_control = value & SLP_TYP_MASK;
                let soft_off = self.sleep_control >> SLP_TYP_SHIFT == S5_SLEEP_TYPE;
                (value & SLP_EN != 0 && soft_off).then_some(PowerEvent::PowerOff)
            }
            RESET_OFFSET if value == RESET_VALUE => Some(PowerEvent::Reset),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_s5_type_with_the_enable_bit_powers_off() {
        for value in 0..=u8::MAX {
            let event = PowerRegisters::new().write(0, value);
            let wanted = (value & 0x3c == 0x34).then_some(PowerEvent::PowerOff);
            assert_eq!(event, wanted, "{value:#x}");
        }
    }

    #[test]
    fn sleep_type_alone_does_nothing_until_enabled() {
        let mut registers = PowerRegisters::new();
        assert_eq!(registers.write(0, 0x14), None);
        assert_eq!(registers.read(0), 0x14);
        assert_eq!(registers.write(0, 0x34), Some(PowerEvent::PowerOff));
        assert_eq!(registers.read(0), 0x14, "the enable bit is write-only");
    }

    #[test]
    fn only_the_announced_value_resets() {
        for value in 0..=u8::MAX {
            let event = PowerRegisters::new().write(2, value);
            assert_eq!(event.is_some(), value == 1, "{value:#x}");
        }
    }

    #[test]
    fn status_and_reserved_registers_read_zero_and_ignore_writes() {
        let mut registers = PowerRegisters::new();
        for offset in [1, 3, 4, 255] {
            assert_eq!(registers.write(offset, 0xff), None);
            assert_eq!(registers.read(offset), 0);
        }
        assert_eq!(registers, PowerRegisters::new());
    }
}
