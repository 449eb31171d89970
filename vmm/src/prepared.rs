//! What was opened for a guest before it starts: a request that names a file, tap or socket which cannot be opened is
//! told so at once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use kindling_api::{BootSource, Section, SerialConfig, VmConfig};
use kindling_seccomp_profiles::Filters;
use kindling_serial::Backend;

use crate::backends::OpenDevices;
use crate::clock::StartTimes;
use crate::error::Error;
use crate::landlock::Landlock;
use crate::metadata::Metadata;
use crate::{Launch, console};

/// What is open for a guest, and what it is given besides its configuration. The start of the guest takes what is open, and
/// opens what is missing.
pub struct Prepared {
    /// Kernel and initial RAM disk.
    pub images: Option<Images>,
    /// What the serial port leads to.
    pub serial: Option<Backend>,
    /// Devices.
    pub devices: OpenDevices,
    /// The metadata service.
    pub metadata: Metadata,
    /// Whether keys at the console's terminal can be for the monitor.
    pub has_escapes: bool,
    /// Whether the guest can say when it has booted, and when it was started.
    pub boot_timer: Option<StartTimes>,
    /// Which system calls the monitor's threads may make while it runs.
    pub filters: Filters,
    /// Whether they are restricted to the files and sockets that the configuration names.
    pub landlock: Landlock,
}

/// Kernel and initial RAM disk.
pub struct Images {
    /// The kernel image.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
}

impl Prepared {
    /// What `launch` gives a guest.
    pub fn new(launch: &Launch, landlock: Landlock) -> Result<Self, Error> {
        let mut metadata = Metadata::new(launch.metadata_limit);
        let put = launch.metadata.clone().map_or(Ok(()), |document| metadata.put(document));
        put.map_err(|cause| Error::configuration("--metadata", cause))?;
        let configured =
            launch.config.mmds_config.as_ref().map_or(Ok(()), |config| metadata.configure(config));
        configured.map_err(Error::host("set up the metadata service"))?;
        Ok(Prepared {
            metadata,
            images: None,
            serial: None,
            devices: OpenDevices::default(),
            has_escapes: launch.has_escapes,
            boot_timer: launch.boot_timer.then_some(launch.started),
            filters: launch.filters.clone(),
            landlock,
        })
    }

    /// Opens what `config` has for the part of it that `section` names, in the place of what is open for it since `before`.
    /// Should this fail, that stays open; only what cannot be open twice, a tap or a socket, is closed meanwhile.
    pub fn open(&mut self, before: &VmConfig, config: &VmConfig, section: &Section) -> Result<(), Error> {
        match section {
            Section::BootSource(_) => {
                self.images = config.boot_source.as_ref().map(Images::open).transpose()?;
            }
            Section::Serial(_) => {
                let open = |config: &VmConfig| config.serial.as_ref().map(console::backend).transpose();
                let [old, new] =
                    [before, config].map(|config| config.serial.as_ref().and_then(SerialConfig::socket));
                let is_exclusive = new.is_some() && new == old;
                replace(&mut self.serial, is_exclusive, || open(before), || open(config))?;
            }
            section => self.devices.open(before, config, section)?,
        }
        Ok(())
    }
}

/// Puts what `now` opens in the place of what is open. Where only one of both can be open, that is closed first, and opened
/// anew as it was `before` should `now` fail.
///
/// # Errors
///
/// That of `now`. If what was there before is gone, the guest's start says so.
pub fn replace<T>(
    place: &mut Option<T>,
    is_exclusive: bool,
    before: impl FnOnce() -> Result<Option<T>, Error>,
    now: impl FnOnce() -> Result<Option<T>, Error>,
) -> Result<(), Error> {
    if is_exclusive {
        *place = None;
    }
    match now() {
        Ok(opened) => {
            *place = opened;
            Ok(())
        }
        Err(error) => {
            if is_exclusive {
                *place = before().unwrap_or_default();
            }
            Err(error)
        }
    }
}

impl Images {
    /// Opens the files that `boot_source` names.
    pub fn open(boot_source: &BootSource) -> Result<Self, Error> {
        let initrd = boot_source.initrd_path.as_deref();
        Ok(Images {
            kernel: open_image("boot-source.kernel_image_path", &boot_source.kernel_image_path)?,
            initrd: initrd.map(|path| open_image("boot-source.initrd_path", path)).transpose()?,
        })
    }
}

/// Opens a file that is to be read as a whole, which must be a regular one: reading anything else could wait for ever.
pub fn open_image(field: &'static str, path: &Path) -> Result<File, Error> {
    let open = || {
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::Error::other("is a directory"));
        }
        if !kind.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        Ok(file)
    };
    open().map_err(|cause: io::Error| {
        Error::configuration(field, format!("cannot open {}: {cause}", path.display()))
    })
}
