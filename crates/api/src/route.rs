//! From a request's method, path and body to an [`Action`]: one table, of which everything else here is the reader.

use serde::de::DeserializeOwned;

use crate::action::{Action, Fault, Section, Status};
use crate::error::{FieldError, one_line};
use crate::json;
use crate::requests::{ActionRequest, ActionType, HintingStart, VmPatch, VmState};
use crate::{DriveConfig, NetworkInterfaceConfig};

/// A row of the routing table.
pub struct Route {
    /// `GET`, `PUT`, `PATCH` or `DELETE`.
    pub method: &'static str,
    /// The path. A last segment in braces stands for an id of that name, which the body has too.
    pub path: &'static str,
    parse: fn(&Call<'_>) -> Result<Action, FieldError>,
}

/// What a request has beside its method and path.
struct Call<'a> {
    /// The path's last segment, where the route wants an id there.
    id: &'a str,
    body: &'a [u8],
}

const fn route(
    method: &'static str,
    path: &'static str,
    parse: fn(&Call<'_>) -> Result<Action, FieldError>,
) -> Route {
    Route { method, path, parse }
}

/// The routing table.
pub const ROUTES: &[Route] = &[
    route("GET", "/", |call| call.nothing(Action::GetInstance)),
    route("GET", "/version", |call| call.nothing(Action::GetVersion)),
    route("PUT", "/actions", action),
    route("GET", "/balloon", |call| call.nothing(Action::GetBalloon)),
    route("PUT", "/balloon", |call| call.section(Section::Balloon)),
    route("PATCH", "/balloon", |call| call.read().map(Action::PatchBalloon)),
    route("GET", "/balloon/statistics", |call| call.nothing(Action::GetBalloonStatistics)),
    route("PATCH", "/balloon/statistics", |call| call.read().map(Action::PatchBalloonStatistics)),
    route("PATCH", "/balloon/hinting/start", |call| match call.body {
        [] => Ok(Action::StartHinting(HintingStart::default())),
        _ => call.read().map(Action::StartHinting),
    }),
    // Clients send `{}` or nothing.
    route("PATCH", "/balloon/hinting/stop", |_| Ok(Action::StopHinting)),
    route("GET", "/balloon/hinting/status", |call| call.nothing(Action::GetHintingStatus)),
    route("PUT", "/boot-source", |call| call.section(Section::BootSource)),
    route("PUT", "/drives/{drive_id}", |call| {
        let drive: DriveConfig = call.read()?;
        call.same_id("drive_id", &drive.drive_id)?;
        Ok(Action::Configure(Section::Drive(drive)))
    }),
    route("PATCH", "/drives/{drive_id}", |call| {
        let patch: crate::DrivePatch = call.read()?;
        call.same_id("drive_id", &patch.drive_id)?;
        patch.validate()?;
        Ok(Action::PatchDrive(patch))
    }),
    route("PUT", "/entropy", |call| call.section(Section::Entropy)),
    route("GET", "/events", |call| call.nothing(Action::GetEvents)),
    route("PUT", "/logger", |call| call.section(Section::Logger)),
    route("GET", "/machine-config", |call| call.nothing(Action::GetMachineConfig)),
    route("PUT", "/machine-config", |call| call.section(Section::MachineConfig)),
    route("PATCH", "/machine-config", |call| {
        let patch: crate::MachineConfigPatch = call.read()?;
        if patch == crate::MachineConfigPatch::default() {
            return Err(FieldError::new("", "the body must change something"));
        }
        Ok(Action::Configure(Section::MachineConfigPatch(patch)))
    }),
    route("GET", "/metrics", |call| call.nothing(Action::GetMetrics)),
    route("PUT", "/metrics", |call| call.section(Section::Metrics)),
    route("GET", "/mmds", |call| call.nothing(Action::GetMmds)),
    route("PUT", "/mmds", |call| call.json().map(Action::PutMmds)),
    route("PATCH", "/mmds", |call| call.json().map(Action::PatchMmds)),
    route("PUT", "/mmds/config", |call| call.section(Section::MmdsConfig)),
    route("PUT", "/network-interfaces/{iface_id}", |call| {
        let interface: NetworkInterfaceConfig = call.read()?;
        call.same_id("iface_id", &interface.iface_id)?;
        Ok(Action::Configure(Section::NetworkInterface(interface)))
    }),
    route("PATCH", "/network-interfaces/{iface_id}", |call| {
        let patch: crate::NetworkInterfacePatch = call.read()?;
        call.same_id("iface_id", &patch.iface_id)?;
        patch.validate()?;
        Ok(Action::PatchNetworkInterface(patch))
    }),
    route("PUT", "/serial", |call| call.section(Section::Serial)),
    route("PATCH", "/vm", |call| {
        let VmPatch { state } = call.read()?;
        Ok(match state {
            VmState::Paused => Action::Pause,
            VmState::Resumed => Action::Resume,
        })
    }),
    route("GET", "/vm/config", |call| call.nothing(Action::GetVmConfig)),
    route("PUT", "/vsock", |call| call.section(Section::Vsock)),
    // As an old form of the request has it. There is one device, whatever it is called.
    route("PUT", "/vsock/{vsock_id}", |call| call.section(Section::Vsock)),
];

fn action(call: &Call<'_>) -> Result<Action, FieldError> {
    let ActionRequest { action_type } = call.read()?;
    Ok(match action_type {
        ActionType::InstanceStart => Action::Start,
        ActionType::FlushMetrics => Action::FlushMetrics,
        ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        ActionType::PowerButton => Action::PowerButton,
    })
}

impl Call<'_> {
    /// Refuses a body where none belongs.
    fn nothing(&self, action: Action) -> Result<Action, FieldError> {
        match self.body {
            [] => Ok(action),
            _ => Err(FieldError::new("", "the request must have no body")),
        }
    }

    fn json(&self) -> Result<serde_json::Value, FieldError> {
        if self.body.is_empty() {
            return Err(FieldError::new("", "the request must have a body"));
        }
        json::parse(self.body).map_err(|error| FieldError::new("", error.to_string()))
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        json::from_value(self.json()?)
    }

    /// A section of the configuration, which is checked when it is put into its place.
    fn section<T: DeserializeOwned>(&self, section: fn(T) -> Section) -> Result<Action, FieldError> {
        self.read().map(section).map(Action::Configure)
    }

    fn same_id(&self, field: &'static str, id: &str) -> Result<(), FieldError> {
        if id == self.id {
            return Ok(());
        }
        Err(FieldError::new(field, format!("must be the id in the path, {:?}, got {id:?}", self.id)))
    }
}

impl Route {
    /// The id in `path` if this row is about it; empty for a row without one.
    fn matches<'p>(&self, path: &'p str) -> Option<&'p str> {
        match self.path.split_once('{') {
            None => (path == self.path).then_some(""),
            Some((before, _)) => path.strip_prefix(before).filter(|id| !id.is_empty() && !id.contains('/')),
        }
    }
}

/// The action that a request asks for. `path` comes without a query.
///
/// # Errors
///
/// When there is no such path or method, or the body is wrong.
pub fn parse(method: &str, path: &str, body: &[u8]) -> Result<Action, Fault> {
    let mut allow = Vec::new();
    for route in ROUTES {
        let Some(id) = route.matches(path) else { continue };
        if route.method == method {
            return (route.parse)(&Call { id, body }).map_err(Fault::from);
        }
        allow.push(route.method);
    }
    if allow.is_empty() {
        return Err(Fault::not_found(format!("there is no path {}", one_line(path))));
    }
    let allow = allow_header(&allow);
    let message = format!("{} has no method {}, only {allow}", one_line(path), one_line(method));
    Err(Fault::new(Status::MethodNotAllowed { allow }, message))
}

/// The value of the header `Allow` for these methods of one path.
fn allow_header(methods: &[&str]) -> &'static str {
    /// All sets of methods that a path has, in the order of the table.
    const SETS: [&str; 7] =
        ["GET", "PUT", "PATCH", "GET, PUT", "GET, PATCH", "PUT, PATCH", "GET, PUT, PATCH"];
    let wanted = methods.join(", ");
    SETS.into_iter().find(|set| *set == wanted).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(method: &str, path: &str, body: &str) -> (u16, String) {
        let fault = parse(method, path, body.as_bytes()).unwrap_err();
        (fault.status.code(), fault.message)
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        for route in ROUTES {
            let fault = parse("TRACE", &route.path.replace(['{', '}'], ""), b"").unwrap_err();
            let Status::MethodNotAllowed { allow } = fault.status else { panic!("{fault:?}") };
            assert!(allow.split(", ").any(|method| method == route.method), "{} {allow:?}", route.path);
        }
        let expected = (405, "/drives/a has no method DELETE, only PUT, PATCH".to_owned());
        assert_eq!(fault("DELETE", "/drives/a", ""), expected);
    }

    #[test]
    fn a_path_is_matched_as_a_whole() {
        for path in [
            "",
            "*",
            "/drives",
            "/drives/",
            "/drives/a/b",
            "/drives/../version",
            "//",
            "/version/",
            "/VERSION",
        ] {
            assert_eq!(fault("GET", path, ""), (404, format!("there is no path {path}")));
        }
        assert_eq!(parse("GET", "/version", b""), Ok(Action::GetVersion));
    }

    #[test]
    fn the_id_in_the_path_is_that_of_the_body() {
        let body = r#"{"drive_id": "b", "is_root_device": false, "path_on_host": "/d"}"#;
        let message = r#"drive_id: must be the id in the path, "a", got "b""#.to_owned();
        assert_eq!(fault("PUT", "/drives/a", body), (400, message));
        assert!(parse("PUT", "/drives/b", body.as_bytes()).is_ok());
    }

    #[test]
    fn a_body_is_where_it_belongs_and_only_there() {
        assert_eq!(fault("GET", "/", "{}"), (400, "the request must have no body".to_owned()));
        assert_eq!(fault("PUT", "/boot-source", ""), (400, "the request must have a body".to_owned()));
        let expected = (400, "the body must change something".to_owned());
        assert_eq!(fault("PATCH", "/machine-config", "{}"), expected);
        for body in ["", "{}", r#"{"acknowledge_on_stop": true}"#] {
            let start = HintingStart { acknowledge_on_stop: true };
            assert_eq!(
                parse("PATCH", "/balloon/hinting/start", body.as_bytes()),
                Ok(Action::StartHinting(start))
            );
        }
    }
}
