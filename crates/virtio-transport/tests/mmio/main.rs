//! A device on virtio-mmio, as its guest and its monitor see it.

#![allow(clippy::unwrap_used)]

mod broken;
mod lifecycle;
mod queue_reset;
mod registers;
mod sequences;
mod state;
mod status;
mod support;
