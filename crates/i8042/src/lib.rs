#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod controller;
mod keyboard;

pub use controller::{COMMAND_OFFSET, DATA_OFFSET, I8042};

/// What the guest asks of the whole machine through the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The CPU reset line was pulled (command 0xFE and its kin).
    Reset,
}

/// Why the host could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No driver in the guest takes keyboard input: it has left the keyboard or its interrupt switched off.
    #[error("the guest is not listening to the keyboard (command byte {command_byte:#04x})")]
    NotListening {
        /// The controller's command byte.
        command_byte: u8,
    },
    /// The guest has not read what it was sent before.
    #[error("the keyboard's buffer has room for {room} more bytes, {needed} are needed")]
    BufferFull {
        /// Free bytes.
        room: usize,
        /// The bytes that the key strokes take.
        needed: usize,
    },
    /// The keyboard interrupt could not be raised.
    #[error("raising the keyboard interrupt")]
    Trigger(#[source] Box<dyn std::error::Error + Send + Sync>),
}
