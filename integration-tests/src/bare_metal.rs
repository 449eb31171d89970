//! The images of the bare-metal guest (package `kindling-bare-metal-guest`), for machines whose KVM cannot run Linux,
//! and the floor program, for the benchmarks.

use std::path::PathBuf;

use crate::error::Result;
use crate::progress::Progress;
use crate::run;
use crate::workspace::{StaticBinary, TARGET, cargo, target_dir};

/// Names a folder with the images, so that they are not built.
pub const IMAGES_VARIABLE: &str = "KINDLING_BARE_METAL";

/// The reference of the start benchmarks: the KVM calls of `vmm` and nothing else.
pub const FLOOR: StaticBinary =
    StaticBinary { package: "kindling-integration-tests", name: "floor", profile: "release" };

/// The guest's images.
#[derive(Clone, Debug)]
pub struct Images {
    /// Does what `scenario=NAME` on the kernel command line says, see the guest's module `scenario`. Has an entry for
    /// the Linux 64-bit boot protocol and one for PVH.
    pub guest: PathBuf,
    /// Resets the machine through the keyboard controller with its first two instructions.
    pub exit: PathBuf,
    /// Writes a `!` to the serial port with its first three instructions and halts.
    pub mark: PathBuf,
    /// Jumps to where there is no memory, below 1 GiB, with its first two instructions.
    pub lost: PathBuf,
}

impl Images {
    /// The images in the folder that `$KINDLING_BARE_METAL` names, or else built if they are not up to date.
    pub fn build(progress: &Progress) -> Result<Self> {
        let folder = match std::env::var_os(IMAGES_VARIABLE).filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => cargo_build(progress)?,
        };
        Ok(Self {
            guest: folder.join("bare-metal-guest"),
            exit: folder.join("exit-guest"),
            mark: folder.join("mark-guest"),
            lost: folder.join("lost-guest"),
        })
    }
}

/// The images are linked at a fixed address without a C library; the release profile aborts on panic, as they need.
fn cargo_build(progress: &Progress) -> Result<PathBuf> {
    let folder = target_dir().join("bare-metal");
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", "kindling-bare-metal-guest", "--bins"]);
    command.env("RUSTFLAGS", "-C relocation-model=static -C target-feature=+crt-static");
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.args(["--target", TARGET, "--target-dir"]).arg(&folder);
    progress.during("building the bare-metal guest", || run::quiet(&mut command))?;
    Ok(folder.join(TARGET).join("release"))
}
