//! Where things are in the checkout, and the builds the tooling starts itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Result;
use crate::progress::Progress;
use crate::run;

/// The target triple of everything that runs inside a guest or a nested host.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Links the C library statically; needs an explicit `--target`, or procedural macros stop working.
pub const STATIC_RUSTFLAGS: &str = "-C target-feature=+crt-static";

/// The folder of the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// The folder for everything that is built: `$CARGO_TARGET_DIR`, or `target` in the workspace.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// The target folder of static builds; apart, because their flags differ.
pub fn static_target_dir() -> PathBuf {
    target_dir().join("static")
}

/// The `cargo` that started us, or the one in `PATH`, run in the workspace's root.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Turns a cargo command into one that builds static binaries.
pub fn link_statically(command: &mut Command) {
    command.env("RUSTFLAGS", STATIC_RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.args(["--target", TARGET, "--target-dir"]).arg(static_target_dir());
}

/// A static binary of the workspace and where cargo puts it.
#[derive(Clone, Copy, Debug)]
pub struct StaticBinary {
    /// The package it is part of.
    pub package: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The cargo profile it is built with.
    pub profile: &'static str,
}

/// The monitor, as it is released.
pub const VMM: StaticBinary = StaticBinary { package: "kindling-vmm", name: "vmm", profile: "release" };
/// The init process of guests and of the nested host.
pub const GUEST_INIT: StaticBinary =
    StaticBinary { package: "kindling-integration-tests", name: "guest-init", profile: "tools" };
/// The runner of test binaries.
pub const HOST_RUNNER: StaticBinary =
    StaticBinary { package: "kindling-integration-tests", name: "host-runner", profile: "tools" };
/// The launcher that confines the monitor, as it is released.
pub const JAILER: StaticBinary =
    StaticBinary { package: "kindling-jailer", name: "jailer", profile: "release" };
/// What stands in for the monitor in tests that have it in a jail.
pub const JAILED_VMM: StaticBinary =
    StaticBinary { package: "kindling-integration-tests", name: "jailed-vmm", profile: "tools" };
/// What stands in for the monitor to note which rules of its filters are used.
pub const SECCOMP_USAGE: StaticBinary =
    StaticBinary { package: "kindling-integration-tests", name: "seccomp-usage", profile: "tools" };
/// What tests of the jailer run in the place of the monitor.
pub const JAIL_PROBE: StaticBinary =
    StaticBinary { package: "kindling-integration-tests", name: "jail-probe", profile: "tools" };

impl StaticBinary {
    /// Builds it if it is not up to date and returns its path.
    pub fn build(&self, progress: &Progress) -> Result<PathBuf> {
        let mut command = cargo();
        command.args(["build", "--quiet", "--profile", self.profile]);
        command.args(["--package", self.package, "--bin", self.name]);
        link_statically(&mut command);
        progress.during(&format!("building {} (static)", self.name), || run::quiet(&mut command))?;
        Ok(static_target_dir().join(TARGET).join(self.profile).join(self.name))
    }
}
