//! Loads for the device benchmark: how much a device does while the guest polls its queues. See the scenarios' functions
//! for what `key=NUMBER` words they want on the command line, all of them `ticks=N`, the time stamps to measure for.

mod blk;
mod net;
mod vsock;

use core::fmt::Write;

pub use blk::blk;
pub use net::net;
pub use vsock::vsock;

use crate::boot_info::BootInfo;
use crate::console::Console;
use crate::machine::time_stamp;

/// The number of the word `NAME=NUMBER` of the command line.
pub fn number(boot_info: &BootInfo, name: &str) -> Result<u64, &'static str> {
    boot_info.option(name).and_then(|value| value.parse().ok()).ok_or("a number lacks on the command line")
}

/// Repeats `turn`, which returns the work that it saw completed, and prints `measured WORK TICKS` after a while that does
/// not count.
fn measure(
    boot_info: &BootInfo,
    mut turn: impl FnMut() -> Result<u64, &'static str>,
) -> Result<(), &'static str> {
    let ticks = number(boot_info, "ticks")?;
    let start = time_stamp();
    while time_stamp() - start < ticks / 4 {
        turn()?;
        core::hint::spin_loop();
    }
    let start = time_stamp();
    let mut work = 0;
    let took = loop {
        work += turn()?;
        let took = time_stamp() - start;
        if took >= ticks {
            break took;
        }
        core::hint::spin_loop();
    };
    // The console's writer never fails.
    let _ = writeln!(Console, "measured {work} {took}");
    Ok(())
}
