//! The monitor's metrics: `PUT /metrics`, section `metrics` of the config file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot_source::check_path;
use crate::error::FieldError;

/// Most entries of [`MetricsConfig::properties`].
const PROPERTIES_MAX: usize = 32;
/// Longest name and value of one, in bytes.
const PROPERTY_MAX_LEN: usize = 256;

/// Where metrics are written, as a line of JSON every minute.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// File or FIFO on the host that receives the lines.
    pub metrics_path: PathBuf,
    /// Whether each line has the machine's id.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emit_id: bool,
    /// What each line has besides: up to 32 names and values of up to 256 bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

impl MetricsConfig {
    /// Lines at `metrics_path`, with nothing added.
    pub fn new(metrics_path: impl Into<PathBuf>) -> Self {
        MetricsConfig { metrics_path: metrics_path.into(), emit_id: false, properties: BTreeMap::new() }
    }

    /// Checks every field; no file is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        check_path("metrics_path", &self.metrics_path)?;
        let count = self.properties.len();
        if count > PROPERTIES_MAX {
            let cause = format!("must be at most {PROPERTIES_MAX}, got {count}");
            return Err(FieldError::new("properties", cause));
        }
        let fits = |text: &str| text.len() <= PROPERTY_MAX_LEN;
        if let Some((name, _)) = self.properties.iter().find(|(name, value)| !fits(name) || !fits(value)) {
            let cause =
                format!("must have names and values of at most {PROPERTY_MAX_LEN} bytes, got {name:?}");
            return Err(FieldError::new("properties", cause));
        }
        Ok(())
    }
}
