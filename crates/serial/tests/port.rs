//! The port from both of its sides: a driver at the registers, an event loop at the buffers.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kindling_serial::{OUTPUT_CAPACITY, STALL_LIMIT, SerialPort};
use vm_superio::Trigger;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const RDA: u8 = 0x01;
const THRE: u8 = 0x02;
const DATA_READY: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x60;
const LOOPBACK: u8 = 0x10;

/// An interrupt line that counts, and can be broken.
#[derive(Clone, Default)]
struct Line {
    raised: Rc<Cell<usize>>,
    broken: Rc<Cell<bool>>,
}

impl Trigger for Line {
    type E = &'static str;

    fn trigger(&self) -> Result<(), Self::E> {
        if self.broken.get() {
            return Err("broken");
        }
        self.raised.set(self.raised.get() + 1);
        Ok(())
    }
}

struct Bench {
    port: SerialPort<Line>,
    line: Line,
    elapsed: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        let (line, elapsed) = (Line::default(), Arc::new(AtomicU64::new(0)));
        let (start, clock) = (Instant::now(), elapsed.clone());
        let port = SerialPort::with_clock(line.clone(), move || {
            start + Duration::from_millis(clock.load(Ordering::Relaxed))
        });
        Bench { port, line, elapsed }
    }

    fn pass(&self, time: Duration) {
        self.elapsed.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }

    fn get(&mut self, offset: u8) -> u8 {
        self.port.read(offset).value
    }

    fn set(&mut self, offset: u8, value: u8) {
        let _ = self.port.write(offset, value);
    }

    /// Interrupts since the last call.
    fn interrupts(&self) -> usize {
        self.line.raised.take()
    }

    fn may_send(&mut self) -> bool {
        self.get(LSR) & TRANSMITTER_EMPTY == TRANSMITTER_EMPTY
    }

    /// Sends as a driver that minds LSR does, until it is told to wait.
    fn fill(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.may_send() {
            assert!(sent.len() <= OUTPUT_CAPACITY, "the port takes output without end");
            for _ in 0..16 {
                let byte = u8::try_from(sent.len() % 251).unwrap();
                self.set(DATA, byte);
                sent.push(byte);
            }
        }
        sent
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            let mut buffer = vec![0; count - all.len()];
            let copied = self.port.peek_output(&mut buffer);
            if copied == 0 {
                break;
            }
            self.port.consume_output(copied);
            all.extend_from_slice(&buffer[..copied]);
        }
        all
    }
}

#[test]
fn output_comes_out_as_written_and_wakes_the_loop_once() {
    let mut bench = Bench::new();
    assert!(bench.port.write(DATA, b'h'));
    assert!(!bench.port.write(DATA, b'i'));
    assert_eq!(bench.take(100), b"hi");
    assert!(bench.port.write(DATA, b'!'));
}

#[test]
fn a_full_ring_makes_the_driver_wait_and_loses_nothing() {
    let mut bench = Bench::new();
    bench.set(IER, THRE);
    let mut sent = bench.fill();
    assert!(!bench.may_send());
    assert_eq!(bench.get(IIR), 0x01, "no interrupt while the transmitter is busy");
    bench.interrupts();
    bench.set(IER, 0);
    bench.set(IER, THRE);
    assert_eq!(bench.interrupts(), 0, "enabling the interrupt raises it only when the transmitter is empty");

    let mut received = bench.take(4096);
    assert_eq!(bench.interrupts(), 1);
    assert_eq!(bench.get(IIR), THRE);
    assert!(bench.may_send());
    sent.extend(bench.fill());
    received.extend(bench.take(OUTPUT_CAPACITY));
    assert!(received == sent);
    assert_eq!(bench.port.lost_output(), 0);
}

#[test]
fn a_driver_that_times_out_and_writes_anyway_loses_nothing_until_the_reader_is_given_up() {
    let mut bench = Bench::new();
    let mut sent = bench.fill();
    let mut polls = 0;
    while !bench.may_send() {
        // Linux: a burst of 16 bytes after 10 ms of waiting.
        bench.pass(Duration::from_millis(10));
        bench.get(LSR);
        if bench.port.is_discarding() {
            break;
        }
        for byte in *b"sixteen at once." {
            bench.set(DATA, byte);
            sent.push(byte);
        }
        polls += 1;
        assert!(polls < 1000, "the guest stalls for ever");
    }
    assert_eq!(polls, STALL_LIMIT.as_millis() / 10 - 1);
    assert_eq!(bench.port.lost_output(), 0);
    assert!(bench.take(OUTPUT_CAPACITY) == sent);
}

#[test]
fn a_stopped_reader_stalls_the_guest_for_a_bounded_time_and_loses_counted_bytes() {
    let mut bench = Bench::new();
    bench.set(IER, THRE);
    let sent = bench.fill();
    bench.interrupts();
    bench.pass(STALL_LIMIT - Duration::from_millis(1));
    assert!(!bench.may_send());
    bench.pass(Duration::from_millis(1));
    assert!(bench.may_send());
    assert_eq!(bench.interrupts(), 1, "drivers that wait for the interrupt go on as well");
    for _ in 0..1000 {
        bench.set(DATA, b'?');
    }
    assert!(bench.port.is_discarding());
    assert_eq!(bench.port.lost_output(), 1000);

    // The reader is back: what was kept comes out, and nothing is lost from here on.
    let mut received = bench.take(1);
    assert!(!bench.port.is_discarding());
    assert!(!bench.may_send());
    received.extend(bench.take(OUTPUT_CAPACITY));
    assert!(received == sent);
    bench.set(DATA, b'k');
    assert_eq!(bench.take(10), b"k");
    assert_eq!(bench.port.lost_output(), 1000);
}

#[test]
fn a_reader_that_takes_a_byte_now_and_then_is_not_given_up() {
    let mut bench = Bench::new();
    bench.fill();
    for _ in 0..10 {
        bench.pass(STALL_LIMIT - Duration::from_millis(1));
        assert!(!bench.may_send());
        assert_eq!(bench.take(1).len(), 1);
    }
    assert!(!bench.port.is_discarding());
}

#[test]
fn a_driver_that_ignores_the_line_status_loses_its_own_bytes() {
    let mut bench = Bench::new();
    for _ in 0..OUTPUT_CAPACITY + 10 {
        bench.set(DATA, b'x');
    }
    assert_eq!(bench.port.lost_output(), 10);
    assert_eq!(bench.port.output_len(), OUTPUT_CAPACITY);
}

#[test]
fn without_a_reader_output_is_discarded_and_the_driver_never_waits() {
    let mut bench = Bench::new();
    bench.set(IER, THRE);
    bench.fill();
    let held = u64::try_from(bench.port.output_len()).unwrap();
    bench.interrupts();
    bench.port.set_closed(true);
    assert_eq!(bench.interrupts(), 1);
    assert!(bench.may_send());
    assert!(!bench.port.write(DATA, b'x'), "nothing to wake the loop for");
    assert_eq!(bench.port.lost_output(), held + 1);
    bench.port.set_closed(false);
    assert!(bench.port.write(DATA, b'y'));
    assert_eq!(bench.take(10), b"y");
}

#[test]
fn input_is_taken_as_far_as_it_fits_and_the_loop_is_woken_once_the_driver_has_read_it() {
    let mut bench = Bench::new();
    let input: Vec<u8> = (0..200).collect();
    let room = bench.port.input_room();
    let mut taken = bench.port.push_input(&input);
    assert_eq!(taken, room);
    assert_eq!((bench.port.input_room(), bench.port.push_input(&input[taken..])), (0, 0));

    let (mut received, mut wakes) = (Vec::new(), 0);
    while bench.get(LSR) & DATA_READY != 0 {
        let read = bench.port.read(DATA);
        received.push(read.value);
        if read.wake {
            wakes += 1;
            taken += bench.port.push_input(&input[taken..]);
        }
    }
    assert_eq!(received, input);
    assert_eq!(wakes, input.len() / room, "one wake-up each time the FIFO had been full");
}

#[test]
fn nobody_is_woken_when_there_was_room_all_the_time() {
    let mut bench = Bench::new();
    bench.port.push_input(b"a");
    assert!(!bench.port.read(DATA).wake);
}

#[test]
fn received_data_interrupts_and_stays_pending_until_it_is_read() {
    let mut bench = Bench::new();
    bench.set(IER, RDA);
    bench.port.push_input(b"ab");
    assert_eq!(bench.interrupts(), 1);
    assert_eq!(bench.get(IIR), 0x04);
    assert_eq!(bench.get(DATA), b'a');
    assert_eq!(bench.get(IIR), 0x04, "there is more");
    assert_eq!(bench.get(DATA), b'b');
    assert_eq!(bench.get(IIR), 0x01);
    bench.port.push_input(b"c");
    assert_eq!(bench.interrupts(), 1);
}

#[test]
fn input_that_came_while_interrupts_were_masked_interrupts_when_they_are_enabled() {
    let mut bench = Bench::new();
    bench.port.push_input(b"a");
    assert_eq!(bench.interrupts(), 0);
    assert_eq!(bench.get(IIR), 0x01);
    bench.set(IER, RDA);
    assert_eq!(bench.interrupts(), 1);
    // Linux's console masks and restores the interrupts around each message.
    bench.set(IER, 0);
    bench.set(IER, RDA);
    assert_eq!(bench.interrupts(), 1);
}

#[test]
fn iir_names_one_source_the_most_urgent_first() {
    let mut bench = Bench::new();
    bench.set(IER, RDA | THRE);
    bench.port.push_input(b"a");
    assert_eq!(bench.get(IIR), 0x04);
    assert_eq!(bench.get(DATA), b'a');
    assert_eq!(bench.get(IIR), 0x02, "the empty transmitter was not acknowledged by that");
    assert_eq!(bench.get(IIR), 0x01);
}

#[test]
fn linux_finds_that_the_empty_transmitter_interrupts_again_when_enabled_again() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.set(IER, THRE);
        assert_eq!(bench.get(IIR), 0x02);
        bench.set(IER, 0);
    }
    assert_eq!(bench.interrupts(), 2);
}

#[test]
fn sending_driver_that_looks_again_goes_on_without_an_interrupt() {
    let mut bench = Bench::new();
    bench.set(IER, THRE);
    assert_eq!((bench.get(IIR), bench.interrupts()), (0x02, 1));
    for _ in 0..3 {
        bench.set(DATA, b'a');
        bench.set(DATA, b'b');
        assert_eq!(bench.get(IIR), 0x02);
    }
    bench.port.expect_output(false);
    assert_eq!((bench.get(IIR), bench.interrupts()), (0x01, 0));
}

#[test]
fn sending_driver_that_waits_for_the_interrupt_gets_it_when_the_loop_has_been_there() {
    let mut bench = Bench::new();
    bench.set(IER, THRE);
    assert_eq!((bench.get(IIR), bench.interrupts()), (0x02, 1));
    for _ in 0..3 {
        bench.set(DATA, b'a');
        assert_eq!(bench.interrupts(), 0);
        bench.take(1);
        bench.port.expect_output(true);
        assert_eq!((bench.interrupts(), bench.get(IIR)), (1, 0x02));
    }
}

#[test]
fn a_failed_interrupt_is_counted_and_raised_at_the_next_access() {
    let mut bench = Bench::new();
    bench.line.broken.set(true);
    bench.set(IER, RDA);
    bench.port.push_input(b"a");
    assert_eq!((bench.interrupts(), bench.port.failed_interrupts()), (0, 1));
    bench.line.broken.set(false);
    bench.get(MSR);
    assert_eq!((bench.interrupts(), bench.port.failed_interrupts()), (1, 1));
}

#[test]
fn iir_shows_whether_the_fifos_are_enabled() {
    let mut bench = Bench::new();
    assert_eq!(bench.get(IIR), 0x01);
    bench.set(FCR, 0x01);
    assert_eq!(bench.get(IIR), 0xc1);
    bench.set(FCR, 0x00);
    assert_eq!(bench.get(IIR), 0x01);
}

#[test]
fn fifo_control_clears_received_bytes_and_keeps_sent_ones() {
    let mut bench = Bench::new();
    bench.set(FCR, 0x01);
    bench.set(DATA, b'o');
    let room = bench.port.input_room();
    bench.port.push_input(&vec![b'i'; room]);
    // With the divisor latch open, too: FCR is there all the same.
    bench.set(LCR, 0x83);
    assert!(bench.port.write(FCR, 0x07), "there is room for input again");
    assert_eq!(bench.get(LCR), 0x83);
    bench.set(LCR, 0x03);
    assert_eq!(bench.get(LSR) & DATA_READY, 0);
    assert_eq!(bench.port.input_room(), room);
    assert_eq!(bench.take(10), b"o");
    bench.port.push_input(b"n");
    assert_eq!(bench.get(DATA), b'n');
}

#[test]
fn the_divisor_latch_is_neither_output_nor_interrupt_enable() {
    let mut bench = Bench::new();
    bench.set(LCR, 0x80);
    bench.set(DATA, 0x01);
    bench.set(IER, THRE);
    assert_eq!((bench.get(DATA), bench.get(IER)), (0x01, 0x02));
    bench.set(LCR, 0x03);
    assert_eq!((bench.get(IER), bench.port.output_len(), bench.interrupts()), (0, 0, 0));
}

#[test]
fn loopback_returns_bytes_to_the_guest_and_holds_input_back() {
    let mut bench = Bench::new();
    bench.set(MCR, LOOPBACK | 0x0a);
    assert_eq!(bench.get(MSR) & 0xf0, 0x90, "RTS shows as CTS, OUT2 as DCD");
    bench.set(DATA, b'l');
    assert_eq!((bench.port.input_room(), bench.port.push_input(b"i")), (0, 0));
    assert_eq!((bench.get(DATA), bench.port.output_len()), (b'l', 0));
    assert!(bench.port.write(MCR, 0x08), "there is room for input again");
    assert_eq!(bench.port.push_input(b"i"), 1);
}

#[test]
fn mcr_has_five_bits() {
    let mut bench = Bench::new();
    bench.set(MCR, 0xef);
    assert_eq!(bench.get(MCR), 0x0f);
}

#[test]
fn while_the_loop_comes_by_itself_only_much_output_wakes_it() {
    let mut port = SerialPort::new(Line::default());
    assert!(port.write(DATA, b'a'), "the first byte wakes the loop");
    port.consume_output(1);
    port.expect_output(true);
    let wakes = (0..OUTPUT_CAPACITY / 2).filter(|_| port.write(DATA, b'b')).count();
    assert_eq!(wakes, 1, "half of the ring does, once");
    port.consume_output(OUTPUT_CAPACITY / 2);
    port.expect_output(false);
    assert!(port.write(DATA, b'c'));
}
