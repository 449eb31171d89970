//! A driver's side of virtio for measurements: registers of virtio-mmio (VIRTIO 1.2, 4.2), and split queues (2.7) that are
//! polled. It trusts its device.

use core::sync::atomic::{Ordering, fence};

use crate::machine::{read_device_32, write_device_32};

/// Where devices are, how far they are apart and how many are looked for: with `vmm`, and with QEMU's machine `microvm`.
const WINDOWS: [(u64, u64, u64); 2] = [(0xf000_0000, 0x1000, 4), (0xfeb0_0000, 0x200, 24)];

// Registers (4.2.2).
const MAGIC: u64 = 0x00;
const DEVICE_ID: u64 = 0x08;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_SIZE_MAX: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_DRIVER: u64 = 0x90;
const QUEUE_DEVICE: u64 = 0xa0;
const CONFIG: u64 = 0x100;

/// ACKNOWLEDGE and DRIVER, then FEATURES_OK, then DRIVER_OK (2.1).
const DRIVER: u32 = 3;
const FEATURES_OK: u32 = DRIVER | 8;
const DRIVER_OK: u32 = FEATURES_OK | 4;

/// VIRTIO_F_EVENT_IDX and VIRTIO_F_VERSION_1.
const REQUIRED: u64 = 1 << 29 | 1 << 32;

/// The most entries of a queue that are used.
const MAX_SIZE: u16 = 256;

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;

/// Memory that a device works on.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Its physical address.
    pub address: u64,
    size: u64,
}

/// An integer that buffers hold.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl Buffer {
    /// The value at a multiple of its size.
    pub fn get<T: Word>(self, offset: u64) -> T {
        // SAFETY: the memory is the guest's, nothing that Rust knows of lies there, and any bits make an integer.
        unsafe { self.pointer::<T>(offset).read_volatile() }
    }

    /// Sets the value at a multiple of its size.
    pub fn set<T: Word>(self, offset: u64, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.pointer::<T>(offset).write_volatile(value) };
    }

    fn pointer<T>(self, offset: u64) -> *mut T {
        let size = size_of::<T>() as u64;
        assert!(offset.is_multiple_of(size) && offset + size <= self.size, "outside of a buffer");
        (self.address + offset) as *mut T
    }
}

/// The memory that buffers are made of: far above the image and the loader's tables, within the first 128 MiB.
pub struct Memory {
    free: u64,
}

impl Memory {
    /// To be made once, or buffers overlap.
    pub const fn new() -> Self {
        Self { free: 32 << 20 }
    }

    /// A buffer of whole pages.
    pub fn take(&mut self, size: u64) -> Buffer {
        let address = self.free;
        self.free += size.next_multiple_of(4096);
        assert!(self.free <= 120 << 20, "out of memory");
        Buffer { address, size }
    }
}

/// A device and its registers.
pub struct Device {
    base: u64,
}

impl Device {
    /// Finds the device of a type and negotiates: what it has to offer for any measurement, and what it does of `wanted`.
    pub fn find(device_type: u32, wanted: u64) -> Result<Self, &'static str> {
        let mut bases = WINDOWS
            .iter()
            .flat_map(|&(first, step, count)| (0..count).map(move |index| first + index * step));
        let is_wanted = |base: &u64| {
            read_device_32(base + MAGIC) == u32::from_le_bytes(*b"virt")
                && read_device_32(base + DEVICE_ID) == device_type
        };
        let device = Self { base: bases.find(is_wanted).ok_or("no such device")? };
        device.write(STATUS, 0);
        device.write(STATUS, DRIVER);
        let half = |select| {
            device.write(DEVICE_FEATURES_SEL, select);
            u64::from(device.read(DEVICE_FEATURES))
        };
        let features = (half(0) | half(1) << 32) & (REQUIRED | wanted);
        if features & REQUIRED != REQUIRED {
            return Err("the device lacks VERSION_1 or EVENT_IDX");
        }
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            device.write(DRIVER_FEATURES_SEL, select);
            device.write(DRIVER_FEATURES, half);
        }
        device.expect(FEATURES_OK)?;
        Ok(device)
    }

    /// Makes a queue. With `interrupts` the device signals each completion that is polled for, though nobody listens.
    pub fn queue(&self, index: u32, interrupts: bool, memory: &mut Memory) -> Result<Queue, &'static str> {
        self.write(QUEUE_SEL, index);
        let size = MAX_SIZE.min(self.read(QUEUE_SIZE_MAX) as u16);
        if size == 0 {
            return Err("the device lacks a queue");
        }
        let entries = u64::from(size);
        let queue = Queue {
            descriptors: memory.take(16 * entries),
            available: memory.take(6 + 2 * entries),
            used: memory.take(6 + 8 * entries),
            size,
            added: 0,
            shown: 0,
            taken: 0,
            interrupts,
            notify: self.base + QUEUE_NOTIFY,
            index,
        };
        // Without interrupts never moved: one completion in 65,536 is signalled.
        queue.ask_to_be_told(if interrupts { 0 } else { u16::MAX });
        self.write(QUEUE_SIZE, size.into());
        let areas =
            [(QUEUE_DESC, queue.descriptors), (QUEUE_DRIVER, queue.available), (QUEUE_DEVICE, queue.used)];
        for (register, area) in areas {
            self.write(register, area.address as u32);
            self.write(register + 4, 0);
        }
        self.write(QUEUE_READY, 1);
        Ok(queue)
    }

    /// Has the device begin.
    pub fn begin(&self) -> Result<(), &'static str> {
        self.expect(DRIVER_OK)
    }

    /// Fails if the device is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.read(STATUS) == DRIVER_OK { Ok(()) } else { Err("the device needs a reset") }
    }

    /// Four bytes of the configuration space.
    pub fn config(&self, offset: u64) -> u32 {
        self.read(CONFIG + offset)
    }

    fn expect(&self, status: u32) -> Result<(), &'static str> {
        self.write(STATUS, status);
        if self.read(STATUS) == status { Ok(()) } else { Err("the device refuses its driver") }
    }

    fn read(&self, register: u64) -> u32 {
        read_device_32(self.base + register)
    }

    fn write(&self, register: u64, value: u32) {
        write_device_32(self.base + register, value);
    }
}

/// A split queue.
pub struct Queue {
    descriptors: Buffer,
    available: Buffer,
    used: Buffer,
    /// Number of its descriptors.
    pub size: u16,
    /// The available ring's index, with chains that the device is not shown yet and without.
    added: u16,
    shown: u16,
    /// The used ring's index up to which completions were taken.
    taken: u16,
    interrupts: bool,
    notify: u64,
    index: u32,
}

impl Queue {
    /// Sets a descriptor; if [`NEXT`] is among the flags, the next one follows it.
    pub fn describe(&mut self, index: u16, address: u64, length: usize, flags: u16) {
        let offset = 16 * u64::from(index);
        self.descriptors.set(offset, address);
        self.descriptors.set(offset + 8, length as u32);
        self.descriptors.set(offset + 12, flags);
        self.descriptors.set(offset + 14, index + 1);
    }

    /// Adds the chain that begins with descriptor `head`; [`Queue::submit`] shows it to the device.
    pub fn add(&mut self, head: u16) {
        self.available.set(4 + 2 * u64::from(self.added % self.size), head);
        self.added = self.added.wrapping_add(1);
    }

    /// Shows the device what was added, and notifies it if it wants to know.
    pub fn submit(&mut self) {
        if self.added == self.shown {
            return;
        }
        fence(Ordering::Release);
        self.available.set(2, self.added);
        // The device looks at the index after it has asked to be told.
        fence(Ordering::SeqCst);
        let event: u16 = self.used.get(4 + 8 * u64::from(self.size));
        if self.added.wrapping_sub(event).wrapping_sub(1) < self.added.wrapping_sub(self.shown) {
            write_device_32(self.notify, self.index);
        }
        self.shown = self.added;
    }

    /// The next completion: the head of its chain, and how many bytes the device wrote.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if self.used.get::<u16>(2) == self.taken {
            return None;
        }
        fence(Ordering::Acquire);
        let element = 4 + 8 * u64::from(self.taken % self.size);
        let completion = (self.used.get::<u32>(element) as u16, self.used.get(element + 4));
        self.taken = self.taken.wrapping_add(1);
        if self.interrupts {
            self.ask_to_be_told(self.taken);
        }
        Some(completion)
    }

    /// Sets `used_event` (2.7.10).
    fn ask_to_be_told(&self, index: u16) {
        self.available.set(4 + 2 * u64::from(self.size), index);
    }
}
