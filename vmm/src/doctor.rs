//! `vmm doctor`: whether this host can run guests, what is missing and how to get it.
//!
//! Each check gives one line; one that is not in order also says what to do. Only KVM decides the [`Verdict`]: the rest
//! of the host (`host`) decides what guests can have, not whether there can be any.

mod host;
mod kvm;
pub mod speed;

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::outcome::EXIT_HOST_ERROR;

/// How the result is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Lines for people.
    Text,
    /// One JSON object: `verdict`, `summary`, and `checks`, each with `check`, `status`, `detail` and `advice` (null if
    /// there is none).
    Json,
}

/// Whether this host can run guests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// KVM works and runs guest kernels natively.
    Usable,
    /// KVM works, but interprets guest kernels: small bare-metal guests run, a stock Linux does not boot.
    Emulated,
    /// KVM is absent, closed to this user, or lacks something that is needed.
    Unusable,
}

impl Verdict {
    /// 0 for [`Usable`](Verdict::Usable), 1 for [`Unusable`](Verdict::Unusable), 2 for [`Emulated`](Verdict::Emulated).
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Usable => 0,
            Verdict::Unusable => 1,
            Verdict::Emulated => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Verdict::Usable => "usable",
            Verdict::Emulated => "emulated",
            Verdict::Unusable => "unusable",
        }
    }

    fn summary(self) -> &'static str {
        match self {
            Verdict::Usable => "this host can run guests",
            Verdict::Emulated => {
                "KVM interprets guest kernels: only small bare-metal guests run on this host"
            }
            Verdict::Unusable => "this host cannot run guests until the failed checks are mended",
        }
    }
}

/// The subcommand: [`run`] to standard output, and [`Verdict::exit_code`].
pub fn main(json: bool) -> u8 {
    let format = if json { Format::Json } else { Format::Text };
    match run(&mut io::stdout().lock(), format) {
        Ok(verdict) => verdict.exit_code(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "vmm: cannot write the result: {error}");
            EXIT_HOST_ERROR
        }
    }
}

/// Checks this host and writes the result. Changes nothing on the host, and takes about a tenth of a second.
///
/// # Errors
///
/// If `out` cannot be written. A check that fails is part of the result.
pub fn run(out: &mut dyn Write, format: Format) -> io::Result<Verdict> {
    let mut checks = Vec::new();
    let verdict = kvm::check(&mut checks);
    host::check(&mut checks);
    match format {
        Format::Text => write_text(out, &checks, verdict)?,
        Format::Json => writeln!(out, "{:#}", to_json(&checks, verdict))?,
    }
    out.flush()?;
    Ok(verdict)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Status {
    /// As it should be.
    Ok,
    /// Something that few guests need is not there.
    Info,
    /// Guests run, but something they commonly need is missing or slow.
    Warn,
    /// Guests do not run.
    Fail,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Info => "info",
            Status::Warn => "warn",
            Status::Fail => "fail",
        }
    }
}

/// The outcome of one check.
#[derive(Debug, Eq, PartialEq)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    detail: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Check { name, status: Status::Ok, detail: detail.into(), advice: None }
    }

    fn with_advice(
        name: &'static str,
        status: Status,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Check { name, status, detail: detail.into(), advice: Some(advice.into()) }
    }
}

fn write_text(out: &mut dyn Write, checks: &[Check], verdict: Verdict) -> io::Result<()> {
    for check in checks {
        writeln!(out, "{:<4}  {:<13}  {}", check.status.name(), check.name, check.detail)?;
        if let Some(advice) = &check.advice {
            writeln!(out, "{:21}-> {advice}", "")?;
        }
    }
    writeln!(out, "{}: {}", verdict.name(), verdict.summary())
}

fn to_json(checks: &[Check], verdict: Verdict) -> Value {
    let checks: Vec<Value> = checks
        .iter()
        .map(|check| {
            json!({
                "check": check.name,
                "status": check.status.name(),
                "detail": check.detail,
                "advice": check.advice,
            })
        })
        .collect();
    json!({ "verdict": verdict.name(), "summary": verdict.summary(), "checks": checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> Vec<Check> {
        vec![
            Check::ok("cpu", "x86_64"),
            Check::with_advice("tun", Status::Warn, "/dev/net/tun: not there", "sudo modprobe tun"),
        ]
    }

    #[test]
    fn a_warning_is_followed_by_what_to_do_and_the_verdict_comes_last() {
        let mut out = Vec::new();
        write_text(&mut out, &checks(), Verdict::Usable).unwrap();
        let expected = "ok    cpu            x86_64\n\
                        warn  tun            /dev/net/tun: not there\n\
                        \x20                    -> sudo modprobe tun\n\
                        usable: this host can run guests\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn the_machine_readable_form_holds_the_same() {
        let value = to_json(&checks(), Verdict::Emulated);
        assert_eq!(value["verdict"], "emulated");
        assert_eq!(
            value["checks"],
            json!([
                {"check": "cpu", "status": "ok", "detail": "x86_64", "advice": null},
                {"check": "tun", "status": "warn", "detail": "/dev/net/tun: not there", "advice": "sudo modprobe tun"},
            ])
        );
    }

    #[test]
    fn a_host_that_cannot_be_written_about_is_an_error_not_a_verdict() {
        assert!(write_text(&mut [].as_mut_slice(), &checks(), Verdict::Usable).is_err());
    }
}
