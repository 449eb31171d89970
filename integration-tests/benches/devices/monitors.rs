//! How each monitor is started with the same device.

use std::fmt::{Display, Formatter};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::harness::{Tap, Vmm};
use kindling_integration_tests::microvm;
use kindling_integration_tests::packages::QEMU;
use kindling_integration_tests::workspace::target_dir;

use crate::peers;

const LIMIT: Duration = Duration::from_secs(20);

/// Small enough to stay in the page cache and to be written back quickly.
const DISK_MIB: usize = 64;

/// Whom the guest runs on.
#[derive(Clone, Copy, Debug)]
pub enum Monitor {
    /// Ours.
    Vmm,
    /// QEMU, all of it in user space.
    Qemu,
    /// QEMU with the network in the host's kernel.
    QemuVhost,
}

/// How a disk's file is read and written.
#[derive(Clone, Copy)]
pub enum Engine {
    /// `sync`; QEMU's `threads`.
    Sync,
    /// `async`; QEMU's `io_uring`.
    Async,
}

impl Display for Engine {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Sync => "sync",
            Self::Async => "async",
        })
    }
}

/// The device to measure, and what happens at the host's end of it.
#[derive(Clone, Copy)]
pub enum Attached {
    /// A disk.
    Disk { engine: Engine, queues: u8 },
    /// A network interface.
    Tap { large: bool, guest_sends: bool },
    /// A socket.
    Vsock { guest_sends: bool },
}

/// What all guests have in common.
pub struct Place {
    vmm: PathBuf,
    image: PathBuf,
    /// For sockets, whose paths may not be long.
    sockets: tempfile::TempDir,
    /// In the target folder: the one for temporary files may be no disk.
    disk: tempfile::NamedTempFile,
    tap: Option<Tap>,
}

impl Place {
    /// Makes the disk, and the network if it is wanted.
    pub fn new(vmm: &Path, image: &Path, network: bool) -> Result<Self> {
        let sockets = tempfile::tempdir().doing(|| "cannot create a folder".to_owned())?;
        let file = tempfile::NamedTempFile::new_in(target_dir()).and_then(|mut file| {
            // Not zeros, of which one could make holes; written back before the first guest starts.
            // In pieces, since the page cache keeps what is written at once in large folios, all of which ext4 walks
            // through for each small write.
            for _ in 0..DISK_MIB << 8 {
                file.write_all(&[0x5a; 4096])?;
            }
            file.as_file().sync_all()?;
            Ok(file)
        });
        let disk = file.doing(|| "cannot create a disk".to_owned())?;
        let tap = network.then(|| {
            let tap = Tap::new("10.0.0.1/24", &[])?;
            // Nothing is said on this network but what is measured.
            tap.run("ip", &["link", "set", Tap::NAME, "addrgenmode", "none"], LIMIT)?;
            Ok::<_, Error>(tap)
        });
        Ok(Self { vmm: vmm.to_owned(), image: image.to_owned(), sockets, disk, tap: tap.transpose()? })
    }

    /// Runs a guest to its end; returns what it printed.
    pub fn run(&self, monitor: Monitor, attached: &Attached, words: &str) -> Result<String> {
        let run = || {
            let guest = match monitor {
                Monitor::Vmm => self.vmm(attached, words),
                Monitor::Qemu => self.qemu(attached, "off", words),
                Monitor::QemuVhost => self.qemu(attached, "on", words),
            };
            let ended = guest.run(LIMIT)?;
            Ok(ended.stdout + &ended.stderr)
        };
        match (attached, &self.tap) {
            (Attached::Tap { guest_sends: true, .. }, Some(tap)) => tap.inside(run)?,
            (Attached::Tap { large, .. }, Some(tap)) => tap.inside(|| peers::with_frames(*large, run))?,
            (Attached::Vsock { guest_sends }, _) => peers::with_stream(&self.socket(), *guest_sends, run),
            _ => run(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.sockets.path().join("vsock")
    }

    fn vmm(&self, attached: &Attached, words: &str) -> Vmm {
        // QEMU asks for transparent huge pages, too.
        let mut guest =
            Vmm::with_program(&self.vmm, ["run", "--memory", "128M", "--huge-pages", "transparent"]);
        let device = match attached {
            Attached::Disk { engine, queues } => {
                let disk = self.disk.path().display();
                ["--disk".to_owned(), format!("{disk},engine={engine},queues={queues},cache=writeback")]
            }
            Attached::Tap { .. } => ["--net".to_owned(), format!("tap={}", Tap::NAME)],
            Attached::Vsock { .. } => {
                ["--vsock".to_owned(), format!("cid=3,path={}", self.socket().display())]
            }
        };
        guest.command().args(device).arg("--kernel").arg(&self.image).args(["--cmdline", words]);
        guest
    }

    fn qemu(&self, attached: &Attached, vhost: &str, words: &str) -> Vmm {
        let mut guest = Vmm::with_program(QEMU.program, microvm::arguments("128M", &self.image, words));
        let command = guest.command();
        match attached {
            Attached::Disk { engine, queues } => {
                let aio = match engine {
                    Engine::Sync => "threads",
                    Engine::Async => "io_uring",
                };
                let disk = self.disk.path().display();
                let disk =
                    format!("driver=raw,node-name=disk,file.driver=file,file.aio={aio},file.filename={disk}");
                let device =
                    format!("virtio-blk-device,drive=disk,iothread=io,queue-size=256,num-queues={queues}");
                command.args(["-object", "iothread,id=io", "-blockdev", &disk, "-device", &device]);
            }
            Attached::Tap { .. } => {
                let name = Tap::NAME;
                let tap = format!("tap,id=net,ifname={name},script=no,downscript=no,vhost={vhost}");
                command.args(["-netdev", &tap, "-device", "virtio-net-device,netdev=net"]);
            }
            // There is only vhost-vsock, whose other end is no Unix socket.
            Attached::Vsock { .. } => {}
        }
        guest
    }
}
