//! The device's side of a split virtqueue (VIRTIO 1.2, 2.7).
//!
//! The rings are accessed where they are: their addresses are translated once, when the queue is made. Every index that
//! the driver writes is checked before it is used, and checked again when it is read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::chain::{DESCRIPTOR_SIZE, Table};
use crate::{Chain, GuestMemory, Interrupt, QueueError};

/// Largest size of a queue (VIRTIO 1.2, 2.7).
const MAX_SIZE: u16 = 1 << 15;

/// How the driver set up a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Its entries: a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table, a multiple of 16.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring, a multiple of 2.
    pub available_ring: u64,
    /// Guest-physical address of the used ring, a multiple of 4.
    pub used_ring: u64,
}

/// A queue, and where device and driver stand in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Its index among the device's queues.
    pub index: u16,
    /// How the driver set it up.
    pub config: QueueConfig,
    /// The entry of the available ring that the device takes next.
    pub next_available: u16,
    /// The entry of the used ring that the device fills next.
    pub next_used: u16,
}

/// A split virtqueue as its device sees it.
///
/// A worker takes chains with [`Queue::pop`], gives them back with [`Queue::push`] in any order, and ends a batch with
/// [`Queue::end_batch`]: only then does the driver see what was pushed, and is interrupted at most once.
pub struct Queue {
    /// Keeps the rings mapped.
    memory: Arc<GuestMemory>,
    state: QueueState,
    /// The available index that was read last.
    available: u16,
    /// The used index that the driver was shown last.
    published: u16,
    indirect: bool,
    event_index: bool,
    /// A bit for each head, set while its chain is with the device.
    in_flight: Box<[u64]>,
    /// Chains that were taken and that the driver was not shown as used: never more than the queue has entries.
    outstanding: u16,
    rings: Rings,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
}

/// Where the rings are in this process. All of them stay mapped for as long as the queue keeps its memory.
struct Rings {
    /// The descriptor table: as many descriptors as the queue has entries.
    table: *const u8,
    /// The available ring: flags, index, an entry of 2 bytes for each of the queue's, and the used event.
    available: *mut u16,
    /// The used ring: flags, index, an entry of 8 bytes for each of the queue's, and the available event.
    used: *mut u16,
}

// SAFETY: the pointers are to guest memory, which any thread may access, and which the queue keeps mapped.
unsafe impl Send for Queue {}

impl Queue {
    /// The queue that `state` describes, for a driver that accepted `features`. The driver adds to `kick` when it has made
    /// chains available; doing so must not wait (`EFD_NONBLOCK`).
    ///
    /// The state need not be trusted: one that the rings do not fit shows when chains are taken, as a driver that broke
    /// the protocol.
    ///
    /// # Errors
    ///
    /// When the queue breaks a rule of VIRTIO 1.2, 2.7 or is not in guest memory.
    pub fn new(
        memory: Arc<GuestMemory>,
        state: QueueState,
        features: u64,
        kick: EventFd,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, QueueError> {
        let QueueConfig { size, descriptor_table, available_ring, used_ring } = state.config;
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(QueueError::Size { size, max: MAX_SIZE });
        }
        let entries = |bytes: usize| usize::from(size).saturating_mul(bytes);
        let find = |part, address, len, alignment| find(&memory, part, address, len, alignment);
        let rings = Rings {
            table: find("descriptor table", descriptor_table, entries(DESCRIPTOR_SIZE), 16)?,
            available: find("available ring", available_ring, entries(2).saturating_add(6), 2)?.cast(),
            used: find("used ring", used_ring, entries(8).saturating_add(6), 4)?.cast(),
        };
        let has = |bit: u32| features >> bit & 1 == 1;
        Ok(Self {
            state,
            available: state.next_available,
            published: state.next_used,
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            event_index: has(VIRTIO_RING_F_EVENT_IDX),
            in_flight: vec![0; usize::from(size).div_ceil(64)].into(),
            outstanding: 0,
            rings,
            memory,
            kick,
            interrupt,
        })
    }

    /// Its index among the device's queues.
    pub fn index(&self) -> u16 {
        self.state.index
    }

    /// Its entries.
    pub fn size(&self) -> u16 {
        self.state.config.size
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What the driver adds to when it has made chains available. Nobody reads it: that would be one system call more for
    /// each batch. So it is watched for edges ([`Watch::add_kicks`](crate::Watch::add_kicks)).
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Where the queue stands. A chain that was popped counts as taken, one that was pushed as used: so it is the whole
    /// truth when all that was popped has been pushed, published or put back.
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// Takes the next chain that the driver made available. Returns whether there was one; if not, `chain` is as before.
    ///
    /// Until [`Queue::publish`], no more chains come than the queue has entries, whatever the driver does.
    ///
    /// # Errors
    ///
    /// When the driver broke the protocol. The queue cannot be used any more until it is reset.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let next = self.state.next_available;
        if self.available == next && !self.look()? {
            return Ok(false);
        }
        let head = self.available_word(AVAILABLE_ENTRIES + usize::from(next & self.mask()));
        let (word, bit) = (usize::from(head / 64), 1_u64 << (head % 64));
        let size = self.size();
        let in_flight = self
            .in_flight
            .get_mut(word)
            .filter(|_| head < size)
            .ok_or(QueueError::DescriptorIndex { index: head, size })?;
        if *in_flight & bit != 0 {
            return Err(QueueError::InUse { head });
        }
        chain.load(Table { base: self.rings.table, size }, head, self.indirect)?;
        *in_flight |= bit;
        self.outstanding = self.outstanding.saturating_add(1);
        self.state.next_available = next.wrapping_add(1);
        Ok(true)
    }

    /// Puts the chain that was popped last back, so that it is the next to be popped. After that, the one before it can
    /// be put back, unless it was pushed.
    ///
    /// Nothing happens for a chain that the device does not have.
    pub fn unpop(&mut self, chain: &Chain) {
        if self.land(chain.head()) {
            self.outstanding = self.outstanding.saturating_sub(1);
            self.state.next_available = self.state.next_available.wrapping_sub(1);
        }
    }

    /// Gives a chain back, with `written` bytes in its writable buffers. The driver does not see it yet.
    ///
    /// Nothing happens for a chain that the device does not have.
    pub fn push(&mut self, head: u16, written: u32) {
        if !self.land(head) {
            return;
        }
        let entry = used_entry(self.state.next_used & self.mask());
        for (at, value) in [(entry, u32::from(head)), (entry.saturating_add(2), written)] {
            // SAFETY: the masked index is below the queue's size, so that the entry is in the used ring, which is mapped
            // (see `Rings`) and aligned to 4 bytes (see `find`), as its entries are then.
            let word = unsafe { AtomicU32::from_ptr(self.rings.used.add(at).cast()) };
            word.store(value.to_le(), Ordering::Relaxed);
        }
        self.state.next_used = self.state.next_used.wrapping_add(1);
    }

    /// Shows the driver what was pushed, and interrupts it if it wants that.
    pub fn publish(&mut self) {
        let (old, new) = (self.published, self.state.next_used);
        if old == new {
            return;
        }
        self.used_atomic(INDEX).store(new.to_le(), Ordering::Release);
        self.published = new;
        self.outstanding = self.outstanding.saturating_sub(new.wrapping_sub(old));
        // The driver writes its wish and then looks at the index; here it is the other way round.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self.available_word(AVAILABLE_ENTRIES + usize::from(self.size()));
            // Whether the index has passed the event (VIRTIO 1.2, 2.7.7.2).
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(self.available_word(FLAGS)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.queue_used(self.state.index);
        }
    }

    /// Asks the driver to kick when it makes chains available. Returns whether it has done so already, perhaps without
    /// a kick.
    pub fn enable_kicks(&mut self) -> bool {
        let next = self.state.next_available;
        if self.event_index {
            let event = used_entry(self.size());
            self.used_atomic(event).store(next.to_le(), Ordering::Relaxed);
        } else {
            self.used_atomic(FLAGS).store(0, Ordering::Relaxed);
        }
        // The driver writes its index and then looks whether to kick; here it is the other way round.
        fence(Ordering::SeqCst);
        self.available_word(INDEX) != next
    }

    /// Begins a batch: asks the driver not to kick for now. It may do so all the same.
    pub fn begin_batch(&mut self) {
        // With event indices there is no kick before the next event is asked for.
        if !self.event_index {
            let flag = VRING_USED_F_NO_NOTIFY as u16;
            self.used_atomic(FLAGS).store(flag.to_le(), Ordering::Relaxed);
        }
    }

    /// Ends a batch: publishes, and asks for a kick. When there is more already, the queue kicks itself
    /// ([`Queue::kick_worker`]).
    pub fn end_batch(&mut self) {
        self.publish();
        if self.enable_kicks() {
            self.kick_worker();
        }
    }

    /// Kicks in the driver's place: the queue's worker comes back to it after whatever else its thread has to do.
    pub fn kick_worker(&self) {
        // Fails only when the counter is full, which takes longer than any machine runs.
        let _ = self.kick.write(1);
    }

    /// Looks for new chains; returns whether there are any.
    fn look(&mut self) -> Result<bool, QueueError> {
        let (next, size) = (self.state.next_available, self.size());
        let index = u16::from_le(self.available_atomic(INDEX).load(Ordering::Acquire));
        // Each chain needs a descriptor until it is seen as used. Without the second term, a driver that offers what
        // was pushed and not published would keep its device busy for as long as it likes.
        if index.wrapping_sub(next) > size.saturating_sub(self.outstanding) {
            return Err(QueueError::AvailableIndex { index, next, size });
        }
        self.available = index;
        Ok(index != next)
    }

    /// The device has the chain no longer; returns whether it had it.
    fn land(&mut self, head: u16) -> bool {
        let bit = 1_u64 << (head % 64);
        match self.in_flight.get_mut(usize::from(head / 64)) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                true
            }
            _ => false,
        }
    }

    fn mask(&self) -> u16 {
        // A power of two, see `new`.
        self.size().wrapping_sub(1)
    }

    fn available_word(&self, at: usize) -> u16 {
        u16::from_le(self.available_atomic(at).load(Ordering::Relaxed))
    }

    /// Word `at` of the available ring: at most the one behind its entries.
    fn available_atomic(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at <= AVAILABLE_ENTRIES + usize::from(self.size()));
        // SAFETY: the ring is aligned (see `find`) and has that word, and it is mapped for as long as `self` (see
        // `Rings`). No reference to guest memory exists, and this module's accesses are atomic. A guest that has rings
        // and buffers overlap, or writes meanwhile, gets any values, and any are valid.
        unsafe { AtomicU16::from_ptr(self.rings.available.add(at)) }
    }

    /// Word `at` of the used ring that is no part of an entry: at most the one behind them.
    fn used_atomic(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at < USED_ENTRIES || at == used_entry(self.size()));
        // SAFETY: as for the available ring.
        unsafe { AtomicU16::from_ptr(self.rings.used.add(at)) }
    }
}

/// Word of the used ring at which entry `index` begins.
fn used_entry(index: u16) -> usize {
    usize::from(index).saturating_mul(4).saturating_add(USED_ENTRIES)
}

/// Word of the flags, in both rings.
const FLAGS: usize = 0;
/// Word of the index, in both rings.
const INDEX: usize = 1;
/// First word of the available ring's entries.
const AVAILABLE_ENTRIES: usize = 2;
/// First word of the used ring's entries.
const USED_ENTRIES: usize = 2;

/// Translates the address of a part of the queue.
fn find(
    memory: &GuestMemory,
    part: &'static str,
    address: u64,
    len: usize,
    alignment: u64,
) -> Result<*mut u8, QueueError> {
    let slice = memory.get_slice(GuestAddress(address), len).map_err(|source| QueueError::Ring {
        part,
        address,
        source,
    })?;
    let base = slice.ptr_guard_mut().as_ptr();
    // Memory that is not mapped as the guest sees it would be aligned in one place and not in the other.
    if !address.is_multiple_of(alignment) || !(base.addr() as u64).is_multiple_of(alignment) {
        return Err(QueueError::Alignment { part, address, alignment });
    }
    Ok(base)
}
