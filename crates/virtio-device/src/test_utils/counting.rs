//! An allocator that counts, for tests of what is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts for each thread as well: what a test does itself, and nothing that the program around it
/// does meanwhile. To be the `#[global_allocator]`.
#[derive(Debug, Default)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// Bytes that the calling thread has allocated, less those that it has freed.
    pub fn bytes() -> isize {
        BYTES.get()
    }

    /// How often the calling thread has allocated any.
    pub fn calls() -> usize {
        CALLS.get()
    }
}

// SAFETY: all is left to the system's allocator. The counters are neither allocated nor ever destroyed.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get().wrapping_add_unsigned(layout.size()));
        CALLS.set(CALLS.get().wrapping_add(1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get().wrapping_sub_unsigned(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
