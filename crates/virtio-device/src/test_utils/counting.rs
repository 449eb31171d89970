//! An allocator that counts, for tests of what is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, which counts as well. For a test that is alone in its process: `#[global_allocator]` counts all
/// that happens there.
#[derive(Debug, Default)]
pub struct CountingAllocator {
    bytes: AtomicUsize,
    calls: AtomicUsize,
}

impl CountingAllocator {
    /// One that has counted nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: AtomicUsize::new(0), calls: AtomicUsize::new(0) }
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How often any were.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.bytes.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
