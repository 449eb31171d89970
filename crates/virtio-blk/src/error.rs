//! Why there is no block device, or it stays as it was.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A block device could not be made or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// The back end cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The back end.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The back end is a directory, a FIFO or something else that has no blocks.
    #[error("{path} is neither a regular file nor a block device")]
    Kind {
        /// The back end.
        path: PathBuf,
    },
    /// The back end's size or other properties cannot be found out.
    #[error("cannot inspect {path}")]
    Inspect {
        /// The back end.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The back end's size cannot be found out.
    #[error("cannot find out the size of the disk")]
    Size(#[source] io::Error),
    /// The back end's file system cannot bypass the page cache.
    #[error("{path} is on a file system without direct I/O")]
    NoDirect {
        /// The back end.
        path: PathBuf,
    },
    /// Direct I/O on the back end works in blocks that the guest would not keep to.
    #[error("direct I/O works in blocks of {needed} bytes here, and the guest's block size is {block_size}")]
    DirectBlockSize {
        /// What offsets and lengths must be multiples of.
        needed: u32,
        /// The guest's block size in bytes.
        block_size: u32,
    },
    /// The guest's block size is neither 512 nor 4096.
    #[error("block size {0} is neither 512 nor 4096")]
    BlockSize(u32),
    /// The number of queues is not from 1 to 16.
    #[error("{0} queues are not from 1 to 16")]
    Queues(u16),
    /// The queues' size is not a power of two from 16 to 1024.
    #[error("queue size {0} is not a power of two from 16 to 1024")]
    QueueSize(u16),
    /// The host has no io_uring for the asynchronous engine: it is older than Linux 5.10, or does not allow it.
    #[error("cannot set up io_uring, which the asynchronous engine needs")]
    Ring(#[source] io::Error),
    /// The limits are wrong.
    #[error("cannot limit the disk's rate")]
    Limit(#[source] kindling_rate_limiter::Error),
}
