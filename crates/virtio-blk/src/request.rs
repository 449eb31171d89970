//! What the driver asks for (VIRTIO 1.2, 5.2.6).

use std::time::Instant;

use kindling_virtio_device::{Chain, Queue};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::{Clear, SECTOR};

/// The most bytes of a request's data: 32 MiB. Whoever puts the device to sleep waits for requests that have begun.
pub(crate) const MAX_TRANSFER: u32 = 32 << 20;
/// The most sectors of a segment to discard: 2 GiB.
pub(crate) const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// The most sectors of a segment to zero: 32 MiB, since they may have to be written one by one.
pub(crate) const MAX_WRITE_ZEROES_SECTORS: u32 = 64 << 10;
/// The most segments of a request to discard or zero.
pub(crate) const MAX_SEGMENTS: u32 = 16;

/// Bytes of such a segment (VIRTIO 1.2, 5.2.6, `virtio_blk_discard_write_zeroes`).
const SEGMENT_BYTES: usize = 16;

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Sectors of the disk.
    pub capacity: u64,
    /// What offset and length of a transfer are multiples of, in bytes.
    pub granule: u32,
    pub read_only: bool,
    /// The features that driver and device agreed on.
    pub features: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Read into the chain's writable buffers, from this offset on.
    Read(u64),
    /// Write the chain's readable buffers, from this offset on.
    Write(u64),
    Flush,
    GetId,
    /// Clear the job's ranges.
    Clear(Clear),
}

/// Bytes of the disk. They are within its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub offset: u64,
    pub len: u64,
}

/// The status that ends a request (VIRTIO 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A request on its way. Jobs are used again and again, so that nothing is allocated for a request.
pub(crate) struct Job {
    /// Its buffers. Once parsed, only the data is left in them.
    pub chain: Chain,
    pub request: Request,
    /// What to clear.
    pub ranges: Vec<Range>,
    /// How many of the ranges are done.
    pub cleared: usize,
    /// Bytes of data that it is about.
    pub bytes: u64,
    /// When it was taken.
    pub begun: Instant,
    /// Bytes of its writable buffers, with the status.
    writable: u32,
}

impl Job {
    pub fn new(chain: Chain, now: Instant) -> Self {
        Self {
            chain,
            request: Request::Flush,
            ranges: Vec::new(),
            cleared: 0,
            bytes: 0,
            begun: now,
            writable: 0,
        }
    }

    /// Finds out what the chain asks for, or what it is to be told instead.
    pub fn parse(&mut self, rules: &Rules) -> Result<(), Status> {
        self.ranges.clear();
        self.cleared = 0;
        self.bytes = 0;
        self.writable = self.chain.writable.len();
        if !self.chain.writable.set_last_aside() {
            return Err(Status::IoError);
        }
        if self.chain.writable.len() > MAX_TRANSFER {
            // Nor are there zeroes for all of it: nothing counts as written.
            self.chain.writable.truncate(0);
            self.writable = 0;
            return Err(Status::IoError);
        }
        let header: [u8; 16] = self.chain.readable.take().ok_or(Status::IoError)?;
        if self.chain.readable.len() > MAX_TRANSFER {
            return Err(Status::IoError);
        }
        let header = u128::from_le_bytes(header);
        // The type, 32 reserved bits, the sector.
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        self.request = match kind {
            VIRTIO_BLK_T_IN => {
                self.bytes = self.chain.writable.len().into();
                Request::Read(rules.offset(sector, self.bytes)?)
            }
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if rules.read_only => {
                return Err(Status::IoError);
            }
            VIRTIO_BLK_T_OUT => {
                self.bytes = self.chain.readable.len().into();
                Request::Write(rules.offset(sector, self.bytes)?)
            }
            VIRTIO_BLK_T_FLUSH if rules.has(VIRTIO_BLK_F_FLUSH) => Request::Flush,
            VIRTIO_BLK_T_GET_ID if self.chain.writable.len() >= VIRTIO_BLK_ID_BYTES => Request::GetId,
            VIRTIO_BLK_T_GET_ID => return Err(Status::IoError),
            VIRTIO_BLK_T_DISCARD if rules.has(VIRTIO_BLK_F_DISCARD) => {
                Request::Clear(self.parse_segments(rules, MAX_DISCARD_SECTORS, None)?)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if rules.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                let unmap = Some(VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
                Request::Clear(self.parse_segments(rules, MAX_WRITE_ZEROES_SECTORS, unmap)?)
            }
            _ => return Err(Status::Unsupported),
        };
        Ok(())
    }

    /// Reads the list of segments to clear, all of it before any is cleared. `unmap` is the one flag that they may
    /// have, if they may have one; it holds for all of them or for none.
    fn parse_segments(
        &mut self,
        rules: &Rules,
        max_sectors: u32,
        unmap: Option<u32>,
    ) -> Result<Clear, Status> {
        let len = self.chain.readable.len();
        let most = MAX_SEGMENTS.saturating_mul(SEGMENT_BYTES as u32);
        if len == 0 || len > most || !len.is_multiple_of(SEGMENT_BYTES as u32) {
            return Err(Status::IoError);
        }
        let mut unmaps = true;
        while let Some(segment) = self.chain.readable.take::<SEGMENT_BYTES>() {
            let segment = u128::from_le_bytes(segment);
            let (sector, count, flags) = (segment as u64, (segment >> 64) as u32, (segment >> 96) as u32);
            if flags & !unmap.unwrap_or(0) != 0 {
                return Err(Status::Unsupported);
            }
            if count == 0 || count > max_sectors {
                return Err(Status::IoError);
            }
            unmaps &= flags != 0;
            let len = u64::from(count).saturating_mul(SECTOR);
            self.ranges.push(Range { offset: rules.offset(sector, len)?, len });
            self.bytes = self.bytes.saturating_add(len);
        }
        // Keeping blocks that could go is always right.
        Ok(unmap.map_or(Clear::Discard, |_| Clear::Zero { unmap: unmaps }))
    }

    /// The bytes that it costs where they are limited: those that the host may have to move.
    pub fn cost(&self) -> u64 {
        match self.request {
            Request::Read(_) | Request::Write(_) | Request::Clear(Clear::Zero { .. }) => self.bytes,
            Request::Flush | Request::GetId | Request::Clear(Clear::Discard) => 0,
        }
    }

    /// Ends the request.
    ///
    /// The status is the last byte that counts as written, and so all bytes before it count too (VIRTIO 1.2, 2.7.8.2):
    /// those without data become zeroes.
    pub fn finish(&mut self, status: Status, queue: &mut Queue) {
        let rest = self.chain.writable.len();
        self.chain.writable.write_zeroes(rest);
        self.chain.writable.write_last(status as u8);
        queue.push(self.chain.head(), self.writable);
        self.chain.clear();
    }
}

impl Rules {
    pub fn has(&self, feature: u32) -> bool {
        self.features >> feature & 1 == 1
    }

    /// The offset of a transfer, when it is within the disk.
    fn offset(&self, sector: u64, bytes: u64) -> Result<u64, Status> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR)).filter(|end| *end <= self.capacity);
        let offset = end.and_then(|_| sector.checked_mul(SECTOR)).ok_or(Status::IoError)?;
        let granule = u64::from(self.granule);
        if offset.is_multiple_of(granule) && bytes.is_multiple_of(granule) {
            Ok(offset)
        } else {
            Err(Status::IoError)
        }
    }
}
