//! Changes of a guest's devices while it runs: each is done whole or not at all, and the configuration follows.

use std::fmt::Display;
use std::io;

use kindling_api::{
    BalloonConfig, BalloonPatch, BalloonStatisticsPatch, DrivePatch, Fault, FieldError,
    NetworkInterfacePatch, VmConfig,
};
use kindling_virtio_balloon::Control as BalloonControl;
use kindling_virtio_blk as blk;
use serde_json::{Map, Value, json};

use crate::backends::{Controls, updates};
use crate::error::one_line;

/// A fault of a request: `field` is wrong.
pub fn field(field: &str, cause: impl Display) -> Fault {
    FieldError { field: field.to_owned(), cause: cause.to_string() }.into()
}

/// For `map_err`: the device refuses what `name` asks for.
fn at<E: std::error::Error>(name: &'static str) -> impl FnOnce(E) -> Fault {
    move |error| field(name, one_line(&error))
}

/// `PATCH /drives/{drive_id}`, in a process that Landlock restricts or does not.
pub fn patch_drive(
    config: &mut VmConfig,
    controls: &Controls,
    patch: &DrivePatch,
    restricted: bool,
) -> Result<(), Fault> {
    let drive = config.drives.iter_mut().find(|drive| drive.drive_id == patch.drive_id);
    let (Some(drive), Some(control)) = (drive, controls.drives.get(&patch.drive_id)) else {
        return Err(Fault::not_found(format!("there is no drive {:?}", patch.drive_id)));
    };
    if patch.path_on_host.is_none() && patch.rate_limiter.is_none() {
        return Err(Fault::bad_request("the body must have path_on_host or rate_limiter"));
    }
    if let Some(path) = &patch.path_on_host {
        control.set_path(path).map_err(|error| field("path_on_host", why_not_opened(&error, restricted)))?;
    }
    let (bandwidth, ops) = updates(patch.rate_limiter.as_ref());
    if let Err(error) = control.set_limits(bandwidth, ops) {
        // Back to the file from before. It was good a moment ago; if it is not any more, both are as good.
        let _ = control.set_path(&drive.path_on_host);
        return Err(at("rate_limiter")(error));
    }
    if let Some(path) = &patch.path_on_host {
        drive.path_on_host.clone_from(path);
    }
    if let Some(limiter) = patch.rate_limiter {
        drive.rate_limiter = limiter.over(drive.rate_limiter);
    }
    Ok(())
}

/// Why a disk's new file cannot be used. The system has one answer for what permissions and what Landlock forbid.
fn why_not_opened(error: &blk::Error, restricted: bool) -> String {
    let line = one_line(error);
    match error {
        blk::Error::Open { source, .. } if restricted && source.kind() == io::ErrorKind::PermissionDenied => {
            format!(
                "{line}; with --landlock, a running guest's disks can only be files that its configuration named"
            )
        }
        _ => line,
    }
}

/// `PATCH /network-interfaces/{iface_id}`.
pub fn patch_interface(
    config: &mut VmConfig,
    controls: &Controls,
    patch: &NetworkInterfacePatch,
) -> Result<(), Fault> {
    let interface =
        config.network_interfaces.iter_mut().find(|interface| interface.iface_id == patch.iface_id);
    let (Some(interface), Some(control)) = (interface, controls.network_interfaces.get(&patch.iface_id))
    else {
        return Err(Fault::not_found(format!("there is no network interface {:?}", patch.iface_id)));
    };
    // Their ranges are checked: what is left to fail is nothing that the first could do and the second could not.
    let (bandwidth, ops) = updates(patch.rx_rate_limiter.as_ref());
    control.limit_rx(bandwidth, ops).map_err(at("rx_rate_limiter"))?;
    let (bandwidth, ops) = updates(patch.tx_rate_limiter.as_ref());
    control.limit_tx(bandwidth, ops).map_err(at("tx_rate_limiter"))?;
    for (limiter, patch) in [
        (&mut interface.rx_rate_limiter, patch.rx_rate_limiter),
        (&mut interface.tx_rate_limiter, patch.tx_rate_limiter),
    ] {
        if let Some(patch) = patch {
            *limiter = patch.over(*limiter);
        }
    }
    Ok(())
}

/// `PATCH /balloon`.
pub fn patch_balloon(config: &mut VmConfig, controls: &Controls, patch: BalloonPatch) -> Result<(), Fault> {
    let memory = config.machine_config.mem_size_mib;
    let (control, balloon) = balloon(config, controls)?;
    let wanted = BalloonConfig { amount_mib: patch.amount_mib, ..balloon.clone() };
    wanted.validate(memory)?;
    let amount = u32::try_from(patch.amount_mib).map_err(at("amount_mib"))?;
    control.set_amount_mib(amount).map_err(at("amount_mib"))?;
    *balloon = wanted;
    Ok(())
}

/// `PATCH /balloon/statistics`.
pub fn patch_balloon_statistics(
    config: &mut VmConfig,
    controls: &Controls,
    patch: BalloonStatisticsPatch,
) -> Result<(), Fault> {
    let (control, balloon) = balloon(config, controls)?;
    let seconds = patch.stats_polling_interval_s;
    control.set_statistics_interval(seconds).map_err(at("stats_polling_interval_s"))?;
    balloon.stats_polling_interval_s = seconds;
    Ok(())
}

/// The reply to `GET /balloon/statistics`: sizes as they are, and what the guest told last.
pub fn balloon_statistics(control: &BalloonControl) -> Result<Value, Fault> {
    let statistics = control.statistics().map_err(|error| Fault::bad_request(error.to_string()))?;
    let (target, actual) = (control.target_pages(), control.actual_pages());
    let mib = |pages: u32| pages / PAGES_PER_MIB;
    let mut reply = Map::new();
    for (name, value) in [
        ("target_pages", target),
        ("actual_pages", actual),
        ("target_mib", mib(target)),
        ("actual_mib", mib(actual)),
    ] {
        reply.insert(name.to_owned(), value.into());
    }
    for (name, value) in statistics.iter().flat_map(|statistics| statistics.iter()) {
        reply.insert(name.to_owned(), value.into());
    }
    Ok(reply.into())
}

/// The reply to `GET /balloon/hinting/status`.
pub fn hinting_status(control: &BalloonControl) -> Result<Value, Fault> {
    let hinting = control.hinting().map_err(|error| Fault::bad_request(error.to_string()))?;
    Ok(json!({"host_cmd": hinting.host_command, "guest_cmd": hinting.guest_command}))
}

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u32 = 256;

fn balloon<'m>(
    config: &'m mut VmConfig,
    controls: &'m Controls,
) -> Result<(&'m BalloonControl, &'m mut BalloonConfig), Fault> {
    match (&controls.balloon, &mut config.balloon) {
        (Some(control), Some(balloon)) => Ok((control, balloon)),
        _ => Err(no_balloon()),
    }
}

/// There is no balloon. Clients of Firecracker expect 400 here, not 404.
pub fn no_balloon() -> Fault {
    Fault::bad_request("there is no balloon")
}
