//! How each monitor is started with the same guest and device.

use std::path::{Path, PathBuf};

use kindling_integration_tests::error::{Context, Result};
use kindling_integration_tests::guest_image::GuestImage;
use kindling_integration_tests::harness::{Builder, Guest, Tap, default_cmdline};
use kindling_integration_tests::microvm;

use crate::work::Group;

/// Whom the guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Vmm,
    /// Ours without filters of system calls.
    Unfiltered,
    /// QEMU with its machine `microvm`, all of it in user space.
    Qemu,
    /// Firecracker.
    Firecracker,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vmm, Self::Unfiltered, Self::Qemu, Self::Firecracker];

    /// As in the table and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Unfiltered => "unfiltered",
            Self::Qemu => "QEMU",
            Self::Firecracker => "firecracker",
        }
    }

    /// Whether it has the device of a group.
    pub fn has(self, group: Group) -> bool {
        // There is only vhost-vsock, whose other end is no Unix socket.
        (self, group) != (Self::Qemu, Group::Sockets)
    }
}

/// A monitor.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// Which one.
    pub kind: Kind,
    /// Its program.
    pub program: PathBuf,
}

/// What guests are made of.
pub struct Parts {
    /// Kernel and initial RAM file system.
    pub image: GuestImage,
    /// The root file system.
    pub root: PathBuf,
}

/// The device to measure.
pub enum Attached<'a> {
    /// A disk: the guest's second.
    Disk {
        /// The file.
        path: &'a Path,
        /// Many requests at a time (`async`, QEMU's `io_uring`), or one after the other (`sync`, QEMU's `threads`).
        is_async: bool,
    },
    /// A network interface.
    Tap(&'a Tap),
    /// A socket, by its path.
    Socket(&'a Path),
}

const MEMORY_MIB: u32 = 256;

impl Monitor {
    /// A guest with the device. `folder` is for what a monitor needs to be told in a file.
    pub fn guest(&self, parts: &Parts, attached: &Attached<'_>, folder: &Path) -> Result<Builder> {
        let builder = Guest::builder().program(&self.program);
        let builder = match self.kind {
            Kind::Vmm => vmm(builder, parts, attached),
            Kind::Unfiltered => vmm(builder, parts, attached).arg("--no-seccomp"),
            Kind::Qemu => builder.arguments(qemu(parts, attached)),
            Kind::Firecracker => {
                let [config, cpu] = ["firecracker.json", "cpu.json"].map(|name| folder.join(name));
                let write = |path: &Path, value: &serde_json::Value| {
                    std::fs::write(path, value.to_string())
                        .doing(|| format!("cannot write {}", path.display()))
                };
                write(&config, &firecracker(parts, attached, &cpu))?;
                // KVM_CAP_XCRS: the host's processor has no XSAVE.
                write(&cpu, &serde_json::json!({ "kvm_capabilities": ["!56"] }))?;
                let options = ["--no-api", "--no-seccomp", "--config-file"].map(PathBuf::from);
                builder.arguments(options.into_iter().chain([config]))
            }
        };
        Ok(match attached {
            Attached::Tap(tap) => builder.tap(tap),
            _ => builder,
        })
    }
}

/// More for the end of the kernel's command line.
const CMDLINE: &str =
    "kindling.root=/dev/vda kindling.modules=virtio_mmio,virtio_net,vmw_vsock_virtio_transport";

fn vmm(builder: Builder, parts: &Parts, attached: &Attached<'_>) -> Builder {
    let [option, value] = match attached {
        Attached::Disk { path, is_async } => {
            let engine = if *is_async { "async" } else { "sync" };
            ["--disk".to_owned(), format!("{},engine={engine},cache=writeback", path.display())]
        }
        Attached::Tap(_) => ["--net".to_owned(), format!("tap={}", Tap::NAME)],
        Attached::Socket(path) => ["--vsock".to_owned(), format!("cid=3,path={}", path.display())],
    };
    let root = format!("{},ro", parts.root.display());
    builder
        .image(parts.image.clone())
        .memory(format!("{MEMORY_MIB}M"))
        .cmdline_extra(CMDLINE)
        .arg("--disk")
        .arg(root)
        .arg(option)
        .arg(value)
}

fn qemu(parts: &Parts, attached: &Attached<'_>) -> Vec<String> {
    let cmdline = format!("{} {CMDLINE}", default_cmdline());
    let mut argv = microvm::arguments(&format!("{MEMORY_MIB}M"), &parts.image.vmlinux(), &cmdline);
    let disk = |name: &str, path: &Path, options: &str| {
        let path = path.display();
        [
            "-blockdev".to_owned(),
            format!("driver=raw,node-name={name},file.driver=file,file.filename={path}{options}"),
        ]
    };
    argv.extend(["-initrd".to_owned(), parts.image.initramfs().display().to_string()]);
    let root = disk("root", &parts.root, ",read-only=on");
    let (before, device) = match attached {
        Attached::Disk { path, is_async } => {
            let aio = if *is_async { "io_uring" } else { "threads" };
            let disk = disk("disk", path, &format!(",file.aio={aio}"));
            let thread = ["-object", "iothread,id=io"].map(str::to_owned);
            ([thread, disk].concat(), "virtio-blk-device,drive=disk,iothread=io,queue-size=256")
        }
        Attached::Tap(_) => {
            let tap = format!("tap,id=net,ifname={},script=no,downscript=no,vhost=off", Tap::NAME);
            (vec!["-netdev".to_owned(), tap], "virtio-net-device,netdev=net")
        }
        Attached::Socket(_) => (Vec::new(), ""),
    };
    argv.extend(root);
    argv.extend(["-device", "virtio-blk-device,drive=root"].map(str::to_owned));
    argv.extend(before);
    if !device.is_empty() {
        argv.extend(["-device", device].map(str::to_owned));
    }
    argv
}

fn firecracker(parts: &Parts, attached: &Attached<'_>, cpu: &Path) -> serde_json::Value {
    let drive = |name: &str, path: &Path, is_read_only: bool, engine: &str| {
        serde_json::json!({
            "drive_id": name, "path_on_host": path, "is_root_device": false,
            "is_read_only": is_read_only, "cache_type": "Writeback", "io_engine": engine,
        })
    };
    let mut drives = vec![drive("root", &parts.root, true, "Sync")];
    if let Attached::Disk { path, is_async } = attached {
        drives.push(drive("disk", path, false, if *is_async { "Async" } else { "Sync" }));
    }
    let mut config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": parts.image.vmlinux(),
            "initrd_path": parts.image.initramfs(),
            "boot_args": format!("{} {CMDLINE}", default_cmdline()),
        },
        "cpu-config": cpu,
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        "drives": drives,
    });
    match attached {
        Attached::Disk { .. } => {}
        Attached::Tap(_) => {
            config["network-interfaces"] =
                serde_json::json!([{ "iface_id": "net", "host_dev_name": Tap::NAME }]);
        }
        Attached::Socket(path) => {
            config["vsock"] = serde_json::json!({ "guest_cid": 3, "uds_path": path });
        }
    }
    config
}
