//! The guest's RAM as the loader sees it: checked once, then asked what fits where.

use kindling_memory_layout::{Range, x86_64::HIGH_RAM_START};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::layout::RAM_RANGES_MAX;
use super::tables::MAPPED;
use crate::error::{Error, Part};
use crate::span::Span;

/// RAM ranges in ascending order, the first from 0 past 1 MiB, all of them in guest memory.
pub(crate) struct Ram(Vec<Span>);

impl Ram {
    pub fn new<M>(memory: &M, ranges: &[Range]) -> Result<Ram, Error>
    where
        M: GuestMemoryBackend + ?Sized,
    {
        let mut ram = Vec::with_capacity(ranges.len().min(RAM_RANGES_MAX));
        let mut lowest = 0;
        for (index, range) in ranges.iter().enumerate() {
            let Range { start, size } = *range;
            let refuse = |problem| Err(Error::Ram { start, size, problem });
            let Some(span) = Span::new(start, size) else {
                return refuse("it passes the end of the address space");
            };
            if index == 0 && (start != 0 || span.end <= HIGH_RAM_START) {
                return refuse("the first range must reach from 0 past 1 MiB");
            }
            if size == 0 || start < lowest {
                return refuse("ranges must be in ascending order and neither be empty nor overlap");
            }
            if index >= RAM_RANGES_MAX {
                return refuse("there are too many for the memory map");
            }
            let Ok(count) = usize::try_from(size) else {
                return refuse("it is too large for this process");
            };
            if !memory.check_range(GuestAddress(start), count) {
                return refuse("it is not in guest memory");
            }
            lowest = span.end;
            ram.push(span);
        }
        if ram.is_empty() {
            return Err(Error::Ram { start: 0, size: 0, problem: "there is none" });
        }
        Ok(Ram(ram))
    }

    /// Every range, in ascending order.
    pub fn spans(&self) -> &[Span] {
        &self.0
    }

    /// What of RAM may be loaded to, in ascending order: from 1 MiB to `limit` and never past 4 GiB.
    pub fn loadable(&self, limit: u64) -> impl DoubleEndedIterator<Item = Span> {
        let window = Span { start: HIGH_RAM_START, end: limit.clamp(HIGH_RAM_START, MAPPED) };
        self.0.iter().map(move |span| span.intersection(window))
    }

    /// The addresses of `part`, which is to take `size` bytes from `start`, once it is sure that it can.
    pub fn check(&self, part: Part, start: u64, size: u64) -> Result<Span, Error> {
        let end = start.saturating_add(size);
        if start < HIGH_RAM_START {
            return Err(Error::TooLow { part, start, end, lowest: HIGH_RAM_START });
        }
        match Span::new(start, size) {
            Some(span) if self.loadable(MAPPED).any(|ram| ram.contains(span)) => Ok(span),
            _ => {
                let ram_end = self.loadable(MAPPED).map(|ram| ram.end).filter(|end| *end < MAPPED).max();
                Err(Error::OutsideRam { part, start, end, ram_end: ram_end.unwrap_or(MAPPED) })
            }
        }
    }
}
