//! A device's configuration space (VIRTIO 1.2, 2.5): bytes that the driver reads, with a generation that tells it
//! whether they changed meanwhile.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Interrupt;

/// The configuration space of one device, shared by its transport, its worker and whoever changes it from outside.
///
/// Nothing of it is on a data path, so a lock does.
#[derive(Default)]
pub struct ConfigSpace {
    bytes: Mutex<Vec<u8>>,
    generation: AtomicU32,
    /// Tells the driver about changes, while it is there.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl ConfigSpace {
    /// A space that holds `bytes` for now, and never another number of them.
    pub fn new(bytes: &[u8]) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(bytes.to_vec()), ..Self::default() })
    }

    /// Reads `data.len()` bytes from `offset` on. What lies beyond the end reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = lock(&self.bytes);
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    /// Changes the bytes. When they are others afterwards, the generation rises and the driver is told.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        {
            let mut bytes = lock(&self.bytes);
            let before = bytes.clone();
            change(&mut bytes);
            if *bytes == before {
                return;
            }
            // Under the lock: nobody reads new bytes with the old generation.
            self.generation.fetch_add(1, Ordering::Release);
        }
        if let Some(interrupt) = &*lock(&self.interrupt) {
            interrupt.config_changed();
        }
    }

    /// Changes the bytes on the driver's behalf, which need not be told then.
    pub fn update_by_driver(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut lock(&self.bytes));
    }

    /// Rises with each change that the driver did not make (VIRTIO 1.2, 4.2.2, ConfigGeneration).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Says whom to tell of changes; `None` while there is no driver.
    pub fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *lock(&self.interrupt) = interrupt;
    }
}

/// A lock that outlives a panic: what is behind it is bytes, and any bytes are valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
