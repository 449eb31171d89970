//! From the host to the guest (VIRTIO 1.2, 5.1.6.3 and 5.1.6.4).
//!
//! Where there is room for the largest frame, frames are read straight into the guest's buffers. Where there is less, a
//! frame is read into memory of our own and moved on as soon as there is room for that one.
//!
//! The rate limiter learns of a frame when it has been read. It is passed on at once, and the next one waits until this
//! one is paid for: so no frame is ever held back, and sleeping loses none.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use kindling_rate_limiter::Share;
use kindling_virtio_device::{Queue, WorkerError};
use virtio_bindings::virtio_net::VIRTIO_NET_HDR_GSO_ECN;

use super::held::Held;
use super::{BATCH, Negotiated, Wait, WorkerDetour};
use crate::{HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, NetMetrics};

/// Offset of `flags` in the header.
const FLAGS: usize = 0;
/// Offset of `gso_type` in the header.
const GSO_TYPE: usize = 1;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

pub(super) struct Receiver {
    pub queue: Queue,
    pub limiter: Share,
    held: Held,
    negotiated: Negotiated,
    /// Room for a frame, and a byte more to tell which are longer.
    own: Box<[u8]>,
    /// Bytes in `own` that wait for the driver's buffers; 0 if none do.
    waiting: usize,
    /// Bytes that the limiter has still to admit.
    owed: Option<u64>,
    /// Frames and bytes of the present batch.
    given: (u64, u64),
    metrics: Arc<NetMetrics>,
}

impl Receiver {
    pub fn new(queue: Queue, negotiated: Negotiated, limiter: Share, metrics: &Arc<NetMetrics>) -> Self {
        Self {
            held: Held::new(queue.memory(), queue.size()),
            queue,
            negotiated,
            limiter,
            own: vec![0; HEADER_BYTES + MAX_FRAME_BYTES + 1].into(),
            waiting: 0,
            owed: None,
            given: (0, 0),
            metrics: Arc::clone(metrics),
        }
    }

    /// Receives a batch of frames, those of the detour first; while the link is down, drops those of the tap.
    pub fn run(
        &mut self,
        tap: &File,
        link_up: bool,
        mut detour: Option<&mut WorkerDetour>,
    ) -> Result<Wait, WorkerError> {
        self.queue.begin_batch();
        let wait = self.batch(tap, link_up, detour.as_deref_mut())?;
        if wait == Wait::Tap && link_up && detour.is_some_and(|detour| detour.is_due()) {
            // The batch was full, and the tap might never be readable.
            self.queue.kick_worker();
        }
        let (frames, bytes) = std::mem::take(&mut self.given);
        self.metrics.rx_frames.add(frames);
        self.metrics.rx_bytes.add(bytes);
        match wait {
            Wait::Driver => self.queue.end_batch(),
            // While there are buffers, or while something else is waited for, kicks would tell nothing.
            _ => self.queue.publish(),
        }
        Ok(wait)
    }

    /// Gives everything back that the driver has not been shown.
    pub fn drain(&mut self) {
        self.limiter.forget();
        while let Some(chain) = self.held.pop_back() {
            self.queue.unpop(&chain);
            self.held.spare(chain);
        }
        self.queue.publish();
    }

    fn batch(
        &mut self,
        tap: &File,
        link_up: bool,
        mut detour: Option<&mut WorkerDetour>,
    ) -> Result<Wait, WorkerError> {
        for _ in 0..BATCH {
            if self.waiting == 0 {
                if let Some(bytes) = self.owed
                    && !self.limiter.consume(bytes)
                {
                    self.metrics.rx_throttled.increment();
                    return Ok(Wait::Tokens);
                }
                self.owed = None;
                if link_up {
                    self.hold(self.negotiated.largest)?;
                    if self.held.is_empty() {
                        self.metrics.rx_starved.increment();
                        return Ok(Wait::Driver);
                    }
                }
                let is_read = link_up && detour.as_deref_mut().is_some_and(|detour| self.read_detour(detour));
                match if is_read { Ok(()) } else { self.read(tap, link_up) } {
                    Ok(()) => {}
                    Err(error) => match error.raw_os_error() {
                        Some(libc::EAGAIN | libc::EINTR) => return Ok(Wait::Tap),
                        // A frame was lost, and the next may do better.
                        Some(libc::EFAULT | libc::EINVAL | libc::ENOMEM | libc::ENOBUFS) => {
                            self.metrics.rx_errors.increment();
                        }
                        _ => return Ok(Wait::Never),
                    },
                }
            }
            if self.waiting != 0 && !self.move_on(link_up)? {
                self.metrics.rx_starved.increment();
                return Ok(Wait::Driver);
            }
        }
        Ok(Wait::Tap)
    }

    /// Reads one frame. It goes to the guest, or into our own memory, or nowhere.
    fn read(&mut self, tap: &File, link_up: bool) -> io::Result<()> {
        let Negotiated { largest, largest_whole, .. } = self.negotiated;
        let direct = link_up && self.held.room() >= largest && self.held.fits_one_call();
        let len = if direct {
            self.held.read(tap, self.own.get_mut(..1).unwrap_or_default())?
        } else {
            (&mut &*tap).read(&mut self.own)?
        };
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !link_up {
            self.metrics.rx_dropped_link_down.increment();
            return Ok(());
        }
        let is_whole = || {
            let gso_type = if direct { self.held.byte(GSO_TYPE) } else { self.own.get(GSO_TYPE).copied() };
            gso_type.is_some_and(|gso_type| u32::from(gso_type) & !VIRTIO_NET_HDR_GSO_ECN == 0)
        };
        let most = if len > largest_whole && is_whole() { largest_whole } else { largest };
        if self.admit(len, most) {
            if direct {
                self.give(len, false);
            } else {
                self.waiting = len;
            }
        }
        Ok(())
    }

    /// Reads a frame of the detour into our own memory; returns whether there was one.
    fn read_detour(&mut self, detour: &mut WorkerDetour) -> bool {
        let Some((header, room)) = self.own.split_first_chunk_mut::<HEADER_BYTES>() else { return false };
        let Some(len) = detour.next_frame(room) else { return false };
        // Nothing is left for the driver to do.
        *header = [0; HEADER_BYTES];
        let len = len.saturating_add(HEADER_BYTES);
        if self.admit(len, self.negotiated.largest_whole) {
            self.metrics.rx_detoured.increment();
            self.waiting = len;
        }
        true
    }

    /// Whether a frame goes to the guest, for which it may have `most` bytes. If so, the limiter has to admit it.
    fn admit(&mut self, len: usize, most: usize) -> bool {
        let is_good = (HEADER_BYTES + MIN_FRAME_BYTES..=most).contains(&len);
        if is_good {
            self.owed = Some(len.saturating_sub(HEADER_BYTES) as u64);
        } else {
            self.metrics.rx_dropped_size.increment();
        }
        is_good
    }

    /// Moves the frame in our own memory to the guest; returns whether it is gone from here.
    fn move_on(&mut self, link_up: bool) -> Result<bool, WorkerError> {
        let len = self.waiting;
        if !link_up {
            self.metrics.rx_dropped_link_down.increment();
        } else {
            self.hold(len)?;
            if self.held.room() >= len {
                self.give(len, true);
            } else if !self.negotiated.mergeable
                && let Some(chain) = self.held.pop_front()
            {
                // One buffer is all that a frame can have. The next may be larger.
                self.queue.push(chain.head(), 0);
                self.held.spare(chain);
                self.metrics.rx_dropped_no_room.increment();
            } else if self.held.is_full() {
                self.metrics.rx_dropped_no_room.increment();
            } else {
                return Ok(false);
            }
        }
        self.waiting = 0;
        Ok(true)
    }

    /// Takes chains until there is room for `len` bytes, or until the driver has no more.
    fn hold(&mut self, len: usize) -> Result<(), WorkerError> {
        // Less is of no use, and a driver has to give more (VIRTIO 1.2, 5.1.6.3.1).
        let least = HEADER_BYTES.saturating_add(if self.negotiated.mergeable { 1 } else { MIN_FRAME_BYTES });
        for _ in 0..self.queue.size() {
            if self.held.room() >= len || !(self.negotiated.mergeable || self.held.is_empty()) {
                break;
            }
            let Some(mut chain) = self.held.take_spare() else { break };
            let popped = self.queue.pop(&mut chain).map_err(WorkerError::queue(self.queue.index()))?;
            if !popped {
                self.held.spare(chain);
                break;
            }
            let is_usable = chain.writable.len() as usize >= least;
            self.held.push(chain);
            if !is_usable {
                self.metrics.rx_unusable_buffers.increment();
                // With those before it: only the last chains can be put back, so that none may go out of turn.
                while let Some(chain) = self.held.pop_front() {
                    self.queue.push(chain.head(), 0);
                    self.held.spare(chain);
                }
            }
        }
        Ok(())
    }

    /// Gives the guest a frame, for which there is room. It is in the room already, or is copied there.
    fn give(&mut self, len: usize, copy: bool) {
        let num_buffers = self.held.count(len).to_le_bytes();
        let keep_flags = self.negotiated.checksums;
        if copy {
            if let Some(field) = self.own.get_mut(NUM_BUFFERS..).and_then(<[u8]>::first_chunk_mut) {
                *field = num_buffers;
            }
            if let Some(flags) = self.own.get_mut(FLAGS).filter(|_| !keep_flags) {
                *flags = 0;
            }
        }
        let mut done = 0;
        while done < len {
            let Some(mut chain) = self.held.pop_front() else { break };
            let end = len.min(done.saturating_add(chain.writable.len() as usize));
            if copy {
                chain.writable.write(self.own.get(done..end).unwrap_or_default());
            } else if done == 0 {
                // Each chain has room for the header at least.
                let kept = if keep_flags { 0 } else { chain.writable.write(&[0]) as u32 };
                chain.writable.skip((NUM_BUFFERS as u32).saturating_sub(kept));
                chain.writable.write(&num_buffers);
            }
            // No frame is longer than 4 GiB.
            self.queue.push(chain.head(), end.saturating_sub(done) as u32);
            self.held.spare(chain);
            done = end;
        }
        let (frames, bytes) = self.given;
        let len = len.saturating_sub(HEADER_BYTES) as u64;
        self.given = (frames.saturating_add(1), bytes.saturating_add(len));
    }
}
