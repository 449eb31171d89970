//! What tests use to start guests and talk to them.
//!
//! [`Guest`] runs `vmm` with a guest whose init takes commands over the console; [`Vmm`] runs `vmm` alone, for what it
//! says and how it ends; [`on_host`] runs other programs, [`Tap`] gives a guest a network. Every wait has a limit,
//! multiplied by `$KINDLING_TIMEOUT_SCALE`. What a test starts is killed and reaped when the test drops it; a test that
//! fails shows what the guest's console showed.

mod agent;
mod builder;
mod connection;
mod console;
pub mod files;
mod guest;
mod hanging;
mod host;
pub mod jail;
mod loop_device;
mod process;
mod tap;
mod vmm;

use std::path::PathBuf;
use std::time::Duration;

pub use agent::{Agent, Output};
pub use builder::{BASE_CMDLINE, Builder, Kernel, LIFE, Stdio, default_cmdline};
pub use connection::Connection;
pub use console::Console;
pub use files::SCRATCH_VARIABLE;
pub use guest::Guest;
pub use hanging::HangingDisk;
pub use host::on_host;
pub use loop_device::LoopDevice;
pub use process::Process;
pub use tap::Tap;
pub use vmm::{Ended, Vmm};

use crate::error::{Error, Result};
use crate::guest_image::{FOLDER_VARIABLE, GuestImage};
use crate::runner::VMM_VARIABLE;

/// Multiplies every time limit; for slow machines.
pub const SCALE_VARIABLE: &str = "KINDLING_TIMEOUT_SCALE";

/// The factor from `$KINDLING_TIMEOUT_SCALE`, 1 without it.
pub fn timeout_scale() -> f64 {
    let scale = std::env::var(SCALE_VARIABLE).ok().and_then(|scale| scale.parse::<f64>().ok());
    scale.filter(|scale| (0.01..=1000.0).contains(scale)).unwrap_or(1.0)
}

/// A time limit after scaling.
pub fn scaled(limit: Duration) -> Duration {
    limit.mul_f64(timeout_scale())
}

/// What guests are booted from, from the environment `host-runner` makes.
pub fn image() -> Result<GuestImage> {
    GuestImage::from_environment().ok_or_else(|| not_set(FOLDER_VARIABLE))
}

/// The `vmm` under test, from the environment `host-runner` makes, or what stands in for it.
pub fn vmm_path() -> Result<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty());
    path(jail::VARIABLE)
        .or_else(|| path(VMM_VARIABLE))
        .map(PathBuf::from)
        .ok_or_else(|| not_set(VMM_VARIABLE))
}

fn not_set(variable: &str) -> Error {
    let text = format!(
        "{variable} is not set: run this test with `cargo verify --step linux`, or under host-runner"
    );
    Error::Protocol(text)
}
