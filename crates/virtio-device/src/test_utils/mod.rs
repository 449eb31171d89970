//! The driver's side of a device, for tests, fuzz targets and benches (feature `test-utils`).
//!
//! [`MockDriver`] has guest memory and the other side of a device's queues; [`Inline`] runs a device's workers on the
//! calling thread, step by step; a [`WorkerThread`](crate::WorkerThread) runs them as in life. [`CountingAllocator`] tells what is
//! allocated.
//!
//! Nothing here is for hostile bytes: it panics where a test has gone wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod counting;
mod driver;
mod inline;

pub use counting::CountingAllocator;
pub use driver::{Area, Buffer, MockDriver, MockInterrupt, MockQueue, Used};
pub use inline::Inline;
