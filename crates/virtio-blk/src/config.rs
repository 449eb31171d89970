//! What a block device can be told when it is made, and what it tells its driver (VIRTIO 1.2, 5.2.3 and 5.2.4).

use kindling_rate_limiter::BucketConfig;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::request::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_TRANSFER, MAX_WRITE_ZEROES_SECTORS};
use crate::{DiskInfo, Error, SECTOR, Topology};

/// What a block device is to be. The disk is told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// What the guest reads as the disk's serial number: its first 20 bytes.
    pub id: String,
    /// Whether the driver's flushes reach the disk.
    pub cache: CacheMode,
    /// How requests reach the host's kernel.
    pub engine: IoEngine,
    /// Queues, from 1 to 16, each with a worker.
    pub queues: u16,
    /// Entries of each queue: a power of two from 16 to 1024.
    pub queue_size: u16,
    /// Bytes of a block as the guest sees it: 512 or 4096.
    pub block_size: u32,
    /// Whether the driver may discard blocks.
    pub discard: bool,
    /// Limit of bytes, all queues together: those read, written and zeroed.
    pub bandwidth: Option<BucketConfig>,
    /// Limit of requests, all queues together.
    pub ops: Option<BucketConfig>,
}

impl Default for BlkConfig {
    /// No name, no flushes, the synchronous engine, one queue of 256, blocks of 512 bytes, discarding, no limits.
    fn default() -> Self {
        Self {
            id: String::new(),
            cache: CacheMode::Unsafe,
            engine: IoEngine::Sync,
            queues: 1,
            queue_size: 256,
            block_size: 512,
            discard: true,
            bandwidth: None,
            ops: None,
        }
    }
}

/// Whether the driver's flushes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// They do not: flushing is not offered, and what the guest wrote can be lost with the host.
    Unsafe,
    /// They do: what was written before a flush survives the host's end once that is done.
    Writeback,
}

/// How requests reach the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEngine {
    /// One after the other.
    Sync,
    /// Many at a time, through io_uring.
    Async,
}

impl BlkConfig {
    /// Checks what can be checked without the disk.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !matches!(self.block_size, 512 | 4096) {
            return Err(Error::BlockSize(self.block_size));
        }
        if !(1..=16).contains(&self.queues) {
            return Err(Error::Queues(self.queues));
        }
        if !(16..=1024).contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            return Err(Error::QueueSize(self.queue_size));
        }
        Ok(())
    }

    /// Whether a disk can be shown to the guest in blocks of this size.
    pub(crate) fn check_disk(block_size: u32, info: &DiskInfo) -> Result<(), Error> {
        let needed = info.alignment.offset;
        if block_size.is_multiple_of(needed) {
            Ok(())
        } else {
            Err(Error::DirectBlockSize { needed, block_size })
        }
    }

    /// The features that are offered for such a disk.
    pub(crate) fn features(&self, info: &DiskInfo) -> u64 {
        let writable = !info.read_only;
        let offered = [
            (VIRTIO_BLK_F_SIZE_MAX, true),
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_RO, info.read_only),
            (VIRTIO_BLK_F_FLUSH, self.cache == CacheMode::Writeback),
            (VIRTIO_BLK_F_TOPOLOGY, info.topology.is_some()),
            (VIRTIO_BLK_F_MQ, self.queues > 1),
            (VIRTIO_BLK_F_DISCARD, writable && self.discard),
            (VIRTIO_BLK_F_WRITE_ZEROES, writable),
        ];
        offered.iter().filter(|(_, is_offered)| *is_offered).fold(0, |all, (bit, _)| all | 1 << bit)
    }

    /// The configuration space for such a disk. Fields of features that are not offered are 0.
    pub(crate) fn space(&self, info: &DiskInfo, capacity: u64) -> Vec<u8> {
        let writable = !info.read_only;
        let discard = u32::from(writable && self.discard);
        let zeroes = u32::from(writable);
        // The header and the status have a descriptor each.
        let seg_max = u32::from(self.queue_size).saturating_sub(2);
        // As many segments of this length as a request can have are no more than it may have.
        let size_max = MAX_TRANSFER.checked_div(self.queue_size.into()).unwrap_or(0);
        let geometry = 0_u32;
        let mut space = Vec::new();
        space.extend(capacity.to_le_bytes());
        for word in [size_max, seg_max, geometry, self.block_size] {
            space.extend(word.to_le_bytes());
        }
        space.extend(self.topology(info.topology.as_ref()));
        // writeback, which is only for CONFIG_WCE, and a byte that is not used.
        space.extend([0, 0]);
        space.extend(self.queues.to_le_bytes());
        let block_sectors = u64::from(self.block_size).div_euclid(SECTOR) as u32;
        let [discard_sectors, discard_segments, discard_alignment, zero_sectors, zero_segments] = [
            MAX_DISCARD_SECTORS.saturating_mul(discard),
            MAX_SEGMENTS.saturating_mul(discard),
            block_sectors.saturating_mul(discard),
            MAX_WRITE_ZEROES_SECTORS.saturating_mul(zeroes),
            MAX_SEGMENTS.saturating_mul(zeroes),
        ];
        for word in [discard_sectors, discard_segments, discard_alignment, zero_sectors, zero_segments] {
            space.extend(word.to_le_bytes());
        }
        // Zeroing keeps the blocks of a block device, and may free those of a file.
        space.extend([u8::from(writable && !info.is_block_device), 0, 0, 0]);
        space
    }

    /// `virtio_blk_topology`: all but the first two in blocks.
    fn topology(&self, topology: Option<&Topology>) -> [u8; 8] {
        let Some(topology) = topology else { return [0; 8] };
        let blocks = |bytes: u32| bytes.checked_div(self.block_size).unwrap_or(0);
        let exponent = blocks(topology.physical_block).checked_ilog2().unwrap_or(0) as u8;
        let offset = u8::try_from(blocks(topology.alignment_offset)).unwrap_or(0);
        let [min_low, min_high] = u16::try_from(blocks(topology.min_io)).unwrap_or(0).to_le_bytes();
        let [opt_0, opt_1, opt_2, opt_3] = blocks(topology.opt_io).to_le_bytes();
        [exponent, offset, min_low, min_high, opt_0, opt_1, opt_2, opt_3]
    }
}
