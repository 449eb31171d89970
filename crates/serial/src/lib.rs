#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod backend;
mod channel;
mod console;
mod device;
mod error;
mod escape;
mod output;
pub mod terminal;

pub use backend::Backend;
pub use channel::{ReadOutcome, WriteOutcome};
pub use console::{Console, ConsoleEvent};
pub use device::{RegisterRead, SerialPort};
pub use error::Error;
pub use output::{OUTPUT_CAPACITY, STALL_LIMIT};
