//! What was opened for a guest before it starts: a request that names a file, tap or socket which cannot be opened is
//! told so at once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use kindling_api::{BootSource, Section, VmConfig};
use kindling_serial::Backend;

use crate::error::Error;
use crate::{backends, console};

/// What is open for a guest. The start of the guest takes it, and opens what is missing.
#[derive(Default)]
pub struct Prepared {
    /// Kernel and initial RAM disk.
    pub images: Option<Images>,
    /// What the serial port leads to.
    pub serial: Option<Backend>,
    /// Devices.
    pub devices: backends::Prepared,
}

/// Kernel and initial RAM disk.
pub struct Images {
    /// The kernel image.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
}

impl Prepared {
    /// Opens what `section`, which is in `config` already, names. What was open for it is closed first, since it may be the
    /// same; should this fail, the guest's start opens what its configuration then names.
    pub fn open(&mut self, config: &VmConfig, section: &Section) -> Result<(), Error> {
        match section {
            Section::BootSource(boot_source) => {
                self.images = None;
                self.images = Some(Images::open(boot_source)?);
            }
            Section::Serial(serial) => {
                self.serial = None;
                self.serial = Some(console::backend(serial)?);
            }
            section => self.devices.open(config, section)?,
        }
        Ok(())
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

/// Opens a kernel or initrd, which must be a regular file: reading anything else could wait for ever.
fn open_image(field: &'static str, path: &Path) -> Result<File, Error> {
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
