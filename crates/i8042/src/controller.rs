//! The keyboard controller proper: its two ports, its command byte, and the one-byte output buffer between a
//! keyboard and the guest.
//!
//! After the data sheet of Intel's 8042 as the IBM PC/AT and PS/2 programmed it; the commands are those that boot code
//! and operating systems use. There is no second (mouse) port, and the tests for one say so.

use vm_superio::Trigger;

use crate::keyboard::Keyboard;
use crate::{Error, Event};

/// Offset of the data port (0x60) from the controller's first port.
pub const DATA_OFFSET: u8 = 0;
/// Offset of the command port, when written, and status port, when read (0x64), from the controller's first port.
pub const COMMAND_OFFSET: u8 = 4;

/// Bits of the status register.
mod status {
    /// A byte waits in the output buffer.
    pub const OUTPUT_FULL: u8 = 1 << 0;
    /// The last byte written went to the command port.
    pub const COMMAND: u8 = 1 << 3;
    /// The keyboard lock is open.
    pub const UNLOCKED: u8 = 1 << 4;
    /// The waiting byte comes from the mouse port.
    pub const FROM_AUX: u8 = 1 << 5;
}

/// Bits of the command byte.
mod command_byte {
    /// Raise IRQ 1 when a byte from the keyboard or the controller waits.
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    /// The system is initialised; the status register shows the same bit.
    pub const SYSTEM: u8 = 1 << 2;
    /// The keyboard's clock is stopped: it cannot send.
    pub const KEYBOARD_DISABLED: u8 = 1 << 4;
    /// The mouse's clock is stopped.
    pub const AUX_DISABLED: u8 = 1 << 5;
    /// Translate scan codes from set 2 to set 1.
    pub const TRANSLATE: u8 = 1 << 6;
}

/// Commands to the controller, written to the command port.
mod command {
    pub const READ_COMMAND_BYTE: u8 = 0x20;
    pub const WRITE_COMMAND_BYTE: u8 = 0x60;
    pub const DISABLE_AUX: u8 = 0xa7;
    pub const ENABLE_AUX: u8 = 0xa8;
    pub const TEST_AUX: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_AUX_OUTPUT: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    /// From here on: pulse those of output port lines 0 to 3 whose bit in the command is zero.
    pub const PULSE_OUTPUT_PORT: u8 = 0xf0;
}

/// Answer to the self test: passed.
const SELF_TEST_PASSED: u8 = 0x55;
/// Answer to a port's test: nothing wrong.
const PORT_TEST_PASSED: u8 = 0x00;
/// Answer to a port's test: the clock line is stuck low, as it is when nothing is there.
const PORT_TEST_CLOCK_LOW: u8 = 0x01;

/// Output port line 0: the CPU's reset line, active low.
const OUTPUT_PORT_NO_RESET: u8 = 1 << 0;
/// Output port line 1: the A20 gate, always open.
const OUTPUT_PORT_A20: u8 = 1 << 1;

/// What a byte written to the data port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataFor {
    Keyboard,
    CommandByte,
    OutputPort,
    AuxOutput,
    Aux,
}

/// A byte on its way to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Output {
    byte: u8,
    from_aux: bool,
}

/// A keyboard controller with a keyboard. `T` raises its interrupt, IRQ 1, an edge at a time.
#[derive(Debug)]
pub struct I8042<T: Trigger> {
    interrupt: T,
    keyboard: Keyboard,
    command_byte: u8,
    /// The output buffer, when full.
    output: Option<Output>,
    /// The controller's answer that waits for the output buffer; it goes before what the keyboard has to say.
    answer: Option<Output>,
    /// The byte last read, which an empty output buffer still shows.
    last_output: u8,
    data_for: DataFor,
    last_write_was_command: bool,
}

impl<T: Trigger> I8042<T>
where
    T::E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// A controller as the firmware leaves it: translating, its interrupt off until a driver wants it.
    pub fn new(interrupt: T) -> Self {
        Self {
            interrupt,
            keyboard: Keyboard::new(),
            command_byte: command_byte::SYSTEM | command_byte::TRANSLATE,
            output: None,
            answer: None,
            last_output: 0,
            data_for: DataFor::Keyboard,
            last_write_was_command: false,
        }
    }

    /// The guest reads a byte at `offset` from the first port: [`DATA_OFFSET`] or [`COMMAND_OFFSET`] (status); all
    /// bits are set anywhere else.
    pub fn read(&mut self, offset: u8) -> u8 {
        match offset {
            DATA_OFFSET => self.read_data(),
            COMMAND_OFFSET => self.status(),
            _ => 0xff,
        }
    }

    /// The guest writes a byte at `offset` from the first port: [`DATA_OFFSET`] or [`COMMAND_OFFSET`]; writes
    /// anywhere else are ignored.
    ///
    /// # Errors
    /// [`Error::Trigger`] when the byte was taken but the interrupt could not be raised.
    pub fn write(&mut self, offset: u8, value: u8) -> Result<Option<Event>, Error> {
        match offset {
            DATA_OFFSET => self.write_data(value),
            COMMAND_OFFSET => self.write_command(value),
            _ => Ok(None),
        }
    }

    /// The host presses and releases Ctrl+Alt+Del.
    ///
    /// # Errors
    /// [`Error::NotListening`] or [`Error::BufferFull`], and then nothing was pressed; [`Error::Trigger`] when the
    /// strokes wait in the controller but the interrupt could not be raised.
    pub fn press_ctrl_alt_del(&mut self) -> Result<(), Error> {
        let listening =
            self.has(command_byte::KEYBOARD_INTERRUPT) && !self.has(command_byte::KEYBOARD_DISABLED);
        if !listening || !self.keyboard.is_scanning() {
            return Err(Error::NotListening { command_byte: self.command_byte });
        }
        self.keyboard.press_ctrl_alt_del(self.has(command_byte::TRANSLATE))?;
        self.fill_output()
    }

    fn has(&self, bit: u8) -> bool {
        self.command_byte & bit != 0
    }

    fn status(&self) -> u8 {
        let mut status = status::UNLOCKED | (self.command_byte & command_byte::SYSTEM);
        if let Some(output) = self.output {
            status |= status::OUTPUT_FULL;
            if output.from_aux {
                status |= status::FROM_AUX;
            }
        }
        if self.last_write_was_command {
            status |= status::COMMAND;
        }
        status
    }

    fn read_data(&mut self) -> u8 {
        if let Some(output) = self.output.take() {
            self.last_output = output.byte;
            // There is nobody to report a failure to, and the byte waits in any case: a driver finds it when it polls.
            let _ = self.fill_output();
        }
        self.last_output
    }

    fn write_command(&mut self, value: u8) -> Result<Option<Event>, Error> {
        self.last_write_was_command = true;
        self.data_for = DataFor::Keyboard;
        match value {
            command::READ_COMMAND_BYTE => self.answer(self.command_byte, false)?,
            command::WRITE_COMMAND_BYTE => self.data_for = DataFor::CommandByte,
            command::DISABLE_AUX => self.command_byte |= command_byte::AUX_DISABLED,
            command::ENABLE_AUX => self.command_byte &= !command_byte::AUX_DISABLED,
            command::TEST_AUX => self.answer(PORT_TEST_CLOCK_LOW, false)?,
            command::SELF_TEST => {
                self.command_byte |= command_byte::SYSTEM;
                self.answer(SELF_TEST_PASSED, false)?;
            }
            command::TEST_KEYBOARD => self.answer(PORT_TEST_PASSED, false)?,
            command::DISABLE_KEYBOARD => self.command_byte |= command_byte::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => {
                self.command_byte &= !command_byte::KEYBOARD_DISABLED;
                self.fill_output()?;
            }
            command::READ_OUTPUT_PORT => self.answer(OUTPUT_PORT_NO_RESET | OUTPUT_PORT_A20, false)?,
            command::WRITE_OUTPUT_PORT => self.data_for = DataFor::OutputPort,
            command::WRITE_AUX_OUTPUT => self.data_for = DataFor::AuxOutput,
            command::WRITE_AUX => self.data_for = DataFor::Aux,
            command::PULSE_OUTPUT_PORT.. if value & OUTPUT_PORT_NO_RESET == 0 => {
                return Ok(Some(Event::Reset));
            }
            _ => {}
        }
        Ok(None)
    }

    fn write_data(&mut self, value: u8) -> Result<Option<Event>, Error> {
        self.last_write_was_command = false;
        match std::mem::replace(&mut self.data_for, DataFor::Keyboard) {
            DataFor::Keyboard => {
                // Talking to the keyboard starts its clock.
                self.command_byte &= !command_byte::KEYBOARD_DISABLED;
                self.keyboard.receive(value, self.has(command_byte::TRANSLATE));
                self.fill_output()?;
            }
            DataFor::CommandByte => self.write_command_byte(value)?,
            DataFor::OutputPort if value & OUTPUT_PORT_NO_RESET == 0 => return Ok(Some(Event::Reset)),
            // With no mouse port, what should come back from it does not. Linux takes the wrong byte for "no mouse" at
            // once, where it would wait half a second for a missing one.
            DataFor::AuxOutput => self.answer(!value, true)?,
            DataFor::OutputPort | DataFor::Aux => {}
        }
        Ok(None)
    }

    fn write_command_byte(&mut self, value: u8) -> Result<(), Error> {
        let interrupt_was_on = self.has(command_byte::KEYBOARD_INTERRUPT);
        self.command_byte = value;
        if !interrupt_was_on {
            self.raise_interrupt()?;
        }
        self.fill_output()
    }

    /// Gives the controller's own answer. One that is still unread is replaced: the guest did not wait for it.
    fn answer(&mut self, byte: u8, from_aux: bool) -> Result<(), Error> {
        self.answer = Some(Output { byte, from_aux });
        self.fill_output()
    }

    /// Moves the next byte into the output buffer if that is empty, and raises the interrupt for it.
    fn fill_output(&mut self) -> Result<(), Error> {
        if self.output.is_some() {
            return Ok(());
        }
        self.output = self.answer.take();
        if self.output.is_none() && !self.has(command_byte::KEYBOARD_DISABLED) {
            self.output = self.keyboard.next().map(|byte| Output { byte, from_aux: false });
        }
        self.raise_interrupt()
    }

    /// Raises the interrupt if the output buffer holds a byte that calls for it.
    fn raise_interrupt(&self) -> Result<(), Error> {
        let waiting = self.output.is_some_and(|output| !output.from_aux);
        if waiting && self.has(command_byte::KEYBOARD_INTERRUPT) {
            self.interrupt.trigger().map_err(|error| Error::Trigger(error.into()))?;
        }
        Ok(())
    }
}
