//! Where a machine is in its life, which decides what can be asked of it.

use serde::{Deserialize, Serialize};

/// Where a machine is in its life. Written as the `state` of `GET /`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Phase {
    /// It is being configured: no guest code has run.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The guest runs.
    Running,
    /// The guest has run, and its processors and devices rest.
    Paused,
}

impl Phase {
    /// All phases.
    pub const ALL: [Phase; 3] = [Phase::NotStarted, Phase::Running, Phase::Paused];
}

/// Before the guest runs.
pub(crate) const PRE: &[Phase] = &[Phase::NotStarted];
/// Once the guest runs.
pub(crate) const POST: &[Phase] = &[Phase::Running, Phase::Paused];
/// At any time.
pub(crate) const ANY: &[Phase] = &Phase::ALL;
