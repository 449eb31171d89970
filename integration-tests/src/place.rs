//! Where guests run: directly on this machine's KVM, or in a nested host.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Set to `native` or `nested` to have no look at the machine.
pub const VARIABLE: &str = "KINDLING_HOST";

/// Whether this machine has a `/dev/kvm`, of whatever kind, that this user may open.
pub fn kvm_opens() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Where guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine's KVM.
    Native,
    /// In a nested host.
    Nested,
}

/// Where guests run, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where.
    pub place: Place,
    /// The reason, as part of a sentence.
    pub why: String,
}

/// The part of `vmm doctor --json` that matters here.
#[derive(Deserialize)]
struct Diagnosis {
    verdict: String,
}

impl Decision {
    /// Follows `$KINDLING_HOST`, or else what `vmm doctor` says about this machine.
    pub fn make(vmm: &Path) -> Result<Self> {
        let wanted = std::env::var(VARIABLE).unwrap_or_default();
        match wanted.as_str() {
            "" => Ok(Self::from_doctor(vmm)),
            "native" => Ok(Self { place: Place::Native, why: format!("{VARIABLE}=native") }),
            "nested" => Ok(Self { place: Place::Nested, why: format!("{VARIABLE}=nested") }),
            other => Err(Error::Protocol(format!("{VARIABLE}={other}: expected native or nested"))),
        }
    }

    fn from_doctor(vmm: &Path) -> Self {
        // Its exit code repeats the verdict.
        let output = Command::new(vmm).args(["doctor", "--json"]).stdin(Stdio::null()).output();
        match output {
            Ok(output) => Self::from_diagnosis(&output.stdout),
            Err(error) => Self::nested(format!("vmm doctor could not be started: {error}")),
        }
    }

    fn from_diagnosis(json: &[u8]) -> Self {
        let diagnosis = serde_json::from_slice::<Diagnosis>(json).map(|diagnosis| diagnosis.verdict);
        match diagnosis.as_deref() {
            Ok("usable") => Self { place: Place::Native, why: "this machine's KVM runs guests".to_owned() },
            Ok("emulated") => {
                Self::nested("this machine's KVM emulates guest kernels instead of running them")
            }
            Ok("unusable") => Self::nested("this machine has no KVM for us (see `vmm doctor`)"),
            Ok(other) => Self::nested(format!("vmm doctor says {other:?}")),
            Err(error) => Self::nested(format!("vmm doctor gives no verdict: {error}")),
        }
    }

    fn nested(why: impl Into<String>) -> Self {
        Self { place: Place::Nested, why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_usable_kvm_is_used_directly() {
        let place = |json: &str| Decision::from_diagnosis(json.as_bytes()).place;
        assert_eq!(place(r#"{"verdict":"usable","checks":[]}"#), Place::Native);
        assert_eq!(place(r#"{"verdict":"emulated"}"#), Place::Nested);
        assert_eq!(place(r#"{"verdict":"unusable"}"#), Place::Nested);
        assert_eq!(place("no JSON"), Place::Nested);
        assert_eq!(place("{}"), Place::Nested);
    }
}
