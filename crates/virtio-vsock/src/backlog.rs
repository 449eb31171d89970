//! Bytes of the guest that a host program was too slow for.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream;

use kindling_virtio_device::Readable;

use crate::socket;

/// Bytes in order. There is no memory for them when there are none.
#[derive(Default)]
pub struct Backlog(VecDeque<u8>);

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes there are: as many as the guest had credit for, at most.
    pub fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// Adds what is left of `bytes`.
    pub fn append(&mut self, bytes: &mut Readable) {
        if bytes.is_empty() {
            return;
        }
        let old = self.0.len();
        let new = old.saturating_add(bytes.len() as usize);
        // Left alone, it might take room for almost twice the bytes that it ever holds.
        self.0.reserve_exact(new.next_power_of_two().saturating_sub(old));
        self.0.resize(new, 0);
        let (first, second) = self.0.as_mut_slices();
        // The new bytes may begin in either half.
        let in_first = old.min(first.len());
        bytes.read(first.split_at_mut(in_first).1);
        bytes.read(second.split_at_mut(old.saturating_sub(in_first)).1);
    }

    /// Sends what `socket` takes. Returns how much that was.
    pub fn send(&mut self, socket: &UnixStream) -> io::Result<u32> {
        let (first, second) = self.0.as_slices();
        let len = socket::send_slices(socket, &[IoSlice::new(first), IoSlice::new(second)])?;
        self.0.drain(..len);
        if self.0.is_empty() {
            self.clear();
        }
        // No more than there was.
        Ok(len as u32)
    }

    /// Drops all bytes, and their memory.
    pub fn clear(&mut self) {
        self.0 = VecDeque::new();
    }
}
