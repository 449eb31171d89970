//! The Kindling microVM monitor as a library: wires the component crates to KVM, threads and the command line.
//!
//! The `vmm` binary is a thin `main` over this. The life of a run, each step in its module:
//!
//! 1. [`cli`] and [`start`]: from options or a config file to a [`kindling_api::VmConfig`].
//! 2. `machine`: from the configuration to a virtual machine that is ready to run.
//! 3. `vcpu` threads run the guest while `event_loop` serves its console, signals and its end.
//! 4. [`outcome`]: how it ended, and the exit code that says so.

mod backends;
mod console;
mod devices;
mod event_loop;
mod limits;
mod log_sink;
mod machine;
mod registry;
mod regs;
mod signals;
mod vcpu;

pub mod cli;
pub mod device_options;
pub mod doctor;
pub mod error;
pub mod outcome;
pub mod start;

use std::sync::Arc;

use kindling_api::VmConfig;
use kvm_ioctls::VcpuFd;

use crate::console::ConsoleSource;
use crate::error::Error;
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::signals::EndingSignals;
use crate::vcpu::{Shared, Vcpu};

/// Runs the guest that `config` asks for until it ends.
///
/// Serves the signals that end the process (SIGTERM, SIGINT, SIGHUP, SIGQUIT) itself for as long as it runs, and ignores
/// SIGXFSZ from then on. When this returns, every thread has ended but those of devices that hang, the terminal is as it
/// was, and sockets made for the guest are removed.
///
/// # Errors
///
/// When the guest could not be started, or the host failed to go on.
pub fn run(config: &VmConfig) -> Result<Outcome, Error> {
    signals::ignore_file_size_signal();
    limits::raise_descriptor_limit();
    signals::install_kick_handler().map_err(Error::host("set up the signal that stops vCPUs"))?;
    // Dropped last, when the terminal is as it was: a second signal may then end the process the short way.
    let mut signals =
        EndingSignals::take_over().map_err(Error::host("take over the signals that end the process"))?;
    // Dropped from the right: the virtual machine after its vCPUs, and before the eventfds of its interrupt lines, which
    // KVM takes long to part with otherwise.
    let Machine { shared, mut console, keyboard, keep, vcpus } = Machine::build(config)?;
    let _raw_mode = console::enter_raw_mode(&console)?;

    let mut threads = Vec::new();
    let result = start_vcpus(vcpus, &shared, &mut threads).and_then(|()| {
        let outcome = Arc::clone(&shared.outcome);
        event_loop::run(
            &shared.outcome,
            &mut signals,
            ConsoleSource { console: &mut console, keyboard, outcome },
        )
    });
    // Tells the vCPUs not to enter the guest again, however the loop ended.
    shared.outcome.report(Outcome::PowerOff);
    threads.iter().for_each(Vcpu::stop);
    threads.into_iter().for_each(Vcpu::join);
    keep.devices.drain();
    keep.devices.log_metrics();
    console::finish(console);
    result
}

/// Starts the threads, the boot processor's last: no guest code runs before every thread is there.
fn start_vcpus(vcpus: Vec<VcpuFd>, shared: &Shared, threads: &mut Vec<Vcpu>) -> Result<(), Error> {
    let indices = (0..=u8::MAX).take(vcpus.len());
    for (index, vcpu) in indices.zip(vcpus).rev() {
        threads.push(Vcpu::start(index, vcpu, shared.clone()).map_err(Error::host("start a vCPU thread"))?);
    }
    Ok(())
}
