//! Clients of Firecracker's API, unchanged, each with a stock Linux guest in the real `vmm`: a client starts the
//! monitor, as far as it can do that, describes a guest with disk and network, starts it, changes it while it runs, and
//! stops it.
//!
//! `cargo verify` runs this binary through `host-runner`, as it does the tests of stock guests. The guests' agent is at the
//! serial port, which is the monitor's standard input and output, as Firecracker's is.
#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod curl;
mod fctools;
mod firepilot;
mod shell;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kindling_integration_tests::guest_image::GuestImage;
use kindling_integration_tests::harness::{Tap, default_cmdline, files, image, on_host, scaled, vmm_path};
use shell::Shell;
use tempfile::TempDir;
use tokio::net::UnixStream;

/// From process start to a guest that takes commands.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// From the request to end until the process has ended.
const END_LIMIT: Duration = Duration::from_secs(30);

/// For a program at the host.
const SOON: Duration = Duration::from_secs(60);

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";

/// What guests and their host write to the data disk, and where.
const SECTOR: u64 = 512;
const FROM_HOST: &str = "from the host";
const FROM_GUEST: &str = "from the guest";

/// What a client gives its guest. All is gone when this is dropped.
struct Setup {
    folder: TempDir,
    image: GuestImage,
    root: PathBuf,
    tap: Tap,
}

impl Setup {
    /// With the monitor as `firecracker` in the folder, and a `data.img` for a guest to read and write.
    fn new() -> Self {
        let folder = files::scratch().unwrap();
        symlink(vmm_path().unwrap(), folder.path().join("firecracker")).unwrap();
        let setup = Self {
            folder,
            image: image().unwrap(),
            root: files::root_image().unwrap(),
            tap: Tap::new(&format!("{HOST}/24"), &[]).unwrap(),
        };
        setup.disk("data.img", FROM_HOST);
        setup
    }

    /// A file in the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A disk whose first sector says `text`.
    fn disk(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let file = File::create_new(&path).unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(format!("{text}\n").as_bytes(), 0).unwrap();
        path
    }
}

/// The kernel command line of guests with the root image as first disk, and drivers of these kinds besides.
fn boot_args(modules: &[&str]) -> String {
    let modules = [&["virtio_mmio", "virtio_net"], modules].concat().join(",");
    format!("{} kindling.root=/dev/vda kindling.modules={modules}", default_cmdline())
}

/// What the guest reads at the beginning of the data disk.
fn first_line(shell: &mut Shell) -> String {
    shell.output("dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -n 1")
}

/// Has the guest read and write the data disk, which is `disk` at the host, and has packets go both ways.
fn use_disk_and_network(shell: &mut Shell, disk: &Path, tap: &Tap) {
    assert_eq!(first_line(shell), FROM_HOST);
    shell.output(&format!(
        "echo {FROM_GUEST} | dd of=/dev/vdb bs=512 seek=1 conv=sync oflag=direct 2>/dev/null && sync"
    ));
    let mut written = [0; FROM_GUEST.len()];
    File::open(disk).unwrap().read_exact_at(&mut written, SECTOR).unwrap();
    assert_eq!(str::from_utf8(&written), Ok(FROM_GUEST));

    shell.output(&format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"));
    shell.output(&format!("ping -c 1 -W 10 {HOST}"));
    tap.run("ping", &["-c", "1", "-W", "10", GUEST], SOON).unwrap();
}

/// A monitor that a client has started, and that a failed test shall not leave behind.
struct Monitor(i32);

impl Monitor {
    /// The one that serves `socket`, or will soon.
    async fn behind(socket: &Path) -> Self {
        let deadline = Instant::now() + scaled(SOON);
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return Self(stream.peer_cred().unwrap().pid().unwrap()),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&self) {
        // It may have ended already.
        let _ = on_host("sh", &["-c", &format!("kill -KILL {}", self.0)], SOON);
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.kill();
        }
    }
}

/// What is in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a test's asynchronous part in the network namespace of its tap.
fn in_namespace(tap: &Tap, test: impl AsyncFnOnce() + Send) {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    tap.inside(run).unwrap();
}
