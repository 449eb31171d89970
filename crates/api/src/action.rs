//! What can be asked of a machine, when, and what it answers: requests after routing and checking, before anybody acts.

use serde::Serialize;
use serde_json::Value;

use crate::error::FieldError;
use crate::phase::{ANY, POST, PRE, Phase};
use crate::requests::{
    BalloonPatch, BalloonStatisticsPatch, DrivePatch, HintingStart, MachineConfigPatch, NetworkInterfacePatch,
};
use crate::{
    BalloonConfig, BootSource, DriveConfig, EntropyConfig, LoggerConfig, MachineConfig, MetricsConfig,
    MmdsConfig, NetworkInterfaceConfig, SerialConfig, VsockConfig,
};

/// Declares the actions and, with them, the table of phases in which they are allowed.
macro_rules! actions {
    ($(#[doc = $about:literal] $name:ident $(($body:ty))? => $phases:ident,)+) => {
        /// One request, parsed and checked as far as that can be done without the machine.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Action {
            $(#[doc = $about] $name $(($body))?,)+
        }

        impl Action {
            /// The phase table: every action by its name, and the phases in which it is allowed.
            pub const PHASES: &'static [(&'static str, &'static [Phase])] = &[$((stringify!($name), $phases),)+];

            /// Its name, which metrics and messages call it by.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)+
                }
            }

            /// The phases in which it is allowed: its row of [`Action::PHASES`].
            pub fn phases(&self) -> &'static [Phase] {
                match self {
                    $(Self::$name { .. } => $phases,)+
                }
            }
        }
    };
}

actions! {
    /// `GET /`
    GetInstance => ANY,
    /// `GET /version`
    GetVersion => ANY,
    /// `GET /vm/config`
    GetVmConfig => ANY,
    /// `GET /machine-config`
    GetMachineConfig => ANY,
    /// `GET /balloon`
    GetBalloon => ANY,
    /// `GET /balloon/statistics`
    GetBalloonStatistics => POST,
    /// `GET /balloon/hinting/status`
    GetHintingStatus => POST,
    /// `GET /mmds`
    GetMmds => ANY,
    /// `GET /metrics`
    GetMetrics => ANY,
    /// `GET /events`
    GetEvents => ANY,
    /// `PUT` or `PATCH` of what the machine is made of
    Configure(Section) => PRE,
    /// `PUT /actions` with `InstanceStart`
    Start => PRE,
    /// `PUT /actions` with `FlushMetrics`
    FlushMetrics => POST,
    /// `PUT /actions` with `SendCtrlAltDel`
    SendCtrlAltDel => POST,
    /// `PUT /actions` with `PowerButton`
    PowerButton => POST,
    /// `PATCH /vm` with `Paused`
    Pause => POST,
    /// `PATCH /vm` with `Resumed`
    Resume => POST,
    /// `PATCH /drives/{drive_id}`
    PatchDrive(DrivePatch) => POST,
    /// `PATCH /network-interfaces/{iface_id}`
    PatchNetworkInterface(NetworkInterfacePatch) => POST,
    /// `PATCH /balloon`
    PatchBalloon(BalloonPatch) => POST,
    /// `PATCH /balloon/statistics`
    PatchBalloonStatistics(BalloonStatisticsPatch) => POST,
    /// `PATCH /balloon/hinting/start`
    StartHinting(HintingStart) => POST,
    /// `PATCH /balloon/hinting/stop`
    StopHinting => POST,
    /// `PUT /mmds`
    PutMmds(Value) => ANY,
    /// `PATCH /mmds`
    PatchMmds(Value) => ANY,
}

/// A part of the configuration, which a request sets before the guest runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Section {
    /// `PUT /boot-source`
    BootSource(BootSource),
    /// `PUT /machine-config`
    MachineConfig(MachineConfig),
    /// `PATCH /machine-config`
    MachineConfigPatch(MachineConfigPatch),
    /// `PUT /drives/{drive_id}`
    Drive(DriveConfig),
    /// `PUT /network-interfaces/{iface_id}`
    NetworkInterface(NetworkInterfaceConfig),
    /// `PUT /vsock`
    Vsock(VsockConfig),
    /// `PUT /entropy`
    Entropy(EntropyConfig),
    /// `PUT /balloon`
    Balloon(BalloonConfig),
    /// `PUT /serial`
    Serial(SerialConfig),
    /// `PUT /logger`
    Logger(LoggerConfig),
    /// `PUT /metrics`
    Metrics(MetricsConfig),
    /// `PUT /mmds/config`
    MmdsConfig(MmdsConfig),
}

/// The answer to an action that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// 204: done, and there is nothing to say.
    Empty,
    /// 200 with JSON.
    Json(String),
    /// 200 with other text.
    Text {
        /// Its media type.
        content_type: &'static str,
        /// The text.
        body: String,
    },
    /// 200 with the stream of events, which the server adds.
    Events,
}

impl Reply {
    /// A reply with the JSON form of `value`.
    pub fn json(value: &impl Serialize) -> Self {
        // Fails for maps whose keys are no strings and for types that refuse, of which there are none here.
        Reply::Json(serde_json::to_string(value).unwrap_or_default())
    }
}

/// Why a request was refused. `{"fault_message": …}` to its client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What kind of mistake it is.
    pub status: Status,
    /// One line that names what is at fault, and why.
    pub message: String,
}

/// The kinds of refusals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// 400: the request is wrong, comes at the wrong time, or could not be carried out.
    BadRequest,
    /// 404: there is no such path, or no such resource.
    NotFound,
    /// 405: the path has other methods.
    MethodNotAllowed {
        /// The methods that it has, as the header `Allow` lists them.
        allow: &'static str,
    },
    /// 413: more than the server takes.
    PayloadTooLarge,
    /// 503: there is nobody to answer.
    Unavailable,
}

impl Status {
    /// The number of HTTP (RFC 9110, 15).
    pub fn code(self) -> u16 {
        match self {
            Status::BadRequest => 400,
            Status::NotFound => 404,
            Status::MethodNotAllowed { .. } => 405,
            Status::PayloadTooLarge => 413,
            Status::Unavailable => 503,
        }
    }
}

impl Fault {
    /// A refusal of that kind.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Fault { status, message: message.into() }
    }

    /// The request is wrong, comes at the wrong time, or could not be carried out.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Fault::new(Status::BadRequest, message)
    }

    /// There is no such resource.
    pub fn not_found(message: impl Into<String>) -> Self {
        Fault::new(Status::NotFound, message)
    }
}

impl From<FieldError> for Fault {
    fn from(error: FieldError) -> Self {
        Fault::bad_request(error.to_string())
    }
}

/// What answers requests: a monitor with its machine.
pub trait Machine {
    /// Where the machine is in its life.
    fn phase(&self) -> Phase;

    /// Does `action`, which the present phase allows.
    ///
    /// # Errors
    ///
    /// Why it could not be done. The machine is then as it was.
    fn act(&mut self, action: Action) -> Result<Reply, Fault>;
}

/// Has `machine` do `action`, if its phase allows.
///
/// # Errors
///
/// Why it was not done. The machine is then as it was.
pub fn dispatch(machine: &mut impl Machine, action: Action) -> Result<Reply, Fault> {
    if action.phases().contains(&machine.phase()) {
        return machine.act(action);
    }
    let what = action.name();
    Err(Fault::bad_request(match machine.phase() {
        Phase::NotStarted => format!("{what} is not supported before starting the microVM"),
        // Clients look for these words.
        Phase::Running | Phase::Paused => format!("{what} is not supported after starting the microVM"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_finds_its_row_of_the_phase_table() {
        let action = Action::PutMmds(Value::Null);
        assert!(Action::PHASES.contains(&(action.name(), action.phases())));
    }
}
