//! Why the service could not be made, or its document not be changed.

use std::io;
use std::net::Ipv4Addr;

/// What can go wrong on the host's side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document would be larger than it may be.
    #[error("the metadata would have {bytes} bytes as JSON, more than the limit of {limit}")]
    TooLarge {
        /// Bytes that it would have.
        bytes: usize,
        /// Bytes that it may have.
        limit: usize,
    },
    /// The document, or the patch, nests deeper than anything should.
    #[error("the metadata nests deeper than {max} levels", max = crate::MAX_DEPTH)]
    TooDeep,
    /// There is no document yet that could be patched.
    #[error("there is no metadata to patch: none has been put")]
    Empty,
    /// The host gave no random bytes, for keys and sequence numbers.
    #[error("cannot get random bytes from the host")]
    Random(#[source] io::Error),
    /// The service can be reached at an address of one host only.
    #[error("{0} cannot be the metadata service's address")]
    Address(Ipv4Addr),
}
