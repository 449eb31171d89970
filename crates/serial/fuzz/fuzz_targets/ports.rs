#![no_main]
//! A driver and an event loop, both arbitrary, against a simple model of what the port owes them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use kindling_serial::{OUTPUT_CAPACITY, SerialPort};
use libfuzzer_sys::fuzz_target;
use vm_superio::Trigger;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const LSR_THRE: u8 = 0x20;

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u8),
    Write(u8, u8),
    /// So many bursts by a driver that minds LSR.
    Send(u8),
    /// So many bytes by one that does not.
    Spill(u8),
    /// As many bytes as it takes until there is room for so many only; once per input, for it takes long.
    Fill(u16),
    Push(u8),
    Take(u16),
    Discard(u16),
    Close(bool),
    /// The loop has been there for output, and says whether it comes again by itself.
    Expect(bool),
    Pass(u16),
}

struct Line(Rc<Cell<bool>>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

struct Model {
    port: SerialPort<Line>,
    raised: Rc<Cell<bool>>,
    /// What the reader is owed.
    output: VecDeque<u8>,
    /// What the guest is owed.
    input: VecDeque<u8>,
    receive_capacity: usize,
    fifo_enabled: bool,
    interrupt_enable: u8,
    lost: u64,
    next: u8,
    closed: bool,
    expected: bool,
    /// The loop was refused room and has not been woken since.
    starving: bool,
}

impl Model {
    fn write(&mut self, offset: u8, value: u8) {
        let (latched, looped) = (self.latched(), self.looped());
        let (lost_before, length_before) = (self.port.lost_output(), self.port.output_len());
        let interrupts_before = self.input_interrupts();
        self.raised.set(false);
        let wake = self.port.write(offset, value);
        self.starving &= !wake;
        match offset {
            DATA if !latched && looped => {
                self.input.push_back(value);
                // A full FIFO drops the byte.
                self.input.truncate(self.receive_capacity);
            }
            DATA if !latched => {
                if self.port.lost_output() == lost_before {
                    self.output.push_back(value);
                    assert!(
                        wake || length_before > 0 || self.expected,
                        "output appeared, and nobody was told"
                    );
                    let half = length_before + 1 == OUTPUT_CAPACITY / 2;
                    assert!(wake || !self.expected || !half, "much output gathered, and nobody was told");
                } else {
                    self.lost += 1;
                }
            }
            IER if !latched => self.interrupt_enable = value,
            IIR => {
                let enable = value & 0x01 != 0;
                if enable != self.fifo_enabled || (enable && value & 0x02 != 0) {
                    self.input.clear();
                }
                self.fifo_enabled = enable;
            }
            _ => {}
        }
        self.check(interrupts_before);
    }

    fn read(&mut self, offset: u8) -> u8 {
        let latched = self.latched();
        let interrupts_before = self.input_interrupts();
        let value = self.access(offset);
        if offset == DATA && !latched {
            assert_eq!(value, self.input.pop_front().unwrap_or(0), "input was lost, or came out of order");
        }
        self.check(interrupts_before);
        value
    }

    fn push(&mut self, input: &[u8]) {
        let interrupts_before = self.input_interrupts();
        self.raised.set(false);
        let room = self.port.input_room();
        let taken = self.port.push_input(input);
        assert_eq!(taken, input.len().min(room));
        self.input.extend(&input[..taken]);
        self.check(interrupts_before);
    }

    fn access(&mut self, offset: u8) -> u8 {
        let read = self.port.read(offset);
        self.starving &= !read.wake;
        read.value
    }

    fn latched(&mut self) -> bool {
        self.access(LCR) & LCR_DLAB != 0
    }

    fn looped(&mut self) -> bool {
        self.access(MCR) & MCR_LOOP != 0
    }

    fn input_interrupts(&self) -> bool {
        self.interrupt_enable & 0x01 != 0 && !self.input.is_empty()
    }

    fn may_send(&mut self) -> bool {
        self.read(LSR) & LSR_THRE != 0
    }

    fn byte(&mut self) -> u8 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn fill(&mut self, room: usize) {
        // Also gives up a reader whose time has passed.
        self.access(LSR);
        if self.latched() || self.looped() || self.closed || self.port.is_discarding() {
            return;
        }
        let length = OUTPUT_CAPACITY - room;
        while self.output.len() < length {
            let byte = self.byte();
            self.starving &= !self.port.write(DATA, byte);
            self.output.push_back(byte);
        }
        self.check(true);
    }

    fn take(&mut self, count: usize) {
        let mut buffer = vec![0; count];
        let copied = self.port.peek_output(&mut buffer);
        assert!(copied > 0 || count == 0 || self.output.is_empty());
        self.port.consume_output(copied);
        assert!(self.output.drain(..copied).eq(buffer.into_iter().take(copied)), "output was changed");
        self.check(true);
    }

    fn check(&mut self, interrupts_before: bool) {
        if !interrupts_before && self.input_interrupts() {
            assert!(self.raised.get(), "there is input, and nobody was told");
        }
        assert_eq!(self.port.output_len(), self.output.len());
        assert_eq!(self.port.lost_output(), self.lost);
        assert!(self.output.len() <= OUTPUT_CAPACITY);
        assert!(!self.closed || self.output.is_empty());
        if self.port.input_room() == 0 {
            self.starving = true;
        } else if self.input.is_empty() {
            assert!(!self.starving, "there is room for input, and nobody was told");
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let raised = Rc::new(Cell::new(false));
    let millis = Arc::new(AtomicU64::new(0));
    let (start, clock) = (Instant::now(), millis.clone());
    let port = SerialPort::with_clock(Line(raised.clone()), move || {
        start + Duration::from_millis(clock.load(Ordering::Relaxed))
    });
    let receive_capacity = port.input_room();
    let mut model = Model {
        port,
        raised,
        output: VecDeque::new(),
        input: VecDeque::new(),
        receive_capacity,
        fifo_enabled: false,
        interrupt_enable: 0,
        lost: 0,
        next: 0,
        closed: false,
        expected: false,
        starving: false,
    };

    let mut filled = false;
    for step in steps.into_iter().take(128) {
        match step {
            Step::Read(offset) => {
                model.read(offset % 10);
            }
            Step::Write(offset, value) => model.write(offset % 10, value),
            Step::Send(bursts) => {
                for _ in 0..bursts % 8 {
                    if model.latched() || !model.may_send() {
                        break;
                    }
                    let (lost, drops) = (model.lost, model.closed || model.port.is_discarding());
                    for _ in 0..16 {
                        let byte = model.byte();
                        model.write(DATA, byte);
                    }
                    assert!(drops || model.lost == lost, "a driver that minds LSR lost output");
                }
            }
            Step::Spill(count) => {
                for _ in 0..count % 128 {
                    let byte = model.byte();
                    model.write(DATA, byte);
                }
            }
            Step::Fill(room) if !filled => {
                filled = true;
                model.fill(usize::from(room % 4096));
            }
            Step::Fill(_) => {}
            Step::Push(count) => {
                let input: Vec<u8> = (0..count).map(|_| model.byte()).collect();
                model.push(&input);
            }
            Step::Take(count) => model.take(count.into()),
            Step::Discard(count) => {
                let count = usize::from(count).min(model.output.len());
                model.port.discard_output(count);
                model.output.drain(..count);
                model.lost += count as u64;
                model.check(true);
            }
            Step::Close(closed) => {
                model.port.set_closed(closed);
                if closed {
                    model.lost += model.output.len() as u64;
                    model.output.clear();
                }
                model.closed = closed;
                model.check(true);
            }
            Step::Expect(expected) => {
                model.port.expect_output(expected);
                model.expected = expected;
                model.check(true);
            }
            Step::Pass(time) => {
                millis.fetch_add(time.into(), Ordering::Relaxed);
            }
        }
    }

    // Whatever has happened: a driver that starts over gets its interrupts, its input, and its output out.
    while !model.output.is_empty() {
        model.take(OUTPUT_CAPACITY);
    }
    model.write(LCR, 0x03);
    model.write(MCR, 0x08);
    for _ in 0..receive_capacity {
        model.read(DATA);
    }
    assert!(model.input.is_empty());
    model.write(IER, 0);
    model.raised.set(false);
    model.write(IER, 0x02);
    assert!(model.raised.take(), "the transmitter is empty, and nobody was told");
    assert_eq!(model.read(IIR) & 0x0f, 0x02);
    assert_eq!(model.read(IIR) & 0x0f, 0x01);
    model.write(IER, 0x01);
    model.push(b"a");
    assert_eq!(model.read(IIR) & 0x0f, 0x04);
    model.read(DATA);
    assert_eq!(model.read(IIR) & 0x0f, 0x01);
});
