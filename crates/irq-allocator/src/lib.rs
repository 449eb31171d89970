#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most lines an allocator manages, as many as KVM has interrupt routes (`KVM_MAX_IRQ_ROUTES`).
pub const MAX_LINES: u32 = 4096;

/// Why an interrupt line could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No lines, more than [`MAX_LINES`], or some with a GSI of `u32::MAX` or beyond.
    #[error("interrupt lines from GSI {first} on must be 1 to {MAX_LINES} with GSIs of 32 bits, not {count}")]
    InvalidLines {
        /// First GSI asked for.
        first: u32,
        /// Number of lines asked for.
        count: u32,
    },
    /// The GSI is not one of the allocator's.
    #[error("GSI {gsi} is not one of the {count} interrupt lines from GSI {first} on")]
    UnknownGsi {
        /// GSI asked for.
        gsi: u32,
        /// First GSI of the allocator.
        first: u32,
        /// Number of lines of the allocator.
        count: usize,
    },
    /// The GSI is allocated or reserved already.
    #[error("GSI {gsi} is in use already")]
    InUse {
        /// GSI asked for.
        gsi: u32,
    },
    /// Every line is reserved, so that there is none to share.
    #[error("all {count} interrupt lines are reserved, none is left to share")]
    AllReserved {
        /// Number of lines of the allocator.
        count: usize,
    },
}

/// Hands out the interrupt lines of one machine. Clones hand out the same lines.
#[derive(Clone, Debug)]
pub struct IrqAllocator {
    lines: Arc<Lines>,
}

impl IrqAllocator {
    /// An allocator for the `count` GSIs from `first` on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidLines`] unless `count` is between 1 and [`MAX_LINES`] and every GSI is below `u32::MAX`.
    pub fn new(first: u32, count: u32) -> Result<Self, Error> {
        if !(1..=MAX_LINES).contains(&count) || first.checked_add(count).is_none() {
            return Err(Error::InvalidLines { first, count });
        }
        let usage = (0..count).map(|_| Usage::Allocated(0)).collect();
        Ok(Self { lines: Arc::new(Lines { first, usage: Mutex::new(usage) }) })
    }

    /// Takes a line of its own while there is one, and the one with the fewest holders from then on; the lowest GSI
    /// among equals. Reserved lines are never shared.
    ///
    /// # Errors
    ///
    /// [`Error::AllReserved`] when there is no line but reserved ones.
    pub fn allocate(&self) -> Result<IrqLine, Error> {
        let mut usage = self.lines.usage();
        let count = usage.len();
        let least_used = (self.lines.first..)
            .zip(usage.iter_mut())
            .filter_map(|(gsi, usage)| match usage {
                Usage::Allocated(holders) => Some((gsi, holders)),
                Usage::Reserved => None,
            })
            .min_by_key(|(_, holders)| **holders);
        let (gsi, holders) = least_used.ok_or(Error::AllReserved { count })?;
        // Cannot saturate: every holder takes up memory.
        *holders = holders.saturating_add(1);
        Ok(IrqLine { gsi, lines: Arc::clone(&self.lines) })
    }

    /// Takes the line `gsi`, which a guest expects for a fixed device, for a single holder.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownGsi`] when the allocator does not manage `gsi`, [`Error::InUse`] when it has a holder.
    pub fn reserve(&self, gsi: u32) -> Result<IrqLine, Error> {
        let mut usage = self.lines.usage();
        let (first, count) = (self.lines.first, usage.len());
        match self.lines.index(gsi).and_then(|index| usage.get_mut(index)) {
            None => return Err(Error::UnknownGsi { gsi, first, count }),
            Some(usage @ Usage::Allocated(0)) => *usage = Usage::Reserved,
            Some(_) => return Err(Error::InUse { gsi }),
        }
        Ok(IrqLine { gsi, lines: Arc::clone(&self.lines) })
    }
}

/// An interrupt line held by one device; given back on drop.
#[derive(Debug)]
pub struct IrqLine {
    gsi: u32,
    lines: Arc<Lines>,
}

impl IrqLine {
    /// The global system interrupt of the line: the pin of the I/O APIC.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Whether another device holds the same line now. May change at any time as devices come and go.
    pub fn is_shared(&self) -> bool {
        let usage = self.lines.usage();
        let own = self.lines.index(self.gsi).and_then(|index| usage.get(index));
        matches!(own, Some(Usage::Allocated(2..)))
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        let mut usage = self.lines.usage();
        match self.lines.index(self.gsi).and_then(|index| usage.get_mut(index)) {
            Some(Usage::Allocated(holders)) => *holders = holders.saturating_sub(1),
            Some(usage @ Usage::Reserved) => *usage = Usage::Allocated(0),
            None => {}
        }
    }
}

/// What the allocators and handles of one machine have in common.
#[derive(Debug)]
struct Lines {
    first: u32,
    usage: Mutex<Vec<Usage>>,
}

impl Lines {
    /// Locks the usage of all lines. Every change is a single assignment, so that a panic elsewhere leaves it sound.
    fn usage(&self) -> MutexGuard<'_, Vec<Usage>> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The position of `gsi` in the usage of all lines, if it is not before the first.
    fn index(&self, gsi: u32) -> Option<usize> {
        usize::try_from(gsi.checked_sub(self.first)?).ok()
    }
}

/// Who holds a line.
#[derive(Debug)]
enum Usage {
    /// As many holders as stated, none included.
    Allocated(usize),
    /// One holder that does not share.
    Reserved,
}

#[cfg(test)]
mod tests;
