#![no_main]
//! A driver writes what it likes where it likes, rings and descriptors above all, while a device takes chains, uses them,
//! and gives them back in any order. Input: how the queue is set up, then steps and their values.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::{Arbitrary, Unstructured};
use kindling_virtio_device::{
    COMMON_FEATURES, Chain, GuestMemory, Interrupt, Queue, QueueConfig, QueueError, QueueState,
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// Two regions, with a gap.
const LOW_BYTES: usize = 0x1_0000;
const HIGH: u64 = 0x1_0000_0000;
const HIGH_BYTES: usize = 0x4000;

/// Where the rings are when they do not overlap: behind all that a step writes to.
const TABLE: u64 = 0x800;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1800;

#[derive(Default)]
struct Interrupts(AtomicU64);

impl Interrupt for Interrupts {
    fn queue_used(&self, queue: u16) {
        assert_eq!(queue, 3);
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn config_changed(&self) {
        unreachable!("nothing of a queue's");
    }
    fn needs_reset(&self) {
        unreachable!("the worker's to say");
    }
}

struct Run {
    memory: Arc<GuestMemory>,
    /// Where the regions are in this process.
    mapped: Vec<Range<usize>>,
    queue: Queue,
    config: QueueConfig,
    event_index: bool,
    /// Whether the rings keep to themselves.
    is_apart: bool,
    interrupts: Arc<Interrupts>,
    /// The chains that the device has, each with its place in the available ring.
    held: Vec<(u16, Chain)>,
    /// The state as it should be.
    expected: QueueState,
    published: u16,
    available_index: u16,
}

impl Run {
    fn new(input: &mut Unstructured<'_>) -> Option<Self> {
        let [flags, size] = input.arbitrary::<[u8; 2]>().ok()?;
        let (available, used) = input.arbitrary::<(u16, u16)>().ok()?;
        let is_apart = flags & 4 != 0;
        let mut config = QueueConfig {
            size: 1 << (size % 8),
            descriptor_table: TABLE,
            available_ring: AVAILABLE,
            used_ring: USED,
        };
        if !is_apart {
            let [table, available, used] = input.arbitrary::<[u32; 3]>().ok()?;
            let address = |value: u32| u64::from(value & 0xffff) + if value >> 31 != 0 { HIGH } else { 0 };
            (config.descriptor_table, config.available_ring, config.used_ring) =
                (address(table), address(available), address(used));
        }
        let ranges = [(GuestAddress(0), LOW_BYTES), (GuestAddress(HIGH), HIGH_BYTES)];
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).ok()?);
        let mapped = memory.iter().map(|region| {
            let start = region.as_volatile_slice().map_or(0, |slice| slice.ptr_guard().as_ptr().addr());
            start..start + region.len() as usize
        });
        let mapped = mapped.collect();
        // Each of the two features, or not.
        let features = COMMON_FEATURES & !(u64::from(flags & 3) << 28);
        let state = QueueState { index: 3, config, next_available: available, next_used: used };
        let interrupts = Arc::new(Interrupts::default());
        let kick = EventFd::new(0o4000).ok()?;
        let queue = Queue::new(Arc::clone(&memory), state, features, kick, interrupts.clone()).ok()?;
        Some(Self {
            memory,
            mapped,
            queue,
            config,
            event_index: flags & 2 == 0,
            is_apart,
            interrupts,
            held: Vec::new(),
            expected: state,
            published: used,
            available_index: available,
        })
    }

    fn word(&self, at: u64) -> u16 {
        self.memory.load(GuestAddress(at), Ordering::Relaxed).map_or(0, u16::from_le)
    }

    fn unpublished(&self) -> u16 {
        self.expected.next_used.wrapping_sub(self.published)
    }

    fn pop(&mut self) {
        let mut chain = Chain::new(&self.memory);
        match self.queue.pop(&mut chain) {
            Ok(true) => {
                let head = chain.head();
                assert!(head < self.config.size);
                assert!(self.held.iter().all(|(_, other)| other.head() != head), "is with the device twice");
                self.check(&chain);
                self.held.push((self.expected.next_available, chain));
                self.expected.next_available = self.expected.next_available.wrapping_add(1);
                let taken = self.held.len() + usize::from(self.unpublished());
                assert!(taken <= self.config.size.into(), "more chains than descriptors");
            }
            Ok(false) => assert!(chain.readable.is_empty() && chain.writable.is_empty()),
            Err(QueueError::InUse { head }) => {
                assert!(self.held.iter().any(|(_, chain)| chain.head() == head), "it was given back");
            }
            Err(_) => {}
        }
    }

    /// All segments are guest memory, and not too many.
    fn check(&self, chain: &Chain) {
        let (readable, writable) = (chain.readable.iovecs(), chain.writable.iovecs());
        assert!(readable.len() + writable.len() <= self.config.size.into());
        for (segments, len) in [(readable, chain.readable.len()), (writable, chain.writable.len())] {
            assert_eq!(segments.iter().map(|segment| segment.iov_len).sum::<usize>(), len as usize);
            for segment in segments {
                let (start, end) = (segment.iov_base.addr(), segment.iov_base.addr() + segment.iov_len);
                assert!(start < end);
                assert!(self.mapped.iter().any(|region| region.start <= start && end <= region.end));
            }
        }
    }

    fn publish(&mut self, end_batch: bool) {
        let event = self.word(self.config.available_ring + 4 + 2 * u64::from(self.config.size));
        let flags = self.word(self.config.available_ring);
        let before = self.interrupts.0.load(Ordering::Relaxed);
        if end_batch {
            self.queue.end_batch();
        } else {
            self.queue.publish();
        }
        let interrupts = self.interrupts.0.load(Ordering::Relaxed) - before;
        let used = self.unpublished();
        if self.is_apart {
            // VIRTIO 1.2, 2.7.7.2, one entry after the other.
            let wanted = match self.event_index {
                true => (0..used).any(|entry| self.published.wrapping_add(entry) == event),
                false => used > 0 && flags & 1 == 0,
            };
            assert_eq!(interrupts, u64::from(wanted));
            if used > 0 {
                assert_eq!(self.word(self.config.used_ring + 2), self.expected.next_used);
            }
        }
        assert!(interrupts <= u64::from(used > 0));
        self.published = self.expected.next_used;
    }

    fn push(&mut self, which: u8, written: u32) {
        if !self.held.is_empty() {
            let (_, chain) = self.held.swap_remove(usize::from(which) % self.held.len());
            self.queue.push(chain.head(), written);
            let entry = self.expected.next_used & (self.config.size - 1);
            self.expected.next_used = self.expected.next_used.wrapping_add(1);
            if self.is_apart {
                let at = GuestAddress(self.config.used_ring + 4 + 8 * u64::from(entry));
                let bytes = self.memory.read_obj::<u64>(at).unwrap_or(0);
                assert_eq!(bytes, (u64::from(chain.head()) | u64::from(written) << 32).to_le());
            }
        }
    }

    fn unpop(&mut self) {
        let last = self.expected.next_available.wrapping_sub(1);
        if let Some(at) = self.held.iter().position(|(place, _)| *place == last) {
            let (_, chain) = self.held.swap_remove(at);
            self.queue.unpop(&chain);
            self.expected.next_available = last;
        }
    }

    fn enable_kicks(&mut self) {
        let more = self.queue.enable_kicks();
        if self.is_apart {
            let next = self.expected.next_available;
            assert_eq!(more, self.word(self.config.available_ring + 2) != next);
            let event = self.word(self.config.used_ring + 4 + 8 * u64::from(self.config.size));
            assert!(if self.event_index { event == next } else { self.word(self.config.used_ring) == 0 });
        }
    }

    /// Uses the buffers of a chain that the device has.
    fn use_up(&mut self, which: u8, len: u16) {
        let count = self.held.len();
        if count == 0 {
            return;
        }
        let (_, chain) = &mut self.held[usize::from(which) % count];
        let mut bytes = [0; 256];
        let (readable, writable) = (chain.readable.len(), chain.writable.len());
        let read = chain.readable.read(&mut bytes[..usize::from(len & 0xff)]);
        assert_eq!(read, readable.min(u32::from(len & 0xff)) as usize);
        chain.readable.truncate(u32::from(len) << 2);
        chain.writable.truncate(writable.saturating_sub(u32::from(len >> 12)));
        assert!(!chain.writable.set_last_aside() || writable > 0);
        let skipped = chain.writable.skip(u32::from(len >> 8));
        assert!(skipped <= u32::from(len >> 8));
        // Rings that overlap buffers are written, too: so be it, but then they are not the driver's any more.
        if !self.is_apart {
            chain.writable.write(&bytes[..read]);
            chain.writable.write_last(0xff);
        }
        let (_, chain) = &self.held[usize::from(which) % count];
        self.check(chain);
    }

    /// Offers the chain at `head`, as a driver does.
    fn offer(&mut self, head: u16) {
        let entry = self.available_index & (self.config.size - 1);
        self.write_word(self.config.available_ring + 4 + 2 * u64::from(entry), head);
        self.available_index = self.available_index.wrapping_add(1);
        self.write_word(self.config.available_ring + 2, self.available_index);
    }

    fn write_word(&self, at: u64, value: u16) {
        let _ = self.memory.write_obj(value.to_le(), GuestAddress(at));
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        match input.arbitrary::<u8>()? % 14 {
            0 => self.pop(),
            1 => self.push(input.arbitrary()?, input.arbitrary()?),
            2 => self.unpop(),
            3 => self.publish(false),
            4 => self.publish(true),
            5 => self.enable_kicks(),
            6 => self.queue.begin_batch(),
            7 => self.use_up(input.arbitrary()?, input.arbitrary()?),
            8 => {
                // What the device does not have.
                let head = input.arbitrary()?;
                if self.held.iter().all(|(_, chain)| chain.head() != head) {
                    self.queue.push(head, 0);
                }
            }
            9 => {
                let head: u16 = input.arbitrary()?;
                self.offer(head % self.config.size);
            }
            10 => {
                let (index, table, descriptor) = <(u8, u8, Descriptor)>::arbitrary(input)?;
                // In one of a few places: the queue's table, or an indirect one.
                let table =
                    if table % 4 == 0 { self.config.descriptor_table } else { 0x100 * u64::from(table % 8) };
                let at = table + 16 * u64::from(index % self.config.size.min(16) as u8);
                let _ = self.memory.write_slice(&descriptor.bytes(), GuestAddress(at));
            }
            11 => {
                let (at, value) = input.arbitrary()?;
                let at: u16 = at;
                // Wherever it likes, but that the device's ring stays the device's when it is checked.
                if !self.is_apart || !(USED..USED + 0x800).contains(&at.into()) {
                    self.write_word(at.into(), value);
                }
            }
            12 => {
                let value = input.arbitrary()?;
                self.write_word(self.config.available_ring + 4 + 2 * u64::from(self.config.size), value);
            }
            _ => {
                let index: u16 = input.arbitrary()?;
                self.available_index = index;
                self.write_word(self.config.available_ring + 2, index);
            }
        }
        Ok(())
    }
}

#[derive(Arbitrary)]
struct Descriptor {
    address: u32,
    len: u32,
    flags: u8,
    next: u8,
}

impl Descriptor {
    /// Mostly of memory that exists.
    fn bytes(&self) -> [u8; 16] {
        let address = match self.address >> 29 {
            0..=4 => u64::from(self.address & 0xffff),
            5..=6 => HIGH + u64::from(self.address & 0x3fff),
            _ => u64::from(self.address) << 16,
        };
        let len = if self.len >> 28 < 12 { self.len & 0x1ff } else { self.len };
        let (flags, next) = (u128::from(self.flags & 7), u128::from(self.next & 0x1f));
        (u128::from(address) | u128::from(len) << 64 | flags << 96 | next << 112).to_le_bytes()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let Some(mut run) = Run::new(&mut input) else {
        return;
    };
    while !input.is_empty() && run.step(&mut input).is_ok() {
        assert_eq!(run.queue.state(), run.expected);
    }
    // Whatever the driver does, a batch ends.
    let taken = run.held.len() + usize::from(run.unpublished());
    for _ in taken..usize::from(run.config.size) + 1 {
        let before = run.held.len();
        run.offer(run.available_index);
        run.pop();
        if run.held.len() == before {
            return;
        }
        run.push(0, 0);
    }
    unreachable!("more chains than descriptors");
});
