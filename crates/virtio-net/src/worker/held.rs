//! Receive buffers that were taken from the driver before there is a frame for them.
//!
//! How long a frame is shows only when it has been read, and a tap gives a frame once. So there must be room for the
//! largest before any is read, which may take many chains.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kindling_virtio_device::{Chain, GuestMemory};
use libc::{c_int, iovec};

/// The most segments that the kernel takes at once.
const IOV_MAX: usize = libc::UIO_MAXIOV as usize;

/// Chains in the order in which the driver made them available, and in which it gets them back.
pub(super) struct Held {
    chains: VecDeque<Entry>,
    /// Chains to be filled again.
    spare: Vec<Chain>,
    /// How many more chains there may be: all together as many as the queue has entries.
    unmade: u16,
    memory: Arc<GuestMemory>,
    /// The segments of `chains`, one chain behind the other, from `first` on. They lie in guest memory, which the chains
    /// keep mapped.
    segments: Vec<iovec>,
    first: usize,
    /// Bytes of all segments.
    room: usize,
}

struct Entry {
    chain: Chain,
    /// How many segments it has.
    segments: usize,
}

// SAFETY: the pointers are to guest memory, which any thread may access, and which the chains keep mapped.
unsafe impl Send for Held {}

impl Held {
    /// For a queue of so many entries.
    pub fn new(memory: &Arc<GuestMemory>, entries: u16) -> Self {
        Self {
            chains: VecDeque::new(),
            spare: Vec::new(),
            unmade: entries,
            memory: Arc::clone(memory),
            segments: Vec::new(),
            first: 0,
            room: 0,
        }
    }

    /// Bytes that all chains take together.
    pub fn room(&self) -> usize {
        self.room
    }

    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether the driver has no chain left to give.
    pub fn is_full(&self) -> bool {
        self.spare.is_empty() && self.unmade == 0
    }

    /// Whether a single call reads into all of the room.
    pub fn fits_one_call(&self) -> bool {
        self.rest().len() < IOV_MAX
    }

    /// A chain to be filled, and then to be [`push`](Self::push)ed or to be made [`spare`](Self::spare) again.
    pub fn take_spare(&mut self) -> Option<Chain> {
        self.spare.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(Chain::new(&self.memory))
        })
    }

    pub fn spare(&mut self, mut chain: Chain) {
        chain.clear();
        self.spare.push(chain);
    }

    pub fn push(&mut self, chain: Chain) {
        if self.first == self.segments.len() {
            self.segments.clear();
            self.first = 0;
        } else if self.first >= IOV_MAX {
            self.segments.drain(..self.first);
            self.first = 0;
        }
        let segments = chain.writable.iovecs();
        self.segments.extend_from_slice(segments);
        self.room = self.room.saturating_add(chain.writable.len() as usize);
        self.chains.push_back(Entry { segments: segments.len(), chain });
    }

    /// The chain that was held first.
    pub fn pop_front(&mut self) -> Option<Chain> {
        let Entry { chain, segments } = self.chains.pop_front()?;
        self.first = self.first.saturating_add(segments);
        self.room = self.room.saturating_sub(chain.writable.len() as usize);
        Some(chain)
    }

    /// The chain that was held last.
    pub fn pop_back(&mut self) -> Option<Chain> {
        let Entry { chain, segments } = self.chains.pop_back()?;
        self.segments.truncate(self.segments.len().saturating_sub(segments));
        self.room = self.room.saturating_sub(chain.writable.len() as usize);
        Some(chain)
    }

    /// How many chains the first `len` bytes of the room are in.
    pub fn count(&self, len: usize) -> u16 {
        let (mut count, mut room) = (0_u16, 0_usize);
        for Entry { chain, .. } in &self.chains {
            if room >= len {
                break;
            }
            room = room.saturating_add(chain.writable.len() as usize);
            // There are at most 32,768 in a queue.
            count = count.saturating_add(1);
        }
        count
    }

    /// Reads a frame into the room, and its end into `rest` if it is longer. Returns how long it is, or what there is
    /// room for if it is even longer.
    pub fn read(&mut self, tap: &File, rest: &mut [u8]) -> io::Result<usize> {
        self.segments.push(iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        let segments = self.rest();
        let (base, count) = (segments.as_ptr(), segments.len().min(IOV_MAX) as c_int);
        // SAFETY: the segments are mapped guest memory (see `segments`), which the guest expects to be written, and the
        // last is `rest`, which nobody else has.
        let result = unsafe { libc::readv(tap.as_raw_fd(), base, count) };
        let result = usize::try_from(result).map_err(|_| io::Error::last_os_error());
        self.segments.pop();
        result
    }

    /// Byte `at` of the room, as the guest's memory has it now.
    pub fn byte(&self, at: usize) -> Option<u8> {
        let mut before = 0_usize;
        for segment in self.rest() {
            let offset = at.checked_sub(before)?;
            if offset < segment.iov_len {
                let byte = segment.iov_base.cast::<u8>().wrapping_add(offset);
                // SAFETY: the byte is in the segment, which is mapped guest memory (see `segments`).
                return Some(unsafe { byte.read_volatile() });
            }
            before = before.saturating_add(segment.iov_len);
        }
        None
    }

    fn rest(&self) -> &[iovec] {
        self.segments.get(self.first..).unwrap_or_default()
    }
}
