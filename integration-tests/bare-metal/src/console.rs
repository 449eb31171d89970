//! The first serial port, a 16550A (National Semiconductor PC16550D data sheet), driven by polling.

use core::fmt;

use crate::machine::{read_port, write_port};

/// The first port of COM1: receiver buffer and transmitter holding register.
const COM1: u16 = 0x3f8;
/// FIFO control register (write) and interrupt identification register (read).
const FIFO: u16 = COM1 + 2;
/// Line status register.
pub const LINE_STATUS: u16 = COM1 + 5;

const FIFO_ENABLE: u8 = 0x01;
/// Both bits of the interrupt identification register that a 16550A with its FIFO enabled sets.
const FIFO_WORKS: u8 = 0xc0;
const FIFO_SIZE: usize = 16;

const DATA_READY: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;

/// The console as a [`fmt::Write`] that never fails; a line feed goes out as it is.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

/// Enables the FIFO. Without it a driver may write one byte at a time only.
pub fn enable_fifo() {
    write_port(FIFO, FIFO_ENABLE);
}

/// Writes as a driver does: whenever the transmitter reports that it is empty, as many bytes as it holds.
pub fn write(bytes: &[u8]) {
    let burst = if read_port(FIFO) & FIFO_WORKS == FIFO_WORKS { FIFO_SIZE } else { 1 };
    for chunk in bytes.chunks(burst) {
        while read_port(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
        for &byte in chunk {
            write_port(COM1, byte);
        }
    }
}

/// Waits for the next byte of input.
pub fn read() -> u8 {
    while read_port(LINE_STATUS) & DATA_READY == 0 {}
    read_port(COM1)
}
