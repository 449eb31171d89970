//! Stock Linux guests in the real `vmm`, on a KVM that runs guest kernels: this machine's, or the nested host's.
//!
//! `cargo verify` runs this binary through `host-runner`, which finds out which of the two it is.
#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod blk;
mod boot;
mod cgroup;
mod confinement;
mod console;
mod devices;
mod ending;
mod host;
mod live;
mod machine;
mod memory;
mod metadata;
mod net;
mod pause;
mod power_button;
mod vsock;

use std::time::Duration;

use kindling_integration_tests::harness::{Builder, Guest, files};

/// From process start to a guest that takes commands. A nested guest on a loaded machine takes a tenth of it.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// From the request to end until the process has ended.
const END_LIMIT: Duration = Duration::from_secs(30);

/// The modules of all devices.
const MODULES: [&str; 6] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "virtio_balloon", "virtio_rng"];

/// A guest that takes commands.
fn ready(builder: Builder) -> Guest {
    let mut guest = builder.start().unwrap();
    guest.wait_ready(BOOT_LIMIT).unwrap();
    guest
}

/// What a command in the guest prints, without the last line feed; it must succeed.
fn output(guest: &mut Guest, command: &str) -> String {
    let output = guest.run(command).unwrap();
    assert_eq!(output.code, 0, "{command}: {output:?}");
    output.stdout.trim_end().to_owned()
}

/// Has the guest power off, and waits for the monitor's end.
fn power_off(guest: &mut Guest) {
    guest.begin("poweroff", END_LIMIT).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0), "{}", guest.console());
}

/// A guest whose programs are those of the root image, on its first disk, which it cannot write to.
fn with_root() -> Builder {
    let root = files::root_image().unwrap();
    Guest::builder()
        .arg("--disk")
        .arg(format!("{},ro", root.display()))
        .cmdline_extra("kindling.root=/dev/vda")
}

/// How long a test shall go on, in seconds: what the variable says, or as short as it can be.
fn seconds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(default)
}
