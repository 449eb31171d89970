//! Changes of a block device while it exists, from outside.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use kindling_rate_limiter::Update;
use kindling_virtio_device::{ConfigSpace, Settings};

use crate::device::Shared;
use crate::{Alignment, BlkConfig, Disk, Error, FileDisk, SECTOR};

/// What workers follow.
#[derive(Clone)]
pub(crate) struct BlkSettings {
    pub disk: Arc<dyn Disk>,
    /// Sectors that the guest may use.
    pub capacity: u64,
}

impl BlkSettings {
    /// The settings for such a disk as it is now. The guest may use whole blocks only.
    pub fn new(disk: Arc<dyn Disk>, block_size: u32) -> Result<Self, Error> {
        let blocks = disk.size().map_err(Error::Size)?.checked_div(block_size.into()).unwrap_or(0);
        let capacity = blocks.saturating_mul(u64::from(block_size).div_euclid(SECTOR));
        Ok(Self { disk, capacity })
    }
}

/// Changes a block device from outside: its file, its size, its limits. Changes take effect between requests, and
/// whether or not there is a driver.
#[derive(Clone)]
pub struct BlkControl {
    pub(crate) settings: Arc<Settings<BlkSettings>>,
    pub(crate) config: Arc<ConfigSpace>,
    pub(crate) shared: Arc<Shared>,
}

impl BlkControl {
    /// Exchanges the disk for the file or block device at `path`, opened as the present one is: read-only or not, direct
    /// or not. The guest is told its capacity. What it asks for from then on is done on the new one; requests that have begun
    /// are finished on the old one, which may take longer than this call.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or cannot be used with the guest's block size; the disk is then the one before.
    pub fn set_path(&self, path: &Path) -> Result<(), Error> {
        let _changing = self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let present = *self.settings.get().disk.info();
        // Only direct I/O has something to keep to.
        let direct = present.alignment != Alignment::NONE;
        let disk = FileDisk::open(path, present.read_only, direct)?;
        BlkConfig::check_disk(self.shared.block_size, disk.info())?;
        self.apply(BlkSettings::new(Arc::new(disk), self.shared.block_size)?);
        Ok(())
    }

    /// Looks at the size of the disk again, and tells the guest if it has changed. Returns it in bytes, whole blocks
    /// only.
    ///
    /// # Errors
    ///
    /// When the host does not tell it; the guest then keeps the one before.
    pub fn refresh(&self) -> Result<u64, Error> {
        let _changing = self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let present = self.settings.get();
        let settings = BlkSettings::new(present.disk, self.shared.block_size)?;
        let bytes = settings.capacity.saturating_mul(SECTOR);
        if settings.capacity != present.capacity {
            self.apply(settings);
        }
        Ok(bytes)
    }

    /// Changes the limits of bytes and of requests, both or neither. A request that waits is judged by the new ones.
    ///
    /// # Errors
    ///
    /// When one of them is wrong.
    pub fn set_limits(&self, bandwidth: Update, ops: Update) -> Result<(), Error> {
        self.shared.limiter.update(bandwidth, ops).map_err(Error::Limit)?;
        self.shared.metrics.updates.increment();
        // Wakes the workers.
        self.settings.change(|_| ());
        Ok(())
    }

    /// First the workers, which look before each request, then the guest: it finds what it is told of.
    fn apply(&self, settings: BlkSettings) {
        let capacity = settings.capacity.to_le_bytes();
        self.settings.change(|present| *present = settings);
        self.config.update(|space| {
            if let Some(field) = space.first_chunk_mut() {
                *field = capacity;
            }
        });
        self.shared.metrics.updates.increment();
    }
}
