//! Walking a descriptor chain (VIRTIO 1.2, 2.7.5), which the driver may have built in any way, and may change meanwhile.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::buffers::PushError;
use crate::{GuestMemory, QueueError, Readable, Writable};

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_SIZE: usize = size_of::<Descriptor>();

/// A request of the driver: the buffers of one descriptor chain.
///
/// A worker makes one, or as many as it has requests in flight, and has [`Queue::pop`](crate::Queue::pop) fill it again
/// and again: after the first few requests, nothing is allocated, unless one has more than 130 buffers of a kind. What those
/// take beyond that is given back when the chain is filled or [cleared](Chain::clear).
pub struct Chain {
    head: u16,
    /// What the device may read.
    pub readable: Readable,
    /// What the device may write.
    pub writable: Writable,
}

impl Chain {
    /// An empty chain of this memory.
    pub fn new(memory: &Arc<GuestMemory>) -> Self {
        Self {
            head: 0,
            readable: Readable::new(Arc::clone(memory)),
            writable: Writable::new(Arc::clone(memory)),
        }
    }

    /// The index of its first descriptor, by which the driver knows it. A queue has at most one chain of that name in
    /// flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Drops all buffers. For a chain that may not be filled again soon: one of 1,024 buffers keeps 16 KiB until then.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    /// Reads the chain that begins at `head` of `table`: at most as many buffers as that has entries, wherever their
    /// descriptors are. The one that only points to an indirect table does not count: Linux puts as many buffers there as
    /// the queue has entries (VIRTIO 1.2, 2.7.5.3.1).
    pub(crate) fn load(&mut self, table: Table, head: u16, indirect: bool) -> Result<(), QueueError> {
        self.head = head;
        self.clear();
        let most = table.size;
        let (mut table, mut index, mut indirect) = (table, head, indirect);
        let mut left = most;
        loop {
            let descriptor = table.read(index)?;
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                // Neither nested nor followed by anything (VIRTIO 1.2, 2.7.5.3.1).
                if !indirect || descriptor.has(VRING_DESC_F_NEXT) {
                    return Err(descriptor.bad_table());
                }
                indirect = false;
                table = self.indirect_table(&descriptor)?;
                index = 0;
                continue;
            }
            left = left.checked_sub(1).ok_or(QueueError::ChainLength { head, size: most })?;
            self.add(&descriptor)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), QueueError> {
        let &Descriptor { address, len, .. } = descriptor;
        let pushed = if descriptor.has(VRING_DESC_F_WRITE) {
            self.writable.push(address, len)
        } else if self.writable.is_empty() {
            self.readable.push(address, len)
        } else {
            return Err(QueueError::Order { head: self.head });
        };
        pushed.map_err(|error| match error {
            PushError::TooLong => QueueError::TooLong { head: self.head },
            PushError::Memory(source) => QueueError::Buffer { address, len, source },
        })
    }

    fn indirect_table(&mut self, descriptor: &Descriptor) -> Result<Table, QueueError> {
        let &Descriptor { address, len, .. } = descriptor;
        let size = u16::try_from(len as usize / DESCRIPTOR_SIZE).ok();
        let (Some(size @ 1..), 0) = (size, len as usize % DESCRIPTOR_SIZE) else {
            return Err(descriptor.bad_table());
        };
        let base = self.readable.find(address, len).map_err(|_| descriptor.bad_table())?;
        Ok(Table { base, size })
    }
}

/// A descriptor table in mapped guest memory.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    /// Its first byte. `size` descriptors from here on are mapped for as long as the table is used.
    pub base: *const u8,
    /// Its entries.
    pub size: u16,
}

impl Table {
    fn read(&self, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.size {
            return Err(QueueError::DescriptorIndex { index, size: self.size });
        }
        let at = self.base.cast::<Descriptor>().wrapping_add(index.into());
        // SAFETY: the descriptor is in the table, since `index` is below its size, and so it is mapped. It needs no
        // alignment. It is read once: a guest that changes it meanwhile gets what it deserves, for any bytes are valid.
        let Descriptor { address, len, flags, next } = unsafe { at.read_volatile() };
        Ok(Descriptor {
            address: u64::from_le(address),
            len: u32::from_le(len),
            flags: u16::from_le(flags),
            next: u16::from_le(next),
        })
    }
}

/// VIRTIO 1.2, 2.7.5. Packed: indirect tables lie anywhere.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }

    fn bad_table(&self) -> QueueError {
        QueueError::Indirect { address: self.address, len: self.len }
    }
}
