//! A guest without an operating system.
//!
//! It serves the tests and benchmarks on machines whose `/dev/kvm` cannot carry a stock kernel, for example where code
//! in ring 0 is emulated: [`entry`] needs a few dozen instructions there and goes on in ring 3, with every port and all
//! of memory open to it. It has no interrupts and polls its devices.
//!
//! The word `scenario=NAME` of the kernel command line chooses what the guest does, see [`scenario`].
//!
//! The images only build with `panic = "abort"`, statically linked and without position independence; the module
//! `bare_metal` of the integration tests calls cargo that way. For the lints, `std` takes the place of what is missing
//! under other settings.
#![cfg_attr(panic = "abort", no_std)]
#![no_main]

mod boot_info;
mod console;
mod entry;
mod load;
mod machine;
mod power;
mod scenario;
#[cfg(panic = "abort")]
mod string;
mod virtio;

#[cfg(panic = "abort")]
#[panic_handler]
fn report_and_fault(panic: &core::panic::PanicInfo<'_>) -> ! {
    use core::fmt::Write;
    // The console's writer never fails.
    let _ = writeln!(console::Console, "guest: {panic}");
    power::triple_fault()
}
