//! Landlock: the kernel's restriction of a process to some files and sockets (Linux, Documentation/userspace-api/landlock.rst),
//! for monitors that run without a jail.
//!
//! All that a guest needs is opened before it starts; what is open stays usable. So the rules name only what is used by name
//! later: files of disks, which `PATCH /drives` opens again, and the folders of sockets, which are removed at the end or which
//! guests connect to. Everything else that Landlock knows is handled and not allowed.
//!
//! The rule for a disk is about the file that is open for it: its path may lead to another by then.
//!
//! A thread restricts itself and what it starts later, so each does when it starts, and the main thread when it has started all
//! others (`confinement.rs`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Erratum, PathBeneath, Ruleset as Builder, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use kindling_api::{SerialConfig, VmConfig};
use kindling_virtio_blk::Disk;

use crate::Launch;
use crate::error::Error;

/// The newest version of the kernel's interface whose rights are handled. Older kernels restrict what they know.
const NEWEST: ABI = ABI::V10;

/// The first version that restricts what has to be: the one of Linux 6.12.
pub const COMPLETE_ABI: i64 = 6;

/// What a version began to restrict that no earlier one does.
const STEPS: [(i64, &str); 6] = [
    (3, "truncating files"),
    (4, "TCP"),
    (5, "ioctls of devices"),
    (COMPLETE_ABI, "signals and abstract sockets"),
    (9, "connecting to Unix sockets"),
    (10, "UDP"),
];

/// Whether a process is restricted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is not.
    #[default]
    Off,
    /// As far as the kernel can.
    On,
    /// It does not start unless the kernel can.
    Require,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Mode::Off),
            "on" => Ok(Mode::On),
            "require" => Ok(Mode::Require),
            _ => Err("must be on, require or off".to_owned()),
        }
    }
}

/// What threads are to be restricted to, before it is known what a guest needs.
#[derive(Debug)]
pub struct Landlock {
    on: bool,
    /// What the kernel cannot do of what was asked for.
    lacks: Option<String>,
    api_socket: Option<PathBuf>,
    /// Whether the sockets of the API and of the guest are not removed at the end.
    leave_sockets: bool,
}

/// What the calling thread is restricted to by [`restrict`](Ruleset::restrict). A copy is cheap.
#[derive(Clone, Debug)]
pub struct Ruleset(Option<Arc<RulesetCreated>>);

impl Landlock {
    /// What `launch` asks for, as far as this kernel can.
    ///
    /// # Errors
    ///
    /// When it is required, and this kernel has no Landlock, a version that is not [complete](COMPLETE_ABI), or one that cannot
    /// restrict signals.
    pub fn new(launch: &Launch) -> Result<Self, Error> {
        Self::on_kernel(launch, || Ok((kernel_abi()?, restricts_signals())))
    }

    /// The same, on a kernel with this version of the interface that restricts signals, or does not.
    fn on_kernel(launch: &Launch, kernel: impl FnOnce() -> io::Result<(i64, bool)>) -> Result<Self, Error> {
        let (on, lacks) = match launch.landlock {
            Mode::Off => (false, None),
            Mode::On | Mode::Require => match kernel() {
                Ok((COMPLETE_ABI.., true)) => (true, None),
                Ok((version, _)) => {
                    let lacks =
                        if version < COMPLETE_ABI { not_restricted(version) } else { "signals".to_owned() };
                    (
                        true,
                        Some(format!(
                            "the kernel's Landlock, ABI version {version}, does not restrict {lacks}"
                        )),
                    )
                }
                Err(error) => (false, Some(format!("the kernel has no Landlock: {error}"))),
            },
        };
        match lacks {
            Some(lacks) if launch.landlock == Mode::Require => Err(Error::configuration("--landlock", lacks)),
            lacks => Ok(Landlock {
                on,
                lacks,
                api_socket: launch.api.as_ref().map(|(path, _)| path.clone()),
                leave_sockets: launch.leave_sockets,
            }),
        }
    }

    /// Whether threads are restricted at all.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Rules for a thread that uses nothing by name.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn deny_all(&self) -> Result<Ruleset, RulesetError> {
        self.ruleset(&[], &[])
    }

    /// Rules for the threads of the guest that `config` describes and for which `disks` are open. What cannot be done of it
    /// goes to the log.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn allow(&self, config: &VmConfig, disks: &[Arc<dyn Disk>]) -> Result<Ruleset, RulesetError> {
        if let Some(lacks) = &self.lacks {
            log::warn!("{lacks}");
        }
        self.ruleset(disks, &self.folders(config))
    }

    fn ruleset(&self, disks: &[Arc<dyn Disk>], folders: &[Folder<'_>]) -> Result<Ruleset, RulesetError> {
        if !self.on {
            return Ok(Ruleset(None));
        }
        let mut scope: BitFlags<Scope> = Scope::AbstractUnixSocket.into();
        if restricts_signals() {
            scope |= Scope::Signal;
        }
        let mut ruleset = Builder::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(scope)?
            .create()?;
        for disk in disks {
            let read = AccessFs::ReadFile | AccessFs::IoctlDev;
            let access = if disk.info().read_only { read } else { read | AccessFs::WriteFile };
            ruleset = ruleset.add_rule(PathBeneath::new(disk, access))?;
        }
        for folder in folders {
            // What is not there is not allowed.
            if let Some(file) = folder.open() {
                ruleset = ruleset.add_rule(PathBeneath::new(file, folder.access))?;
            }
        }
        Ok(Ruleset(Some(Arc::new(ruleset))))
    }

    /// The folders of sockets.
    fn folders<'c>(&'c self, config: &'c VmConfig) -> Vec<Folder<'c>> {
        let removed = |path: &'c Path| Folder::of(path, AccessFs::RemoveFile);
        let vsock = config.vsock.as_ref().map(|vsock| vsock.uds_path.as_path());
        let guests_connect = vsock.map(|path| Folder::of(path, AccessFs::ResolveUnix));
        let sockets = [self.api_socket.as_deref(), vsock].into_iter().flatten();
        let sockets = sockets.filter(|_| !self.leave_sockets).map(removed);
        let serial = config.serial.as_ref().and_then(SerialConfig::socket).map(removed);
        guests_connect.into_iter().chain(sockets).chain(serial).collect()
    }
}

impl Ruleset {
    /// Restricts the calling thread, and all that it starts from now on, for good. It gets no new privileges from
    /// programs that it executes, either.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn restrict(&self) -> io::Result<()> {
        if let Some(ruleset) = &self.0 {
            ruleset.try_clone()?.restrict_self().map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// What may be done with all files in a folder and below.
struct Folder<'p> {
    path: &'p Path,
    access: AccessFs,
}

impl<'p> Folder<'p> {
    /// The folder in which `path` is.
    fn of(path: &'p Path, access: AccessFs) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Folder { path: folder.unwrap_or(Path::new(".")), access }
    }

    /// The folder, if it is there and one.
    fn open(&self) -> Option<File> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        OpenOptions::new().read(true).custom_flags(flags).open(self.path).ok()
    }
}

/// The version of Landlock that the kernel offers, from 1 on.
///
/// # Errors
///
/// When it has none, or it is switched off.
pub fn kernel_abi() -> io::Result<i64> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let attributes = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag, landlock_create_ruleset takes no attributes, creates nothing and gives a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes, 0usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(version) }
}

/// Whether signals can be restricted. Each thread is restricted on its own: kernels without this repair do not let one of
/// them signal another, as it has to for a vCPU to leave its guest.
fn restricts_signals() -> bool {
    Erratum::current().contains(Erratum::ScopedSignalHandling)
}

/// What this version does not restrict and a later one does; empty for the newest that is known.
pub fn not_restricted(version: i64) -> String {
    let later = STEPS.iter().filter(|(since, _)| version < *since);
    later.map(|(_, what)| *what).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
