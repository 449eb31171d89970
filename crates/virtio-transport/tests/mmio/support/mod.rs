//! A device that gives back what it is sent, and a guest for it.

mod echo;
mod guest;

pub use echo::{Echo, Log};
pub use guest::{Guest, Ring, wait_for};
