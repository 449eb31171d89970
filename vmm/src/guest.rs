//! A guest that runs: its machine and the threads of its vCPUs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_api::VmConfig;
use kindling_metrics::Group;
use kindling_seccomp_profiles::Thread;
use kindling_serial::Console;
use kindling_serial::terminal::RawMode;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use crate::backends::Controls;
use crate::confinement::Confinement;
use crate::console;
use crate::devices::{EventDevice, IrqTrigger, KeyboardDevice};
use crate::error::{Error, one_line};
use crate::gate::Gate;
use crate::log_sink;
use crate::machine::{Keep, Machine};
use crate::outcome::OutcomeSlot;
use crate::prepared::Prepared;
use crate::vcpu::{Shared, Vcpu};

/// How long a pause waits for vCPUs and requests in flight. The event loop waits with it.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a start waits for the threads of vCPUs: beyond what a busy host takes.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running guest.
///
/// Fields are dropped in their order: the virtual machine after its vCPUs, and before the eventfds of its interrupt lines,
/// which KVM takes long to part with otherwise.
pub struct Guest {
    threads: Vec<Vcpu>,
    keep: Keep,
    /// What changes its devices.
    pub controls: Controls,
    /// Its keyboard.
    pub keyboard: Arc<KeyboardDevice>,
    /// What tells it of events.
    pub events: Arc<EventDevice>,
    /// Its serial port's other end.
    pub console: Console<IrqTrigger>,
    gate: Arc<Gate>,
    raw_mode: Option<RawMode>,
}

impl Guest {
    /// Builds the machine of `config` and starts it.
    pub fn start(
        config: &VmConfig,
        prepared: &mut Prepared,
        outcome: &Arc<OutcomeSlot>,
    ) -> Result<Self, Error> {
        prepared.devices.open_missing(config)?;
        // Before the first thread of the guest: each is restricted when it starts.
        let ruleset = prepared.landlock.allow(config, &prepared.devices.disks());
        let ruleset = ruleset.map_err(Error::host("make Landlock's rules"))?;
        let confinement = Confinement::new(prepared.filters.clone(), ruleset);
        let Machine { vcpus, shared, console, keyboard, events, controls, keep } =
            Machine::build(config, prepared, &confinement, outcome)?;
        let raw_mode = console::enter_raw_mode(&console)?;
        // From now on, log lines come from threads that may not open anything.
        log_sink::prepare();
        let gate = Arc::clone(&shared.gate);
        gate.close();
        let mut guest =
            Guest { threads: Vec::new(), keep, controls, keyboard, events, console, gate, raw_mode };
        match guest.start_vcpus(vcpus, &shared) {
            Ok(()) => Ok(guest),
            Err(error) => {
                guest.stop_vcpus();
                Err(error)
            }
        }
    }

    /// Starts the threads, and lets them run the guest when all are there and this one is confined, too. It has to be
    /// the last: what it starts afterwards could do no more than it.
    fn start_vcpus(&mut self, vcpus: Vec<VcpuFd>, shared: &Shared) -> Result<(), Error> {
        for (index, vcpu) in (0..=u8::MAX).zip(vcpus) {
            let thread =
                Vcpu::start(index, vcpu, shared.clone()).map_err(Error::host("start a vCPU thread"))?;
            self.threads.push(thread);
        }
        shared.confinement.apply(Thread::Vmm).map_err(Error::host("confine the main thread"))?;
        // One alone is confined before it enters the guest. Of several, none may enter before all are.
        let count = self.threads.len();
        if count > 1 && !self.gate.wait_for(count, Instant::now() + START_DEADLINE) && !self.gate.has_ended()
        {
            return Err(Error::host("start the vCPU threads")("they do not run"));
        }
        self.gate.open();
        Ok(())
    }

    fn stop_vcpus(&mut self) {
        self.gate.end();
        self.threads.iter().for_each(Vcpu::kick);
        self.threads.drain(..).for_each(Vcpu::join);
    }

    /// Has vCPUs and devices rest. The console, and what was opened for the guest, stay as they are. The guest's clocks go on,
    /// so that it finds later that time has passed; where it has KVM's clock, it learns that this was no stall.
    ///
    /// # Errors
    ///
    /// What did not come to rest in time; the guest runs on.
    pub fn pause(&self) -> Result<(), String> {
        let deadline = Instant::now() + PAUSE_DEADLINE;
        self.gate.close();
        self.threads.iter().for_each(Vcpu::kick);
        if !self.gate.wait_for(self.threads.len(), deadline) {
            self.gate.open();
            let why = if self.gate.has_ended() { "the guest has ended" } else { "a vCPU waits for a device" };
            return Err(why.to_owned());
        }
        if let Err((id, error)) = self.keep.devices.sleep(deadline) {
            self.gate.open();
            return Err(format!("{id}: {}", one_line(&error)));
        }
        Ok(())
    }

    /// Has devices and vCPUs go on.
    pub fn resume(&self) {
        self.keep.devices.wake();
        self.gate.open();
    }

    /// What is written when it is time to [`Guest::go_on`].
    pub fn late(&self) -> &EventFd {
        self.keep.devices.late()
    }

    /// Has devices go on that held up a pause until it was refused, and could rest by now.
    pub fn go_on(&self) {
        self.keep.devices.go_on();
    }

    /// What its devices count.
    pub fn metrics(&self) -> Vec<Group> {
        self.keep.devices.metrics()
    }

    /// Stops its vCPUs, and has its devices finish what they have begun.
    pub fn stop(&mut self) {
        self.stop_vcpus();
        self.keep.devices.drain();
    }

    /// Pushes out what it has said, when it has stopped.
    pub fn finish(self) {
        // The machine ends before its console does.
        let Guest { keep, console, raw_mode, .. } = self;
        drop(keep);
        console::finish(console);
        drop(raw_mode);
    }
}
