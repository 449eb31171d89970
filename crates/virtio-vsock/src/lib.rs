#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::io;
use std::path::PathBuf;

use thiserror::Error;

mod backlog;
mod connection;
mod credit;
mod device;
mod host;
mod metrics;
mod packet;
mod socket;
mod table;
mod worker;

pub use device::{DEFAULT_MAX_CONNECTIONS, Vsock};
pub use host::SocketFile;
pub use metrics::VsockMetrics;

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum Error {
    /// The CID is reserved (VIRTIO 1.2, 5.10.4).
    #[error("guest CID {0} is not between 3 and 4294967294")]
    GuestCid(u32),
    /// The listening socket could not be created.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// Where it should have been.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
