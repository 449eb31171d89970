//! Process 1 of our guests and of the nested host, started as `/init` from the initial RAM file system.
//!
//! The kernel command line says what it does: `kindling.init=shell` gives a shell on the console and powers off when
//! that ends; `kindling.init=agent` runs commands that come over the console ([`agent`]); `kindling.init=host` runs the
//! job in the RAM disk ([`crate::nested`]). `kindling.modules=virtio_mmio,virtio_net` loads modules first;
//! `kindling.root=/dev/vda` loads what a disk needs and goes on in the root file system on it. In every mode busybox's
//! `poweroff`, `halt` and `reboot` and the keyboard's Ctrl+Alt+Del end the machine in order.

pub mod agent;
mod disks;
mod host;
mod parameters;
mod shell;
mod system;

use std::io;

use parameters::{Mode, Parameters};
use system::{Power, System};

/// Runs the machine; never returns.
pub fn main() -> ! {
    let power = match start() {
        Ok(power) => power,
        Err(error) => {
            eprintln!("init: {error}");
            Power::Off
        }
    };
    system::end(power)
}

/// Runs until the machine shall end, and says how.
fn start() -> io::Result<Power> {
    system::mount_all();
    let parameters = Parameters::read();
    disks::load_modules(&parameters.modules)?;
    if let Some(device) = &parameters.root {
        disks::enter_root(device)?;
    }
    let mut system = System::new()?;
    match parameters.mode {
        Mode::Shell => shell::run(&mut system, &parameters),
        Mode::Agent => agent::run(&mut system),
        Mode::Host => host::run(&mut system, &parameters),
    }
}
