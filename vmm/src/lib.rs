//! The Kindling microVM monitor as a library: wires the component crates to KVM, threads and the command line.
//!
//! The `vmm` binary is a thin `main` over this. The life of a run, each step in its module:
//!
//! 1. [`cli`] and [`start`]: from options or a config file to a [`kindling_api::VmConfig`].
//! 2. `machine`: from the configuration to a virtual machine that is ready to run, and `guest`: to one that does.
//! 3. `vcpu` threads run the guest while `event_loop` serves its console, signals, requests and its end.
//! 4. [`outcome`]: how it ended, and the exit code that says so.

mod backends;
mod console;
mod controller;
mod devices;
mod event_loop;
mod gate;
mod guest;
mod limits;
mod live;
mod log_sink;
mod machine;
mod prepared;
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

use crate::controller::Controller;
use crate::error::Error;
use crate::outcome::{Outcome, OutcomeSlot};
use crate::signals::EndingSignals;

/// Runs the guest that `config` asks for until it ends.
///
/// Serves the signals that end the process (SIGTERM, SIGINT, SIGHUP, SIGQUIT) itself for as long as it runs, and ignores
/// SIGXFSZ from then on. When this returns, every thread has ended but those of devices that hang, the terminal is as it
/// was, and sockets made for the guest are removed.
///
/// # Errors
///
/// When the guest could not be started, or the host failed to go on.
pub fn run(config: VmConfig) -> Result<Outcome, Error> {
    signals::ignore_file_size_signal();
    limits::raise_descriptor_limit();
    signals::install_kick_handler().map_err(Error::host("set up the signal that stops vCPUs"))?;
    // Dropped last, when the terminal is as it was: a second signal may then end the process the short way.
    let mut signals =
        EndingSignals::take_over().map_err(Error::host("take over the signals that end the process"))?;
    let outcome = Arc::new(OutcomeSlot::new().map_err(Error::host("create an eventfd"))?);
    let mut controller = Controller::new("anonymous-instance".to_owned(), Arc::clone(&outcome));
    controller.start(config)?;
    let result = event_loop::run(&outcome, &mut signals, &mut controller);
    controller.finish();
    result
}
