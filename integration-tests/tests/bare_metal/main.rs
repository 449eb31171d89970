//! The `vmm` program with the bare-metal guest, directly on this machine's `/dev/kvm`: console, ways to end, boot
//! protocols, processors and memory. Works on a KVM that only emulates ring 0, too, where Linux does not boot.
//!
//! `$KINDLING_VMM` names the program, `$KINDLING_BARE_METAL` the folder of the guest's images;
//! otherwise both are built.
#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod api;
mod confinement;
mod console;
mod disk;
mod doctor;
mod ending;
mod faults;
mod intruder;
mod landlock;
mod machine;
mod memory;
mod process;
mod serial;
mod unconfined;
