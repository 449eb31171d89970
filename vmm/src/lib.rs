//! The Kindling microVM monitor as a library: wires the component crates to KVM, threads and the command line.
//!
//! The `vmm` binary is a thin `main` over this. The life of a run, each step in its module:
//!
//! 1. [`cli`] and [`start`]: from options or a config file to a [`kindling_api::VmConfig`].
//! 2. `machine`: from the configuration to a virtual machine that is ready to run, and `guest`: to one that does.
//! 3. `vcpu` threads run the guest while `event_loop` serves its console, signals, requests and its end.
//! 4. [`outcome`]: how it ended, and the exit code that says so.

mod backends;
mod boot_timer;
mod confinement;
mod console;
mod controller;
mod devices;
mod event_loop;
mod gate;
mod guest;
mod limits;
mod line_output;
mod live;
mod log_sink;
mod machine;
mod metadata;
mod metrics_sink;
mod prepared;
mod process_metrics;
mod registry;
mod regs;
mod signals;
mod telemetry;
mod vcpu;

pub mod cli;
pub mod clock;
pub mod device_options;
pub mod doctor;
pub mod error;
pub mod landlock;
pub mod outcome;
pub mod start;

use std::path::PathBuf;
use std::sync::Arc;

use kindling_api::VmConfig;
use kindling_api::server::{Limits, Requests, Server};
use kindling_seccomp_profiles::{Filters, Level, Thread, install_handler};
use kindling_serial::terminal;
use serde_json::Value;

use crate::clock::StartTimes;
use crate::confinement::Confinement;
pub use crate::controller::API_LEVEL;
use crate::controller::Controller;
use crate::error::Error;
use crate::landlock::{Landlock, Mode};
use crate::outcome::{Outcome, OutcomeSlot};
use crate::signals::EndingSignals;
use crate::telemetry::Telemetry;

/// What the process is to do.
pub struct Launch {
    /// Name of the machine.
    pub id: String,
    /// What is known of it so far. Must be valid.
    pub config: VmConfig,
    /// Whether its guest is started at once.
    pub start: bool,
    /// Whether keys at the console's terminal can be for the monitor: Ctrl-A and another one.
    pub has_escapes: bool,
    /// The socket on which the REST API is served, if it is, and what clients may ask for.
    pub api: Option<(PathBuf, Limits)>,
    /// What the metadata service offers at first.
    pub metadata: Option<Value>,
    /// Most bytes of JSON that it keeps.
    pub metadata_limit: usize,
    /// Whether the guest can say when it has booted.
    pub boot_timer: bool,
    /// When the process was started.
    pub started: StartTimes,
    /// Whether the files of sockets stay behind after a guest's end. Clients of Firecracker remove them, and take it for a
    /// mistake when they cannot.
    pub leave_sockets: bool,
    /// Which system calls threads may make once guest code can run.
    pub filters: Filters,
    /// Whether its threads are restricted to the files and sockets that its configuration names, as soon as guest code can
    /// run.
    pub landlock: Mode,
}

impl Launch {
    /// Waits for nobody and starts nothing, unless said otherwise.
    pub fn new(id: String, config: VmConfig) -> Self {
        Launch {
            id,
            config,
            start: false,
            has_escapes: false,
            api: None,
            metadata: None,
            metadata_limit: Limits::default().body,
            boot_timer: false,
            started: StartTimes::new(None, None, None),
            leave_sockets: false,
            filters: Filters::embedded(Level::default()),
            landlock: Mode::Off,
        }
    }
}

/// Serves the API and runs a guest, as `launch` asks for, until the guest or the process is to end.
///
/// When the guest starts, the calling thread is restricted by Landlock, if that is asked for, and bound to its filter of system
/// calls, for good. SIGSYS has a handler from then on that says which call was forbidden, and ends the process.
///
/// Serves the signals that end the process (SIGTERM, SIGINT and the like) itself for as long as it runs, and ignores
/// SIGXFSZ from then on. When this returns, every thread has ended but those of devices that hang, the terminal is as it
/// was, and sockets made for the guest are removed, unless they are to stay.
///
/// # Errors
///
/// When the guest could not be started, or the host failed to go on.
pub fn run(launch: Launch) -> Result<Outcome, Error> {
    log_sink::install();
    let landlock = Landlock::new(&launch)?;
    if launch.id != cli::DEFAULT_ID {
        log_sink::set_id(&launch.id);
    }
    install_handler(terminal::restore).map_err(Error::host("set up the signal of forbidden system calls"))?;
    signals::ignore_file_size_signal();
    limits::raise_descriptor_limit();
    signals::install_kick_handler().map_err(Error::host("set up the signal that stops vCPUs"))?;
    // Dropped last, when the terminal is as it was: a second signal may then end the process the short way.
    let mut signals =
        EndingSignals::take_over().map_err(Error::host("take over the signals that end the process"))?;
    let outcome = Arc::new(OutcomeSlot::new().map_err(Error::host("create an eventfd"))?);
    let api = match &launch.api {
        Some((path, limits)) => {
            let server =
                Server::bind(path, *limits).map_err(|error| Error::configuration("--api-sock", error))?;
            let ruleset = landlock.deny_all().map_err(Error::host("make Landlock's rules"))?;
            let confinement = Confinement::new(launch.filters.clone(), ruleset);
            Some(server.start(move || confinement.apply(Thread::Api)).map_err(Error::host("serve the API"))?)
        }
        None => None,
    };
    let (mut requests, events) = api.unzip();
    let metrics = requests.as_ref().map(Requests::metrics);
    let leave_sockets = launch.leave_sockets;
    let telemetry = Telemetry::new(launch.id.clone(), metrics.zip(events));
    let mut controller = Controller::new(launch, landlock, Arc::clone(&outcome), telemetry)?;
    let result = event_loop::run(&outcome, &mut signals, &mut controller, requests.as_mut());
    if leave_sockets {
        controller.leave_sockets();
    }
    controller.finish();
    log::logger().flush();
    if let Some(requests) = requests
        && leave_sockets
    {
        requests.leave_socket();
    }
    result
}
