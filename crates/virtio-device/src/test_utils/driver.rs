//! The driver's side of the queues.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::{Activation, COMMON_FEATURES, Device, GuestMemory, Interrupt, Queue, QueueConfig, QueueState};

/// Bytes of guest memory, from address 0 on. What is not touched costs nothing.
const MEMORY_BYTES: usize = 256 << 20;

/// A driver of one device.
pub struct MockDriver {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The queues, by index.
    pub queues: Vec<MockQueue>,
    /// What the device told.
    pub interrupt: Arc<MockInterrupt>,
    /// The accepted features.
    pub features: u64,
}

impl MockDriver {
    /// A driver that accepts all features of `device` and sets up all its queues, with the most entries that they can
    /// have.
    pub fn new(device: &dyn Device) -> Self {
        Self::with_features(device, device.features() | COMMON_FEATURES)
    }

    /// A driver that accepts `features`.
    pub fn with_features(device: &dyn Device, features: u64) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let memory = Arc::new(memory);
        let sizes = device.queue_sizes();
        // Each queue has its own part of the memory, and the first page is nobody's.
        let part = (MEMORY_BYTES / (sizes.len() + 1)) as u64 & !0xfff;
        let queues = (0..)
            .zip(sizes)
            .map(|(index, size)| {
                MockQueue::new(&memory, features, index, *size, 0x1000 + part * u64::from(index), part)
            })
            .collect();
        let interrupt = Arc::new(MockInterrupt::new(sizes.len()));
        Self { memory, queues, interrupt, features }
    }

    /// What the device is activated with: all queues as they stand.
    pub fn activation(&self) -> Activation {
        let queue = |queue: &MockQueue| {
            let interrupt = Arc::clone(&self.interrupt) as Arc<dyn Interrupt>;
            let kick = queue.kick.try_clone().unwrap();
            Queue::new(Arc::clone(&self.memory), queue.state, self.features, kick, interrupt).unwrap()
        };
        Activation {
            memory: Arc::clone(&self.memory),
            queues: self.queues.iter().map(queue).collect(),
            features: self.features,
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
        }
    }
}

/// A buffer to make available.
#[derive(Clone, Copy, Debug)]
pub enum Buffer<'a> {
    /// For the device to read.
    Readable(&'a [u8]),
    /// For the device to write: so many bytes, filled with 0xa5 before.
    Writable(u32),
}

/// A part of a queue's memory.
#[derive(Clone, Copy, Debug)]
pub enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
    /// The used ring.
    Used,
    /// What buffers and indirect tables are placed in, from its beginning.
    Buffers,
}

/// A chain that the device gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor, as returned when it was added.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub written: u32,
    /// All bytes of its writable buffers, one behind the other, whether the device says that it wrote them or not.
    pub data: Vec<u8>,
}

/// A chain that the device has.
struct Outstanding {
    descriptors: Vec<u16>,
    /// Address and length of its writable buffers.
    writable: Vec<(u64, u32)>,
}

/// The driver's side of one queue.
pub struct MockQueue {
    memory: Arc<GuestMemory>,
    /// How it was set up; where the device begins.
    pub state: QueueState,
    kick: EventFd,
    event_index: bool,
    free: Vec<u16>,
    /// By head.
    chains: HashMap<u16, Outstanding>,
    available_index: u16,
    /// The available index when it was last seen to whether to kick.
    notified: u16,
    used_index: u16,
    /// Where buffers go, from the first to the last byte.
    data: (u64, u64),
    next_data: u64,
}

impl MockQueue {
    fn new(memory: &Arc<GuestMemory>, features: u64, index: u16, size: u16, base: u64, bytes: u64) -> Self {
        let entries = u64::from(size);
        let page = |address: u64| address.next_multiple_of(0x1000);
        let available_ring = page(base + 16 * entries);
        let used_ring = page(available_ring + 6 + 2 * entries);
        let data = page(used_ring + 6 + 8 * entries);
        let config = QueueConfig { size, descriptor_table: base, available_ring, used_ring };
        Self {
            memory: Arc::clone(memory),
            state: QueueState { index, config, ..QueueState::default() },
            kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap(),
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            event_index: features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1,
            available_index: 0,
            notified: 0,
            used_index: 0,
            data: (data, base + bytes),
            next_data: data,
        }
    }

    /// Begins at `index` of both rings, as if so many chains had been used already.
    pub fn begin_at(&mut self, index: u16) {
        let QueueConfig { size, available_ring, used_ring, .. } = self.state.config;
        self.state = QueueState { next_available: index, next_used: index, ..self.state };
        (self.available_index, self.notified, self.used_index) = (index, index, index);
        let (used_event, available_event) =
            (available_ring + 4 + 2 * u64::from(size), used_ring + 4 + 8 * u64::from(size));
        for at in [available_ring + 2, used_event, used_ring + 2, available_event] {
            self.memory.write_obj(index.to_le(), GuestAddress(at)).unwrap();
        }
    }

    /// Makes a chain of these buffers available and kicks. Returns its first descriptor.
    ///
    /// # Panics
    ///
    /// When descriptors or memory have run out.
    pub fn add(&mut self, buffers: &[Buffer<'_>]) -> u16 {
        let head = self.prepare(buffers, false);
        self.offer(head);
        self.kick();
        head
    }

    /// Like [`MockQueue::add`], with the descriptors in an indirect table.
    ///
    /// # Panics
    ///
    /// When descriptors or memory have run out.
    pub fn add_indirect(&mut self, buffers: &[Buffer<'_>]) -> u16 {
        let head = self.prepare(buffers, true);
        self.offer(head);
        self.kick();
        head
    }

    /// Writes a chain without making it available. Returns its first descriptor.
    ///
    /// # Panics
    ///
    /// When descriptors or memory have run out.
    pub fn prepare(&mut self, buffers: &[Buffer<'_>], indirect: bool) -> u16 {
        if self.chains.is_empty() {
            self.next_data = self.data.0;
        }
        let placed: Vec<_> = buffers.iter().map(|buffer| self.place(buffer)).collect();
        let writable = placed.iter().filter(|(.., writable)| *writable).map(|(at, len, _)| (*at, *len));
        let writable: Vec<_> = writable.collect();
        let flags = |writable: bool, next: bool| {
            (u16::from(writable) * VRING_DESC_F_WRITE as u16) | (u16::from(next) * VRING_DESC_F_NEXT as u16)
        };
        let own = if indirect { 1 } else { placed.len() };
        let descriptors: Vec<u16> = (0..own).map(|_| self.free.pop().expect("a free descriptor")).collect();
        if indirect {
            let table = self.allocate(16 * placed.len() as u64);
            for (index, (at, len, writable)) in (0_u16..).zip(&placed) {
                let next = usize::from(index) + 1 < placed.len();
                self.write_descriptor(table, index, *at, *len, flags(*writable, next), index + 1);
            }
            let len = 16 * placed.len() as u32;
            let base = self.state.config.descriptor_table;
            self.write_descriptor(base, descriptors[0], table, len, VRING_DESC_F_INDIRECT as u16, 0);
        } else {
            for (position, (at, len, writable)) in placed.iter().enumerate() {
                let next = descriptors.get(position + 1);
                let base = self.state.config.descriptor_table;
                let flags = flags(*writable, next.is_some());
                self.write_descriptor(
                    base,
                    descriptors[position],
                    *at,
                    *len,
                    flags,
                    next.copied().unwrap_or(0),
                );
            }
        }
        let head = descriptors[0];
        self.chains.insert(head, Outstanding { descriptors, writable });
        head
    }

    /// Makes the chain at `head` available, whatever it is. Does not kick.
    pub fn offer(&mut self, head: u16) {
        let QueueConfig { size, available_ring, .. } = self.state.config;
        let at = available_ring + 4 + 2 * u64::from(self.available_index % size);
        self.memory.write_obj(head.to_le(), GuestAddress(at)).unwrap();
        self.available_index = self.available_index.wrapping_add(1);
        let index = self.available_index.to_le();
        self.memory.store(index, GuestAddress(available_ring + 2), Ordering::SeqCst).unwrap();
    }

    /// Kicks the device if it wants that for what was offered since the last call (VIRTIO 1.2, 2.7.10). Returns whether.
    pub fn kick_if_wanted(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let QueueConfig { size, used_ring, .. } = self.state.config;
        let load = |at| u16::from_le(self.memory.load(GuestAddress(at), Ordering::Relaxed).unwrap());
        let wanted = if self.event_index {
            let event = load(used_ring + 4 + 8 * u64::from(size));
            event.wrapping_sub(self.notified) < self.available_index.wrapping_sub(self.notified)
        } else {
            u32::from(load(used_ring)) & VRING_USED_F_NO_NOTIFY == 0
        };
        self.notified = self.available_index;
        if wanted {
            self.kick();
        }
        wanted
    }

    /// Kicks the device.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Writes a descriptor (VIRTIO 1.2, 2.7.5).
    pub fn write_descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let value =
            u128::from(address) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        self.memory.write_slice(&value.to_le_bytes(), at).unwrap();
    }

    /// Writes any bytes over a part of the queue's memory, from an offset in it on.
    ///
    /// # Panics
    ///
    /// When they end beyond guest memory.
    pub fn overwrite(&self, area: Area, offset: u64, bytes: &[u8]) {
        let QueueConfig { descriptor_table, available_ring, used_ring, .. } = self.state.config;
        let base = match area {
            Area::Descriptors => descriptor_table,
            Area::Available => available_ring,
            Area::Used => used_ring,
            Area::Buffers => self.data.0,
        };
        self.memory.write_slice(bytes, GuestAddress(base + offset)).unwrap();
    }

    /// The next chain that the device gave back, if there is one. Asks for an interrupt for the one after it.
    ///
    /// # Panics
    ///
    /// When the device gave back what it did not have.
    pub fn take_used(&mut self) -> Option<Used> {
        let QueueConfig { size, available_ring, used_ring, .. } = self.state.config;
        let index: u16 = self.memory.load(GuestAddress(used_ring + 2), Ordering::SeqCst).unwrap();
        if u16::from_le(index) == self.used_index {
            return None;
        }
        let at = used_ring + 4 + 8 * u64::from(self.used_index % size);
        let entry: u64 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let (head, written) = (u64::from_le(entry) as u32, (u64::from_le(entry) >> 32) as u32);
        let head = u16::try_from(head).expect("a descriptor index");
        self.used_index = self.used_index.wrapping_add(1);
        let event = GuestAddress(available_ring + 4 + 2 * u64::from(size));
        self.memory.store(self.used_index.to_le(), event, Ordering::SeqCst).unwrap();
        let Outstanding { descriptors, writable } =
            self.chains.remove(&head).expect("a chain that the device had");
        self.free.extend(descriptors);
        let mut data = Vec::new();
        for (at, len) in writable {
            let start = data.len();
            data.resize(start + len as usize, 0);
            self.memory.read_slice(&mut data[start..], GuestAddress(at)).unwrap();
        }
        Some(Used { head, written, data })
    }

    /// Waits up to `seconds` for the next chain that the device gives back.
    ///
    /// # Panics
    ///
    /// When there is none in time.
    pub fn wait_used(&mut self, seconds: u64) -> Used {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
        loop {
            if let Some(used) = self.take_used() {
                return used;
            }
            assert!(std::time::Instant::now() < end, "the device gave nothing back in {seconds} s");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Chains that the device has.
    pub fn outstanding(&self) -> usize {
        self.chains.len()
    }

    fn place(&mut self, buffer: &Buffer<'_>) -> (u64, u32, bool) {
        match *buffer {
            Buffer::Readable(bytes) => {
                let at = self.allocate(bytes.len() as u64);
                self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
                (at, bytes.len() as u32, false)
            }
            Buffer::Writable(len) => {
                let at = self.allocate(len.into());
                self.memory.write_slice(&vec![0xa5; len as usize], GuestAddress(at)).unwrap();
                (at, len, true)
            }
        }
    }

    fn allocate(&mut self, len: u64) -> u64 {
        let at = self.next_data;
        self.next_data = (at + len).next_multiple_of(16);
        assert!(self.next_data <= self.data.1, "the driver's memory has run out");
        at
    }
}

/// Counts what a device tells its driver.
#[derive(Debug)]
pub struct MockInterrupt {
    queues: Vec<AtomicU64>,
    config: AtomicU64,
    needs_reset: AtomicBool,
}

impl MockInterrupt {
    fn new(queues: usize) -> Self {
        Self {
            queues: (0..queues).map(|_| AtomicU64::new(0)).collect(),
            config: AtomicU64::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// Interrupts for used buffers of queue `index`.
    pub fn queue(&self, index: u16) -> u64 {
        self.queues[usize::from(index)].load(Ordering::SeqCst)
    }

    /// Interrupts for a changed configuration.
    pub fn config(&self) -> u64 {
        self.config.load(Ordering::SeqCst)
    }

    /// Whether the device asked to be reset.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

impl Interrupt for MockInterrupt {
    fn queue_used(&self, queue: u16) {
        self.queues[usize::from(queue)].fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
}
