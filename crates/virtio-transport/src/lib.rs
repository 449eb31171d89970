#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod common;
mod error;
pub mod mmio;
mod transport;

pub use common::metrics::TransportMetrics;
pub use common::queues::QueueRegisters;
pub use common::state::{Selectors, TransportState};
pub use error::Error;
pub use mmio::MmioTransport;
pub use transport::{RESET_DEADLINE, Transport};
