//! Why a network device could not be made.

use std::io;

/// Why a network device, or what it sends its frames through, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No network device can have that name.
    #[error("{0:?} cannot be the name of a tap: 1 to 15 bytes, without '/', ':', '%', white space and NUL")]
    Name(String),
    /// The number of queue pairs is out of its range.
    #[error("a network device has 1 to {max} queue pairs, not {0}", max = crate::MAX_QUEUE_PAIRS)]
    QueuePairs(usize),
    /// The largest packet is smaller than the standard allows (VIRTIO 1.2, 5.1.4.1).
    #[error("an MTU is at least 68 bytes, not {0}")]
    Mtu(u16),
    /// The host's tap driver could not be opened.
    #[error("cannot open /dev/net/tun")]
    Open(#[source] io::Error),
    /// The tap could not be attached to, or created if there was none.
    #[error("cannot attach to tap {name}")]
    Attach {
        /// The tap's name.
        name: String,
        /// Why not: EPERM without CAP_NET_ADMIN if the tap is another user's or does not exist, EBUSY if somebody else
        /// has it, EINVAL if the name is that of another kind of device.
        #[source]
        source: io::Error,
    },
    /// The tap was created for several queues and is to be used with one, or the other way round.
    #[error("tap {name} was created {}", mode(*.multi_queue))]
    MultiQueue {
        /// The tap's name.
        name: String,
        /// Whether the tap was created for several queues.
        multi_queue: bool,
    },
    /// The tap could not be set up.
    #[error("cannot {doing} of tap {name}")]
    SetUp {
        /// The tap's name.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn mode(multi_queue: bool) -> &'static str {
    if multi_queue {
        "with multi_queue, which does not go with a single queue pair"
    } else {
        "without multi_queue, which several queue pairs need"
    }
}
