#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// A device with registers in an address space.
///
/// The methods are called from several threads at a time, with offsets and data of the guest's choice. They are called
/// without any lock held, so that a device may change the [`Bus`] it sits on.
pub trait BusDevice: Send + Sync {
    /// Reads the register at `offset`, which is relative to the start of the device's range, into `data`.
    ///
    /// The length of `data` is the width of the access: 1, 2, 4 or 8 bytes, all of them inside the range, though not
    /// necessarily aligned. `data` comes filled with 0xFF, what a guest reads where nothing answers, and may be left.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the register at `offset`, both of which are as for [`read`](Self::read).
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a bus or taken off it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A device must have at least one address.
    #[error("device range at {base:#x} is empty")]
    Empty {
        /// Start of the range.
        base: u64,
    },
    /// The range goes beyond the last address there is.
    #[error("device range of {size:#x} bytes at {base:#x} wraps around the end of the address space")]
    WrapAround {
        /// Start of the range.
        base: u64,
        /// Bytes in the range.
        size: u64,
    },
    /// Another device has some of the addresses.
    #[error(
        "device range of {size:#x} bytes at {base:#x} overlaps that of {taken_size:#x} bytes at {taken_base:#x}"
    )]
    Overlap {
        /// Start of the range.
        base: u64,
        /// Bytes in the range.
        size: u64,
        /// Start of the other device's range.
        taken_base: u64,
        /// Bytes in the other device's range.
        taken_size: u64,
    },
    /// No device's range starts here.
    #[error("no device range starts at {base:#x}")]
    NotFound {
        /// Where a range was to start.
        base: u64,
    },
}

/// An address space, of ports or of memory-mapped registers, with the devices in it.
#[derive(Debug, Default)]
pub struct Bus {
    /// By ascending base, without overlap.
    slots: RwLock<Vec<Slot>>,
}

impl Bus {
    /// An address space with no devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at the `size` addresses from `base` on. The last of them may be `u64::MAX`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::WrapAround`] and [`Error::Overlap`] for ranges that cannot be; the bus is unchanged.
    pub fn insert(&self, base: u64, size: u64, device: Arc<dyn BusDevice>) -> Result<(), Error> {
        let slot = Slot { base, size, device };
        let last_offset = size.checked_sub(1).ok_or(Error::Empty { base })?;
        let last = base.checked_add(last_offset).ok_or(Error::WrapAround { base, size })?;

        let mut slots = self.slots_mut();
        // Of the ranges that start at `last` or before, the nearest is the only one that can reach `base`, unless
        // those behind it start at `base` or later; then it overlaps as well.
        let index = slots.partition_point(|slot| slot.base <= last);
        let nearest = index.checked_sub(1).and_then(|before| slots.get(before));
        if let Some(taken) = nearest
            && (taken.base >= base || taken.offset_of(base).is_some())
        {
            return Err(Error::Overlap { base, size, taken_base: taken.base, taken_size: taken.size });
        }
        slots.insert(index, slot);
        Ok(())
    }

    /// Takes the device off the bus whose range starts at `base`.
    ///
    /// An access that another thread began before may still be going on in the device when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when no range starts there.
    pub fn remove(&self, base: u64) -> Result<Arc<dyn BusDevice>, Error> {
        let mut slots = self.slots_mut();
        match slots.binary_search_by_key(&base, |slot| slot.base) {
            Ok(index) => Ok(slots.remove(index).device),
            Err(_) => Err(Error::NotFound { base }),
        }
    }

    /// Reads from the device at `addr`. The length of `data` is the width of the access.
    ///
    /// Returns whether there is one that has all the addresses; otherwise, and for a width other than 1, 2, 4 or 8
    /// bytes, `data` is filled with 0xFF.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((offset, device)) = self.find(addr, data.len()) else { return false };
        device.read(offset, data);
        true
    }

    /// Writes `data` to the device at `addr`. The length of `data` is the width of the access.
    ///
    /// Returns whether there is one that has all the addresses; otherwise, and for a width other than 1, 2, 4 or 8
    /// bytes, nothing happens.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(addr, data.len()) else { return false };
        device.write(offset, data);
        true
    }

    /// The device that an access of `width` bytes at `addr` is for, and the offset into its range. The device is kept
    /// alive by a count of its own, so that no lock need be held while it works.
    fn find(&self, addr: u64, width: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let last_byte: u64 = match width {
            1 => 0,
            2 => 1,
            4 => 3,
            8 => 7,
            _ => return None,
        };
        let slots = self.slots();
        let index = slots.partition_point(|slot| slot.base <= addr).checked_sub(1)?;
        let slot = slots.get(index)?;
        slot.offset_of(addr.checked_add(last_byte)?)?;
        Some((slot.offset_of(addr)?, Arc::clone(&slot.device)))
    }

    // A panic cannot leave the slots half changed: nothing panics between taking the lock and the one change made
    // under it. So a poisoned lock is as good as another.

    fn slots(&self) -> RwLockReadGuard<'_, Vec<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots_mut(&self) -> RwLockWriteGuard<'_, Vec<Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device and its range, which is not empty and does not wrap around.
struct Slot {
    base: u64,
    size: u64,
    device: Arc<dyn BusDevice>,
}

impl Slot {
    /// How far `addr` is into the range, if it is in it.
    fn offset_of(&self, addr: u64) -> Option<u64> {
        addr.checked_sub(self.base).filter(|offset| *offset < self.size)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes at {:#x}", self.size, self.base)
    }
}

#[cfg(test)]
mod tests;
