//! What the API acts on: the machine's configuration and, once it was started, its guest.

use std::sync::Arc;
use std::time::Instant;

use kindling_api::server::Request;
use kindling_api::{Action, Fault, Machine, Phase, Reply, Section, VmConfig, dispatch};
use kindling_metrics::Group;
use kindling_virtio_balloon::Control as BalloonControl;
use serde_json::json;

use crate::error::{Error, one_line};
use crate::guest::Guest;
use crate::landlock::Landlock;
use crate::outcome::OutcomeSlot;
use crate::prepared::Prepared;
use crate::telemetry::Telemetry;
use crate::{Launch, live, log_sink, metadata};

/// What clients of Firecracker look for.
const APP_NAME: &str = "Firecracker";

/// The version of Firecracker's API that is served.
pub const API_LEVEL: &str = "1.17.0";

/// A machine before and while its guest runs.
pub struct Controller {
    config: VmConfig,
    prepared: Prepared,
    guest: Option<Guest>,
    paused: bool,
    outcome: Arc<OutcomeSlot>,
    telemetry: Telemetry,
}

impl Controller {
    /// The machine of `launch`, with its guest started if that is wanted. The guest's end is reported to `outcome`.
    pub fn new(
        launch: Launch,
        landlock: Landlock,
        outcome: Arc<OutcomeSlot>,
        telemetry: Telemetry,
    ) -> Result<Self, Error> {
        let prepared = Prepared::new(&launch, landlock)?;
        let started = launch.started;
        let config = launch.config;
        let mut controller = Controller { config, prepared, guest: None, paused: false, outcome, telemetry };
        if let Some(logger) = &controller.config.logger {
            log_sink::configure(logger).map_err(|error| error.within("logger"))?;
        }
        if let Some(metrics) = &controller.config.metrics {
            let opened = controller.telemetry.write_to(metrics);
            opened.map_err(|cause| Error::configuration("metrics.metrics_path", cause))?;
        }
        if launch.start {
            controller.start()?;
        }
        controller.telemetry.started(started.elapsed(), started.processor_time());
        Ok(controller)
    }

    fn start(&mut self) -> Result<(), Error> {
        self.guest = Some(Guest::start(&self.config, &mut self.prepared, &self.outcome)?);
        Ok(())
    }

    /// The guest, once it was started.
    pub fn guest_mut(&mut self) -> Option<&mut Guest> {
        self.guest.as_mut()
    }

    /// Milliseconds that the event loop may wait for something to happen; -1 for any time.
    pub fn wait_ms(&self) -> i32 {
        let wait = self.telemetry.wait();
        // Not less than the wait, or the loop would come round for nothing.
        wait.map_or(-1, |wait| i32::try_from(wait.as_millis().saturating_add(1)).unwrap_or(i32::MAX))
    }

    /// Writes metrics if it is time to.
    pub fn write_metrics_if_due(&mut self) {
        if self.telemetry.is_due() {
            let groups = self.metrics();
            // What is lost is counted.
            let _ = self.telemetry.write(groups);
        }
    }

    /// Acts on a request and answers it.
    pub fn serve(&mut self, request: Request) {
        let Request { action, responder } = request;
        let (name, before, began) = (action.name(), self.phase(), Instant::now());
        let result = dispatch(self, action);
        self.telemetry.acted(name, began.elapsed(), result.is_ok());
        responder.answer(result);
        if self.phase() != before {
            self.telemetry.phase_changed(self.phase());
        }
    }

    /// Has the files of sockets stay when what listens there ends.
    pub fn leave_sockets(&self) {
        self.prepared.devices.leave_sockets();
        if let Some(file) = self.guest.as_ref().and_then(|guest| guest.controls.vsock.as_ref()) {
            file.leave();
        }
    }

    /// Ends what still runs, and pushes out what is to be said.
    pub fn finish(mut self) {
        if let Some(guest) = &mut self.guest {
            guest.stop();
        }
        // What is lost is counted, for nobody any more.
        let groups = self.metrics();
        let _ = self.telemetry.write(groups);
        if let Some(outcome) = self.outcome.get() {
            self.telemetry.ended(outcome);
        }
        if let Some(guest) = self.guest {
            guest.finish();
        }
    }

    fn configure(&mut self, section: &Section) -> Result<(), Fault> {
        let config = self.config.with(section.clone())?;
        self.prepared.open(&self.config, &config, section).map_err(|error| refused(&error))?;
        match section {
            Section::Logger(logger) => log_sink::configure(logger)?,
            Section::Metrics(metrics) => {
                self.telemetry.write_to(metrics).map_err(|cause| live::field("metrics_path", cause))?;
            }
            Section::MmdsConfig(mmds) => {
                self.prepared.metadata.configure(mmds).map_err(|error| metadata::refused(&error))?;
            }
            _ => {}
        }
        self.config = config;
        Ok(())
    }

    /// What devices and services count.
    fn metrics(&self) -> Vec<Group> {
        let devices = self.guest.as_ref().map(Guest::metrics).unwrap_or_default();
        devices.into_iter().chain(self.prepared.metadata.metrics()).collect()
    }

    fn pause(&mut self) -> Result<(), Fault> {
        if !self.paused {
            self.guest()?.pause().map_err(|cause| Fault::bad_request(format!("cannot pause: {cause}")))?;
            self.paused = true;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Fault> {
        if self.paused {
            self.guest()?.resume();
            self.paused = false;
        }
        Ok(())
    }

    /// The guest, in a phase in which there is one.
    fn guest(&self) -> Result<&Guest, Fault> {
        self.guest.as_ref().ok_or_else(|| Fault::bad_request("the guest was not started"))
    }

    fn balloon(&self) -> Result<&BalloonControl, Fault> {
        self.guest()?.controls.balloon.as_deref().ok_or_else(live::no_balloon)
    }

    /// The configuration to be changed, and what changes the guest's devices.
    fn live(&mut self) -> Result<(&mut VmConfig, &crate::backends::Controls), Fault> {
        match &self.guest {
            Some(guest) => Ok((&mut self.config, &guest.controls)),
            None => Err(Fault::bad_request("the guest was not started")),
        }
    }

    fn read(&mut self, action: &Action) -> Result<Option<Reply>, Fault> {
        Ok(Some(match action {
            Action::GetInstance => Reply::json(&json!({
                "id": self.telemetry.id(),
                "state": self.phase(),
                "vmm_version": env!("CARGO_PKG_VERSION"),
                "app_name": APP_NAME,
            })),
            Action::GetVersion => Reply::json(&json!({"firecracker_version": API_LEVEL})),
            Action::GetVmConfig => Reply::json(&self.config),
            Action::GetMachineConfig => Reply::json(&self.config.machine_config),
            Action::GetBalloon => Reply::json(self.config.balloon.as_ref().ok_or_else(live::no_balloon)?),
            Action::GetBalloonStatistics => Reply::json(&live::balloon_statistics(self.balloon()?)?),
            Action::GetHintingStatus => Reply::json(&live::hinting_status(self.balloon()?)?),
            Action::GetMmds => {
                Reply::json(&self.prepared.metadata.get().map_err(|error| metadata::refused(&error))?)
            }
            Action::GetMetrics => self.telemetry.reply(self.metrics()),
            Action::GetEvents => Reply::Events,
            _ => return Ok(None),
        }))
    }

    fn change(&mut self, action: Action) -> Result<(), Fault> {
        match action {
            Action::Configure(section) => self.configure(&section),
            Action::Start => self.start().map_err(|error| refused(&error)),
            Action::FlushMetrics => {
                let groups = self.metrics();
                let written = self.telemetry.write(groups);
                written.map_err(|error| Fault::bad_request(format!("cannot write metrics: {error}")))
            }
            Action::Pause => self.pause(),
            Action::Resume => self.resume(),
            Action::SendCtrlAltDel => match self.guest()?.keyboard.press_ctrl_alt_del() {
                // Clients press it in vain, and are not told, if the guest has no driver for its keyboard.
                Err(error @ kindling_i8042::Error::NotListening { .. }) => {
                    log::warn!("Ctrl+Alt+Del: {}", one_line(&error));
                    Ok(())
                }
                result => result.map_err(|error| Fault::bad_request(one_line(&error))),
            },
            Action::PowerButton => self
                .guest()?
                .events
                .press_power_button()
                .map_err(|error| Fault::bad_request(one_line(&error))),
            Action::PatchDrive(patch) => {
                let restricted = self.prepared.landlock.is_on();
                let (config, controls) = self.live()?;
                live::patch_drive(config, controls, &patch, restricted)
            }
            Action::PatchNetworkInterface(patch) => {
                let (config, controls) = self.live()?;
                live::patch_interface(config, controls, &patch)
            }
            Action::PatchBalloon(patch) => {
                let (config, controls) = self.live()?;
                live::patch_balloon(config, controls, patch)
            }
            Action::PatchBalloonStatistics(patch) => {
                let (config, controls) = self.live()?;
                live::patch_balloon_statistics(config, controls, patch)
            }
            Action::StartHinting(start) => {
                let started = self.balloon()?.start_hinting(start.acknowledge_on_stop);
                started.map_err(|error| Fault::bad_request(error.to_string()))
            }
            Action::StopHinting => {
                self.balloon()?.stop_hinting().map_err(|error| Fault::bad_request(error.to_string()))
            }
            Action::PutMmds(document) => {
                self.prepared.metadata.put(document).map_err(|error| metadata::refused(&error))
            }
            Action::PatchMmds(patch) => {
                self.prepared.metadata.patch(patch).map_err(|error| metadata::refused(&error))
            }
            // `read` has answered it.
            action => Err(Fault::bad_request(format!("{} changes nothing", action.name()))),
        }
    }
}

impl Machine for Controller {
    fn phase(&self) -> Phase {
        match (&self.guest, self.paused) {
            (None, _) => Phase::NotStarted,
            (Some(_), false) => Phase::Running,
            (Some(_), true) => Phase::Paused,
        }
    }

    fn act(&mut self, action: Action) -> Result<Reply, Fault> {
        match self.read(&action)? {
            Some(reply) => Ok(reply),
            None => self.change(action).map(|()| Reply::Empty),
        }
    }
}

fn refused(error: &Error) -> Fault {
    Fault::bad_request(one_line(error))
}
