//! The port as the guest sees it: the registers of a 16550A over [`vm_superio::Serial`], with bounded buffers towards
//! both sides. No file descriptor, no thread: vCPUs access the registers, the event loop moves the bytes
//! ([`Console`](crate::Console)), and both share the port under a mutex that is held for copying only.
//!
//! vm-superio keeps the registers, the receive FIFO and loopback. What differs from it follows the PC16550D data sheet:
//! - LSR shows the transmitter empty only while there is room for the guest's output, and the interrupt of an empty
//!   transmitter comes when that changes (see [`STALL_LIMIT`](crate::STALL_LIMIT) for readers that have stopped).
//! - The interrupt line is derived from the state of the port. IIR names one source, the most urgent, and reading it
//!   acknowledges that source only; received data stays pending until it is read (table III).
//! - FCR enables the FIFOs, which IIR shows, and clears the receive FIFO. Clearing the transmit FIFO does nothing: what
//!   the guest has sent counts as sent.
//! - The three upper bits of MCR read as zero.

use std::convert::Infallible;
use std::time::Instant;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::OUTPUT_CAPACITY;
use crate::output::{Clock, Output};

const DATA: u8 = 0;
const IER: u8 = 1;
/// Interrupt identification when read, FIFO control (FCR) when written.
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;

const IER_RDA: u8 = 1 << 0;
const IER_THRE: u8 = 1 << 1;
const IER_MASK: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_THRE: u8 = 0x02;
const IIR_RDA: u8 = 0x04;
const IIR_FIFO_ENABLED: u8 = 0xc0;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;

/// The UART model's own interrupt, which this port does not use: it derives the line itself.
struct Unwired;

impl Trigger for Unwired {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// What a register read gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct RegisterRead {
    /// The register's value.
    pub value: u8,
    /// Whether the event loop must be woken: the guest has drained the receive FIFO and there may be more for it.
    pub wake: bool,
}

/// A 16550A serial port; `T` raises its (edge-triggered) interrupt.
///
/// A failed interrupt is counted and tried again at the next access; it loses no data.
pub struct SerialPort<T: Trigger> {
    uart: Serial<Unwired, NoEvents, Output>,
    trigger: T,
    receive_capacity: usize,
    interrupt_enable: u8,
    fifo_enabled: bool,
    loopback: bool,
    /// The transmitter has become empty, and the guest has not acknowledged that.
    thr_empty: bool,
    /// The transmitter is empty, but its interrupt waits for the event loop: see [`SerialPort::write`].
    thr_deferred: bool,
    /// Sources (as IER bits) that were pending when the interrupt was last looked at.
    signalled: u8,
    /// The event loop found no room in the receive FIFO and waits to be woken.
    input_stalled: bool,
    /// The event loop comes back for more output by itself.
    output_expected: bool,
    failed_interrupts: u64,
}

impl<T: Trigger> SerialPort<T> {
    /// A port as it is after a reset.
    pub fn new(trigger: T) -> Self {
        Self::with_clock(trigger, Instant::now)
    }

    /// A port that measures how long its reader has stopped with `clock`, which is read only while the guest waits.
    pub fn with_clock(trigger: T, clock: impl Fn() -> Instant + Send + 'static) -> Self {
        let clock: Clock = Box::new(clock);
        let uart = Serial::new(Unwired, Output::new(clock));
        SerialPort {
            receive_capacity: uart.fifo_capacity(),
            uart,
            trigger,
            interrupt_enable: 0,
            fifo_enabled: false,
            loopback: false,
            thr_empty: false,
            thr_deferred: false,
            signalled: 0,
            input_stalled: false,
            output_expected: false,
            failed_interrupts: 0,
        }
    }

    /// The guest reads the register at `offset` (0 to 7; others read as zero).
    pub fn read(&mut self, offset: u8) -> RegisterRead {
        let value = match offset {
            IIR => self.read_interrupt_identification(),
            LSR => self.read_line_status(),
            _ => self.uart.read(offset),
        };
        self.settle();
        RegisterRead { value, wake: self.input_resumes() }
    }

    /// The guest writes `value` to the register at `offset` (0 to 7; others are ignored).
    ///
    /// Returns whether the event loop must be woken: there is output where there was none (or, while the loop
    /// [comes by itself](Self::expect_output), half of what the port holds), or room for input again.
    #[must_use = "without the wake-up, bytes get stuck"]
    pub fn write(&mut self, offset: u8, value: u8) -> bool {
        let enough = if self.output_expected { OUTPUT_CAPACITY / 2 } else { 1 };
        let was_enough = self.output_len() >= enough;
        let latched = self.divisor_latched();
        match offset {
            DATA if !latched => {
                self.uart.writer_mut().check_stall();
                self.forward(DATA, value);
                // With an endless line behind it, the transmitter is empty again as soon as the byte is stored. A driver
                // sees that at once if it looks. Its interrupt is left to the event loop, which is about to come for
                // the byte: most drivers look before they leave their handler, and it would only find them busy there.
                self.thr_empty = true;
                self.thr_deferred = self.output_len() != 0;
            }
            IER if !latched => {
                self.interrupt_enable = value & IER_MASK;
                self.forward(IER, value);
                // Enabling the interrupt while the transmitter is empty raises it; Linux probes for this.
                self.thr_empty = self.interrupt_enable & IER_THRE != 0;
                self.thr_deferred = false;
            }
            IIR => self.write_fifo_control(value),
            MCR => {
                self.loopback = value & MCR_LOOP != 0;
                self.forward(MCR, value & MCR_MASK);
            }
            _ => self.forward(offset, value),
        }
        self.settle();
        let output_appeared = !was_enough && self.output_len() >= enough;
        self.input_resumes() || output_appeared
    }

    /// To be called whenever the event loop has been here for output. Says whether it comes back for more within a moment
    /// without being woken: a guest that sends byte after byte then costs one wake-up per batch instead of one per byte.
    pub fn expect_output(&mut self, expected: bool) {
        self.output_expected = expected;
        self.thr_deferred = false;
        self.settle();
    }

    /// Bytes of output that wait to be taken, at most [`OUTPUT_CAPACITY`](crate::OUTPUT_CAPACITY).
    pub fn output_len(&self) -> usize {
        self.uart.writer().len()
    }

    /// Copies oldest output to `buffer` and returns how many bytes: possibly fewer than there are, but not none. They
    /// stay in the port until [`consume_output`](Self::consume_output), so that they can be written out without
    /// holding the port's lock.
    pub fn peek_output(&self, buffer: &mut [u8]) -> usize {
        self.uart.writer().peek(buffer)
    }

    /// Removes the `count` oldest bytes of output, which the reader has taken; the guest may get to send again.
    pub fn consume_output(&mut self, count: usize) {
        self.change_output(|output| output.consume(count));
    }

    /// Removes the `count` oldest bytes of output, which could not be delivered, and counts them as lost.
    pub fn discard_output(&mut self, count: usize) {
        self.change_output(|output| output.discard(count));
    }

    /// Says that there is nobody to read the output (it is then discarded and counted), or somebody again.
    pub fn set_closed(&mut self, closed: bool) {
        self.change_output(|output| output.set_closed(closed));
    }

    /// Whether the output is being discarded because its reader has stopped taking it.
    pub fn is_discarding(&self) -> bool {
        self.uart.writer().discarding()
    }

    /// Bytes of output that nobody got.
    pub fn lost_output(&self) -> u64 {
        self.uart.writer().lost()
    }

    /// Interrupts that could not be raised.
    pub fn failed_interrupts(&self) -> u64 {
        self.failed_interrupts
    }

    /// How many bytes of input the guest can take now. While there is no room, a wake-up is due from
    /// [`read`](Self::read) or [`write`](Self::write).
    pub fn input_room(&self) -> usize {
        if self.loopback { 0 } else { self.uart.fifo_capacity() }
    }

    /// Hands input to the guest and returns how many bytes fitted; the caller keeps the rest for after the wake-up.
    pub fn push_input(&mut self, input: &[u8]) -> usize {
        // A full FIFO is the only error the model has here (its interrupt cannot fail), and means that nothing fitted.
        let taken = self.uart.enqueue_raw_bytes(input).unwrap_or(0);
        self.input_stalled |= self.input_room() == 0;
        self.settle();
        taken
    }

    fn read_interrupt_identification(&mut self) -> u8 {
        let pending = self.pending();
        let source = if pending & IER_RDA != 0 {
            IIR_RDA
        } else if pending & IER_THRE != 0 {
            self.thr_empty = false;
            IIR_THRE
        } else {
            IIR_NONE
        };
        source | if self.fifo_enabled { IIR_FIFO_ENABLED } else { 0 }
    }

    fn read_line_status(&mut self) -> u8 {
        let ready_before = self.uart.writer().ready();
        self.uart.writer_mut().check_stall();
        let ready = self.uart.writer().ready();
        self.transmitter_resumes(ready && !ready_before);
        let status = self.uart.read(LSR);
        if ready { status } else { status & !(LSR_THRE | LSR_TEMT) }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        // The other bits take effect only together with the enabling one; changing that one clears the FIFOs as well.
        if enable != self.fifo_enabled || (enable && value & FCR_CLEAR_RECEIVER != 0) {
            let line_control = self.uart.read(LCR);
            self.forward(LCR, line_control & !LCR_DLAB);
            for _ in 0..self.received() {
                self.uart.read(DATA);
            }
            self.forward(LCR, line_control);
        }
        self.fifo_enabled = enable;
    }

    fn forward(&mut self, offset: u8, value: u8) {
        // Neither the model's interrupt nor its output can fail here.
        let _ = self.uart.write(offset, value);
    }

    fn change_output(&mut self, change: impl FnOnce(&mut Output)) {
        let ready_before = self.uart.writer().ready();
        change(self.uart.writer_mut());
        self.transmitter_resumes(self.uart.writer().ready() && !ready_before);
        self.settle();
    }

    /// A driver that had to wait is told at once.
    fn transmitter_resumes(&mut self, resumes: bool) {
        self.thr_empty |= resumes;
        self.thr_deferred &= !resumes;
    }

    fn divisor_latched(&mut self) -> bool {
        self.uart.read(LCR) & LCR_DLAB != 0
    }

    /// Bytes in the receive FIFO.
    fn received(&self) -> usize {
        self.receive_capacity.saturating_sub(self.uart.fifo_capacity())
    }

    /// Sources of interrupts, as IER bits, that hold and are enabled.
    fn pending(&self) -> u8 {
        let received = if self.received() > 0 { IER_RDA } else { 0 };
        let thr_empty = if self.thr_empty { IER_THRE } else { 0 };
        self.interrupt_enable & (received | thr_empty)
    }

    /// Raises the interrupt if a source has become pending since the last time.
    fn settle(&mut self) {
        self.thr_empty &= self.uart.writer().ready();
        let deferred = if self.thr_deferred { IER_THRE } else { 0 };
        let pending = self.pending() & !deferred;
        if pending & !self.signalled != 0 && self.trigger.trigger().is_err() {
            self.failed_interrupts = self.failed_interrupts.saturating_add(1);
            self.signalled &= pending;
        } else {
            self.signalled = pending;
        }
    }

    /// Whether the event loop, which had found no room for input, must be told that there is room again.
    fn input_resumes(&mut self) -> bool {
        if self.input_room() == 0 {
            self.input_stalled = true;
            return false;
        }
        self.received() == 0 && std::mem::take(&mut self.input_stalled)
    }
}
