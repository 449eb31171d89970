//! A place on the host where some of a guest's frames go instead of to the tap, such as a metadata service.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// Bytes at the beginning of a frame by which a [`Detour`] decides: enough for ARP, and for the address in a packet of IPv4.
pub const DETOUR_HEAD_BYTES: usize = 42;

/// The least time until a detour is asked again, so that one that always has something to do does not keep its thread busy.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// Takes frames of the guest, and has frames for it.
///
/// The workers of all queue pairs share it, each on a thread of its own. It must not wait for anything but a short lock, and keep
/// what it has for the guest within bounds: frames are only asked for when the guest has room for one.
pub trait Detour: Send + Sync {
    /// Whether it takes a frame of the guest that begins with `head`. Every frame that the guest sends is asked about, unless
    /// it is shorter, so that this had better take no lock at all.
    fn wants(&self, head: &[u8; DETOUR_HEAD_BYTES]) -> bool;

    /// Takes a frame of up to [`MAX_FRAME_BYTES`](crate::MAX_FRAME_BYTES), without the header of VIRTIO 1.2, 5.1.6. Its check
    /// sum may be partial, and it may have to be cut: the guest leaves both to others.
    fn receive(&self, now: Instant, frame: &[u8]);

    /// Writes the next frame for the guest to `buffer`, which has at least [`MAX_FRAME_BYTES`](crate::MAX_FRAME_BYTES), and
    /// returns how long it is; `None` if there is none at this time. Check sums are complete and nothing is left to be cut.
    fn next_frame(&self, now: Instant, buffer: &mut [u8]) -> Option<usize>;

    /// How long it takes until there may be a frame without the guest sending any, if that ever happens.
    fn next_timeout(&self, now: Instant) -> Option<Duration>;
}

/// What the workers of an activated device share.
pub(crate) struct SharedDetour {
    pub detour: Arc<dyn Detour>,
    /// Fires when the detour has to be asked for frames. The first worker watches it.
    timer: Mutex<TimerFd>,
}

impl SharedDetour {
    pub fn new(detour: &Arc<dyn Detour>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { detour: Arc::clone(detour), timer: Mutex::new(TimerFd::new()?) }))
    }

    /// Calls `watch` with the timer.
    pub fn with_timer<T>(&self, watch: impl FnOnce(&mut TimerFd) -> T) -> T {
        watch(&mut self.timer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the timer to what the detour says now. The lock makes sure that what was said last is what counts.
    pub fn set_timer(&self) {
        self.with_timer(|timer| {
            let timeout = self.detour.next_timeout(Instant::now());
            set(timer, timeout.map_or(Duration::ZERO, |timeout| timeout.max(MIN_TIMEOUT)));
        });
    }

    /// Forgets that the timer has fired.
    pub fn clear_timer(&self) {
        self.with_timer(|timer| set(timer, Duration::ZERO));
    }
}

/// Zero switches it off.
fn set(timer: &mut TimerFd, timeout: Duration) {
    let set = timer.reset(timeout, None);
    debug_assert!(set.is_ok(), "the descriptor is a timer");
}
