//! The guest: it sees registers, and the memory in which it puts its rings.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kindling_virtio_device::{ConfigSpace, GuestMemory, QueueConfig, WorkerThread};
use kindling_virtio_transport::{MmioTransport, Transport};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Echo, Log};

/// A guest and its device.
pub struct Guest {
    pub transport: MmioTransport,
    pub memory: Arc<GuestMemory>,
    pub line: EventFd,
    pub late: Arc<EventFd>,
    pub log: Arc<Log>,
    pub config: Arc<ConfigSpace>,
}

impl Deref for Guest {
    type Target = MmioTransport;

    fn deref(&self) -> &MmioTransport {
        &self.transport
    }
}

impl Guest {
    pub const QUEUE_RESET: u32 = 0x0c0;

    pub fn new() -> Self {
        Self::of(Echo::new())
    }

    pub fn of(device: Echo) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Self::with(device, Arc::new(memory), EventFd::new(EFD_NONBLOCK).unwrap())
    }

    pub fn with(device: Echo, memory: Arc<GuestMemory>, line: EventFd) -> Self {
        let slot = |_| WorkerThread::spawn("echo", || Ok(())).unwrap().slot();
        let slots = (0..device.threads).map(slot).collect();
        let (log, config) = (Arc::clone(&device.log), Arc::clone(&device.config));
        let (device_line, late) = (line.try_clone().unwrap(), Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let device = Box::new(device);
        let transport =
            MmioTransport::new(device, Arc::clone(&memory), slots, device_line, Arc::clone(&late)).unwrap();
        Self { transport, memory, line, late, log, config }
    }

    pub fn get(&self, offset: u32) -> u32 {
        let mut value = [0; 4];
        self.read(offset.into(), &mut value);
        u32::from_le_bytes(value)
    }

    pub fn set(&self, offset: u32, value: u32) {
        self.write(offset.into(), &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.get(VIRTIO_MMIO_STATUS)
    }

    /// Adds bits to the status, as drivers do.
    pub fn add_status(&self, bits: u32) {
        self.set(VIRTIO_MMIO_STATUS, self.status() | bits);
    }

    pub fn offered(&self) -> u64 {
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = self.get(VIRTIO_MMIO_DEVICE_FEATURES);
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES))
    }

    pub fn accept(&self, features: u64) {
        self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
    }

    /// Goes as far as FEATURES_OK, as Linux does.
    pub fn negotiate(&self) {
        assert_eq!(self.get(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
        assert_eq!(self.get(VIRTIO_MMIO_VERSION), 2);
        assert_ne!(self.get(VIRTIO_MMIO_DEVICE_ID), 0);
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.add_status(VIRTIO_CONFIG_S_DRIVER);
        self.accept(self.offered());
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        assert_eq!(self.status(), 0xb);
    }

    /// Sets up a queue with fresh rings.
    pub fn set_up(&self, index: u32, size: u16) -> Ring {
        let ring = Ring::new(&self.memory, index, size);
        self.set_up_at(&ring);
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.get(VIRTIO_MMIO_QUEUE_READY), 1);
        ring
    }

    /// Sets up a queue without enabling it.
    pub fn set_up_at(&self, ring: &Ring) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, ring.index);
        assert_eq!(self.get(VIRTIO_MMIO_QUEUE_READY), 0);
        assert_ne!(self.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        self.set(VIRTIO_MMIO_QUEUE_NUM, ring.config.size.into());
        let parts = [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, ring.config.descriptor_table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.config.available_ring),
            (VIRTIO_MMIO_QUEUE_USED_LOW, ring.config.used_ring),
        ];
        for (register, address) in parts {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
    }

    /// Starts the device with both queues, as Linux does.
    pub fn probe(&self) -> [Ring; 2] {
        self.negotiate();
        let rings = [self.set_up(0, 16), self.set_up(1, 16)];
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(self.status(), 0xf);
        rings
    }

    /// Has the device echo a message.
    pub fn echo(&self, ring: &mut Ring, message: u64) {
        ring.add(message);
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, ring.index);
        assert_eq!(ring.wait(), message);
    }

    pub fn count(&self, name: &str) -> u64 {
        self.metrics().value(name).unwrap().number()
    }

    /// Waits for a status.
    pub fn wait_status(&self, status: u32) {
        wait_for(|| (self.status() == status).then_some(()));
    }
}

/// Waits for something that must come.
pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it never came");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// The driver's side of a queue, in which each chain has an 8-byte message and room for another.
pub struct Ring {
    memory: Arc<GuestMemory>,
    pub index: u32,
    pub config: QueueConfig,
    pub added: u16,
    taken: u16,
}

impl Ring {
    fn new(memory: &Arc<GuestMemory>, index: u32, size: u16) -> Self {
        let base = 0x1_0000 * (u64::from(index) + 1);
        memory.write_slice(&[0; 0x1_0000], GuestAddress(base)).unwrap();
        let config = QueueConfig {
            size,
            descriptor_table: base,
            available_ring: base + 0x1000,
            used_ring: base + 0x2000,
        };
        Self { memory: Arc::clone(memory), index, config, added: 0, taken: 0 }
    }

    /// Makes a message available.
    pub fn add(&mut self, message: u64) {
        let place = self.added % (self.config.size / 2);
        let (readable, writable) = (self.buffer(place), self.buffer(place) + 8);
        self.memory.write_obj(message, GuestAddress(readable)).unwrap();
        self.memory.write_obj(0_u64, GuestAddress(writable)).unwrap();
        let descriptor = |at: u64, flags: u128, next: u16| {
            u128::from(at) | 8 << 64 | flags << 96 | u128::from(next) << 112
        };
        let both = [descriptor(readable, 1, place * 2 + 1), descriptor(writable, 2, 0)];
        let table = self.config.descriptor_table + 32 * u64::from(place);
        self.memory.write_obj(both[0], GuestAddress(table)).unwrap();
        self.memory.write_obj(both[1], GuestAddress(table + 16)).unwrap();
        let entry = self.config.available_ring + 4 + 2 * u64::from(self.added % self.config.size);
        self.memory.write_obj(place * 2, GuestAddress(entry)).unwrap();
        self.added = self.added.wrapping_add(1);
        self.set_available(self.added);
    }

    pub fn set_available(&self, index: u16) {
        self.memory.store(index, GuestAddress(self.config.available_ring + 2), Ordering::SeqCst).unwrap();
    }

    /// Takes the next message that came back, if there is one.
    pub fn take(&mut self) -> Option<u64> {
        let index: u16 = self.memory.load(GuestAddress(self.config.used_ring + 2), Ordering::SeqCst).unwrap();
        if index == self.taken {
            return None;
        }
        let entry = self.config.used_ring + 4 + 8 * u64::from(self.taken % self.config.size);
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        self.taken = self.taken.wrapping_add(1);
        // Every one is to be interrupted for.
        let event = self.config.available_ring + 4 + 2 * u64::from(self.config.size);
        self.memory.store(self.taken, GuestAddress(event), Ordering::SeqCst).unwrap();
        Some(self.memory.read_obj(GuestAddress(self.buffer(head as u16 / 2) + 8)).unwrap())
    }

    pub fn wait(&mut self) -> u64 {
        wait_for(|| self.take())
    }

    /// How many can be made available now.
    pub fn room(&self) -> u16 {
        self.config.size / 2 - self.added.wrapping_sub(self.taken)
    }

    fn buffer(&self, place: u16) -> u64 {
        self.config.descriptor_table + 0x4000 + 16 * u64::from(place)
    }
}
