//! Where frames come from and go to: a tap of the host.
//!
//! A frame is preceded by the header of VIRTIO 1.2, 5.1.6, which a tap takes and gives itself (`IFF_VNET_HDR`, 12 bytes,
//! little endian), so that frames pass by unchanged and uncopied.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use libc::{c_char, c_int, c_short, c_uint, ifreq};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO,
};

use crate::{Error, HEADER_BYTES};

/// The most queue pairs that a device can have. Each has a thread.
pub const MAX_QUEUE_PAIRS: usize = 32;

/// The back end of a network device, with a descriptor for each queue pair.
#[derive(Debug)]
pub struct Backend {
    queues: Vec<Arc<File>>,
    is_tap: bool,
    /// Queues that frames from the host come to: the first so many.
    active: Mutex<u16>,
}

impl Backend {
    /// Attaches to the tap `name` of this network namespace, which is created if there is none and the process may do
    /// so. With more than one queue pair, an existing tap must have been created with `multi_queue`, and with one pair
    /// without.
    ///
    /// # Errors
    ///
    /// When name or number of queue pairs are out of range, or the host refuses something.
    pub fn tap(name: &str, queue_pairs: usize) -> Result<Self, Error> {
        check_name(name)?;
        check_pairs(queue_pairs)?;
        let multi_queue = queue_pairs > 1;
        let queues = (0..queue_pairs).map(|_| attach(name, multi_queue).map(Arc::new));
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        let set_up = |doing, result: io::Result<()>| {
            result.map_err(|source| Error::SetUp { name: name.to_owned(), doing, source })
        };
        if let Some(tap) = queues.first() {
            set_up("set the header size", set_int(tap, libc::TUNSETVNETHDRSZ, HEADER_BYTES as c_int))?;
            set_up("set the byte order", set_int(tap, libc::TUNSETVNETLE, 1))?;
        }
        let backend = Self { active: Mutex::new(queue_pairs as u16), queues, is_tap: true };
        set_up("detach queues", backend.set_active(1))?;
        Ok(backend)
    }

    /// A back end of descriptors that keep messages apart, such as Unix sockets of type `SOCK_SEQPACKET`: each message
    /// is header and frame. One for each queue pair; all must be non-blocking.
    ///
    /// Tests and benches use it in the place of a tap.
    ///
    /// # Errors
    ///
    /// [`Error::QueuePairs`] when there are none, or too many.
    pub fn sockets(sockets: Vec<OwnedFd>) -> Result<Self, Error> {
        check_pairs(sockets.len())?;
        Ok(Self {
            queues: sockets.into_iter().map(|socket| Arc::new(File::from(socket))).collect(),
            is_tap: false,
            active: Mutex::new(1),
        })
    }

    /// How many queue pairs it has.
    pub(crate) fn queue_pairs(&self) -> u16 {
        // At most MAX_QUEUE_PAIRS.
        self.queues.len() as u16
    }

    /// The descriptors, one for each queue pair.
    pub(crate) fn queues(&self) -> &[Arc<File>] {
        &self.queues
    }

    /// Says what the host may leave to a guest that accepted `features`: check sums, and cutting what is too long.
    pub(crate) fn set_offloads(&self, features: u64) -> io::Result<()> {
        match self.queues.first() {
            Some(tap) if self.is_tap => {
                let flags = offload_flags(features);
                // SAFETY: this takes a number, and no memory of this process.
                check(unsafe {
                    libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
                })
            }
            _ => Ok(()),
        }
    }

    /// How many queues [`Backend::set_active`] would attach or detach.
    pub(crate) fn distance(&self, pairs: u16) -> u16 {
        self.active.lock().unwrap_or_else(PoisonError::into_inner).abs_diff(pairs)
    }

    /// Has frames from the host come to the first `pairs` queue pairs only: at least 1. What waits in other queues of
    /// the tap is lost.
    ///
    /// # Errors
    ///
    /// What the kernel says. As many pairs are active as before.
    pub(crate) fn set_active(&self, pairs: u16) -> io::Result<()> {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *active;
        let result = self.step_to(&mut active, pairs);
        if result.is_err() {
            // What can be done. If it fails too, the tap is gone.
            let _ = self.step_to(&mut active, before);
        }
        result
    }

    fn step_to(&self, active: &mut u16, pairs: u16) -> io::Result<()> {
        while *active != pairs {
            // The pair to attach is the one behind the active ones, the pair to detach the last of them.
            let (pair, next, flag) = if pairs > *active {
                (*active, active.saturating_add(1), libc::IFF_ATTACH_QUEUE)
            } else {
                (active.saturating_sub(1), active.saturating_sub(1), libc::IFF_DETACH_QUEUE)
            };
            let queue = self.queues.get(usize::from(pair)).ok_or(io::ErrorKind::InvalidInput)?;
            if self.is_tap {
                interface_request(queue, libc::TUNSETQUEUE, "", flag)?;
            }
            *active = next;
        }
        Ok(())
    }
}

fn check_pairs(pairs: usize) -> Result<(), Error> {
    if (1..=MAX_QUEUE_PAIRS).contains(&pairs) { Ok(()) } else { Err(Error::QueuePairs(pairs)) }
}

/// What the kernel would refuse, and '%', for which it would make up a number.
fn check_name(name: &str) -> Result<(), Error> {
    let forbidden = |byte: u8| b"/:%\0\x0b".contains(&byte) || byte.is_ascii_whitespace();
    if name.is_empty()
        || name.len() >= libc::IFNAMSIZ
        || name == "."
        || name == ".."
        || name.bytes().any(forbidden)
    {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}

/// A new queue of the tap.
fn attach(name: &str, multi_queue: bool) -> Result<File, Error> {
    let error = match open(name, multi_queue)? {
        Ok(queue) => return Ok(queue),
        Err(error) => error,
    };
    // The kernel says the same to several mistakes, but only to this one no longer when it is made the other way round.
    let is_invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    if is_invalid(&error) && !open(name, !multi_queue)?.is_err_and(|error| is_invalid(&error)) {
        return Err(Error::MultiQueue { name: name.to_owned(), multi_queue: !multi_queue });
    }
    Err(Error::Attach { name: name.to_owned(), source: error })
}

fn open(name: &str, multi_queue: bool) -> Result<io::Result<File>, Error> {
    let queue = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(Error::Open)?;
    let mode = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | mode;
    Ok(interface_request(&queue, libc::TUNSETIFF, name, flags).map(|()| queue))
}

/// `TUN_F_*` for `VIRTIO_NET_F_GUEST_*`. The tap knows the same dependencies as VIRTIO 1.2, 5.1.3.1, and is not asked for
/// what breaks them.
fn offload_flags(features: u64) -> c_uint {
    let flag = |bit: u32, flag: c_uint| if features >> bit & 1 == 1 { flag } else { 0 };
    let checksum = flag(VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM);
    let segmentation =
        flag(VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4) | flag(VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6);
    let congestion = flag(VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN);
    let fragmentation = flag(VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO);
    match (checksum, segmentation) {
        (0, _) => 0,
        (_, 0) => checksum | fragmentation,
        _ => checksum | fragmentation | segmentation | congestion,
    }
}

/// Whether the host may give a guest that accepted `features` frames that the guest has to cut itself.
pub(crate) fn takes_large_frames(features: u64) -> bool {
    offload_flags(features) & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_UFO) != 0
}

fn interface_request(tap: &File, request: libc::Ioctl, name: &str, flags: c_int) -> io::Result<()> {
    // SAFETY: zeroes are a valid value of this structure, which is made of numbers.
    let mut interface: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    interface.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: the requests that this is called with read and write an `ifreq`, and this is one.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), request, &raw mut interface) })
}

fn set_int(tap: &File, request: libc::Ioctl, value: c_int) -> io::Result<()> {
    // SAFETY: the requests that this is called with read a number of this type.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), request, &raw const value) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_tap_can_have_are_refused_before_the_host_is_asked() {
        for name in
            ["", ".", "..", "a/b", "a:b", "a b", "tap%d", "a\0b", "a\tb", "a\x0bb", "sixteen-letters-"]
        {
            assert!(matches!(Backend::tap(name, 1), Err(Error::Name(_))), "{name:?}");
        }
        for name in ["t", "fifteen-letters", "tap0.1-ü"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn numbers_of_queue_pairs_out_of_range_are_refused() {
        for pairs in [0, MAX_QUEUE_PAIRS + 1, usize::MAX] {
            assert!(matches!(Backend::tap("tap", pairs), Err(Error::QueuePairs(_))), "{pairs}");
        }
        assert!(matches!(Backend::sockets(Vec::new()), Err(Error::QueuePairs(0))));
    }

    #[test]
    fn a_tap_is_not_asked_for_offloads_without_those_that_they_need() {
        let bits = |bits: &[u32]| bits.iter().fold(0_u64, |mask, bit| mask | 1 << bit);
        let (csum, tso4, tso6) = (VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6);
        let (ecn, ufo) = (VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_UFO);
        assert_eq!(offload_flags(0), 0);
        assert_eq!(offload_flags(bits(&[tso4, tso6, ecn, ufo])), 0);
        assert_eq!(offload_flags(bits(&[csum])), libc::TUN_F_CSUM);
        assert_eq!(offload_flags(bits(&[csum, ecn, ufo])), libc::TUN_F_CSUM | libc::TUN_F_UFO);
        assert_eq!(offload_flags(bits(&[csum, tso6])), libc::TUN_F_CSUM | libc::TUN_F_TSO6);
        assert_eq!(offload_flags(u64::MAX), 0x1f);
    }
}
