#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod error;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use error::Error;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{CpuidOptions, CpuidTemplate, Topology, boot_msrs};
