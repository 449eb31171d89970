//! The x86_64 side: what a guest's processors say of themselves and how they come out of reset.
//!
//! The monitor asks KVM once what it supports, makes a [`CpuidTemplate`] of it, and takes from that one table per vCPU.
//! [`boot_msrs`] names the few registers whose reset values under KVM do not suit a directly booted kernel. General and
//! segment registers depend on the kernel that is loaded and are not described here.

mod cpuid;
mod msr;
mod topology;

pub use cpuid::{APIC_BUS_KHZ, CpuidOptions, CpuidTemplate};
pub use msr::boot_msrs;
pub use topology::Topology;
