//! The guest's output on its way out: a bounded ring, and the flow control that keeps a slow reader lossless without
//! letting a stopped one stall the guest. [`SerialPort`](crate::SerialPort) owns one and is its only user.
//!
//! A UART tells its driver to wait by leaving the transmitter not empty (16550 data sheet, LSR bits 5 and 6), so that is
//! what a filling ring does. The guest gives up waiting before the reader does: Linux's console polls for 10 ms, then
//! writes its next burst regardless. The ring therefore asks the guest to wait while [`RESERVE`] bytes are still free,
//! which is enough for what such a guest writes until [`STALL_LIMIT`] has passed and the reader is given up.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Bytes of guest output held for a reader that lags behind.
pub const OUTPUT_CAPACITY: usize = 64 * 1024;

/// Free bytes below which the guest is told to wait: 16 bytes (the transmit FIFO) every 10 ms (the time for which Linux
/// polls) over [`STALL_LIMIT`] are 1,600.
pub(crate) const RESERVE: usize = 2048;

/// How long the guest waits for a reader that takes nothing before its output is discarded.
///
/// Long enough for a reader that merely was not scheduled, short enough for no watchdog in the guest to bite.
pub const STALL_LIMIT: Duration = Duration::from_secs(1);

pub(crate) type Clock = Box<dyn Fn() -> Instant + Send>;

/// What happens to the next byte of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// It is stored, and the guest may send more.
    Open,
    /// It is stored while there is room, but the guest is told to wait. Nothing was taken since this moment.
    Blocked(Instant),
    /// The reader has stopped: it is dropped, until the reader takes something.
    Discarding,
    /// There is no reader: it is dropped.
    Closed,
}

/// See the [module](self).
pub(crate) struct Output {
    bytes: VecDeque<u8>,
    flow: Flow,
    clock: Clock,
    lost: u64,
}

impl Output {
    pub(crate) fn new(clock: Clock) -> Self {
        Output { bytes: VecDeque::new(), flow: Flow::Open, clock, lost: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether the guest may send: what LSR.THRE and LSR.TEMT show.
    pub(crate) fn ready(&self) -> bool {
        !matches!(self.flow, Flow::Blocked(_))
    }

    pub(crate) fn discarding(&self) -> bool {
        self.flow == Flow::Discarding
    }

    /// Gives the reader up if it has kept the guest waiting for too long.
    pub(crate) fn check_stall(&mut self) {
        if let Flow::Blocked(since) = self.flow
            && (self.clock)().saturating_duration_since(since) >= STALL_LIMIT
        {
            self.flow = Flow::Discarding;
        }
    }

    pub(crate) fn push(&mut self, byte: u8) {
        let stored = matches!(self.flow, Flow::Open | Flow::Blocked(_)) && self.room() > 0;
        if !stored {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(OUTPUT_CAPACITY);
        }
        self.bytes.push_back(byte);
        if self.flow == Flow::Open && self.room() < RESERVE {
            self.flow = Flow::Blocked((self.clock)());
        }
    }

    /// Copies oldest bytes to `buffer` and leaves them in the ring. May copy fewer than there are, but not none.
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> usize {
        let (oldest, rest) = self.bytes.as_slices();
        oldest.chain(rest).read(buffer).unwrap_or(0)
    }

    /// Removes the `count` oldest bytes, which the reader has taken.
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        if count == 0 {
            return;
        }
        self.bytes.drain(..count);
        if matches!(self.flow, Flow::Blocked(_) | Flow::Discarding) {
            self.flow = if self.room() < RESERVE { Flow::Blocked((self.clock)()) } else { Flow::Open };
        }
    }

    /// Removes the `count` oldest bytes, which nobody will get.
    pub(crate) fn discard(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        self.consume(count);
        self.lost = self.lost.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(crate) fn set_closed(&mut self, closed: bool) {
        if closed {
            self.discard(usize::MAX);
            self.flow = Flow::Closed;
        } else if self.flow == Flow::Closed {
            self.flow = Flow::Open;
        }
    }

    fn room(&self) -> usize {
        OUTPUT_CAPACITY.saturating_sub(self.bytes.len())
    }
}

/// What the UART model writes the transmit holding register to. Never fails: a byte that is not stored is counted.
impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.push(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
