//! What the API acts on: the machine's configuration and, once it was started, its guest.

use std::sync::Arc;

use kindling_api::{Action, Fault, Machine, Phase, Reply, Section, VmConfig};
use kindling_virtio_balloon::Control as BalloonControl;
use serde_json::json;

use crate::error::{Error, one_line};
use crate::guest::Guest;
use crate::outcome::OutcomeSlot;
use crate::prepared::Prepared;
use crate::{live, log_sink};

/// What clients of Firecracker look for.
const APP_NAME: &str = "Firecracker";

/// The version of Firecracker's API that is served.
pub const API_LEVEL: &str = "1.17.0";

/// A machine before and while its guest runs.
pub struct Controller {
    id: String,
    config: VmConfig,
    prepared: Prepared,
    guest: Option<Guest>,
    paused: bool,
    outcome: Arc<OutcomeSlot>,
}

impl Controller {
    /// A machine called `id`, of which nothing is known yet. The end of its guest is reported to `outcome`.
    pub fn new(id: String, outcome: Arc<OutcomeSlot>) -> Self {
        let (config, prepared) = (VmConfig::default(), Prepared::default());
        Controller { id, config, prepared, guest: None, paused: false, outcome }
    }

    /// Starts the guest of `config`, which must be valid, in place of what was asked for before.
    pub fn start(&mut self, config: VmConfig) -> Result<(), Error> {
        self.guest = Some(Guest::start(&config, &mut self.prepared, &self.outcome)?);
        self.config = config;
        Ok(())
    }

    /// The guest, once it was started.
    pub fn guest_mut(&mut self) -> Option<&mut Guest> {
        self.guest.as_mut()
    }

    /// Ends what still runs, and pushes out what is to be said.
    pub fn finish(self) {
        if let Some(guest) = self.guest {
            guest.finish();
        }
    }

    fn configure(&mut self, section: &Section) -> Result<(), Fault> {
        let config = self.config.with(section.clone())?;
        self.prepared.open(&config, section).map_err(|error| refused(&error))?;
        if let (Section::Logger(_), Some(logger)) = (section, &config.logger) {
            log_sink::install(logger).map_err(|cause| live::field("log_path", cause))?;
        }
        self.config = config;
        Ok(())
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

    fn read(&self, action: &Action) -> Result<Option<Reply>, Fault> {
        Ok(Some(match action {
            Action::GetInstance => Reply::json(&json!({
                "id": self.id,
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
            Action::GetEvents => Reply::Events,
            _ => return Ok(None),
        }))
    }

    fn change(&mut self, action: Action) -> Result<(), Fault> {
        match action {
            Action::Configure(section) => self.configure(&section),
            Action::Start => self.start(self.config.clone()).map_err(|error| refused(&error)),
            Action::Pause => self.pause(),
            Action::Resume => self.resume(),
            Action::SendCtrlAltDel => self
                .guest()?
                .keyboard
                .press_ctrl_alt_del()
                .map_err(|error| Fault::bad_request(one_line(&error))),
            Action::PowerButton => self
                .guest()?
                .events
                .press_power_button()
                .map_err(|error| Fault::bad_request(one_line(&error))),
            Action::PatchDrive(patch) => {
                let (config, controls) = self.live()?;
                live::patch_drive(config, controls, &patch)
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
            action => Err(Fault::bad_request(format!("{} is not served", action.name()))),
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
