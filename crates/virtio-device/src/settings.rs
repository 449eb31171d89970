//! What can be changed in a running device from outside: a rate limit, a file, a target.
//!
//! It is the wanted state that is shared, not messages about it. So nothing piles up while a device has no driver, a
//! driver that starts anew finds the present state, and each of several workers sees it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::EventFd;

/// The wanted state of one device. Its control side changes it, its workers subscribe to it.
#[derive(Debug)]
pub struct Settings<T> {
    inner: Mutex<Inner<T>>,
    /// Rises with each change, under the lock.
    generation: AtomicU64,
}

#[derive(Debug)]
struct Inner<T> {
    value: T,
    subscribers: Vec<Weak<EventFd>>,
}

/// A worker's view of its device's settings. Its descriptor is readable when they may have changed.
#[derive(Debug)]
pub struct Subscription<T> {
    settings: Arc<Settings<T>>,
    event: Arc<EventFd>,
    /// The generation that it has seen; 0, which is none, before the first look.
    seen: u64,
}

impl<T: Clone> Settings<T> {
    /// Settings that are `value` for now.
    pub fn new(value: T) -> Arc<Self> {
        let inner = Mutex::new(Inner { value, subscribers: Vec::new() });
        Arc::new(Self { inner, generation: AtomicU64::new(1) })
    }

    /// What they are now.
    pub fn get(&self) -> T {
        self.lock().value.clone()
    }

    /// Changes them, and wakes all subscribers. Whoever learns of the change only after this has returned finds that each
    /// subscriber is [stale](Subscription::is_stale), or has obeyed.
    pub fn change(&self, change: impl FnOnce(&mut T)) {
        let mut inner = self.lock();
        change(&mut inner.value);
        self.generation.fetch_add(1, Ordering::Release);
        for event in inner.subscribers.iter().filter_map(Weak::upgrade) {
            // Fails only when the counter is full, and then the subscriber is about to look anyway.
            let _ = event.write(1);
        }
    }

    /// A new subscriber, which has still to read what the settings are.
    ///
    /// # Errors
    ///
    /// When the host is out of descriptors.
    pub fn subscribe(self: &Arc<Self>) -> io::Result<Subscription<T>> {
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let mut inner = self.lock();
        inner.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        inner.subscribers.push(Arc::downgrade(&event));
        Ok(Subscription { settings: Arc::clone(self), event, seen: 0 })
    }

    /// A lock that outlives a panic of a `change`, which leaves a `T` behind, if not the wanted one.
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Subscription<T> {
    /// What the settings are now. The descriptor is quiet until they change again.
    pub fn latest(&mut self) -> T {
        // Fails when nothing has changed. In this order, a change after this line makes the descriptor readable again.
        let _ = self.event.read();
        let inner = self.settings.lock();
        self.seen = self.settings.generation.load(Ordering::Relaxed);
        inner.value.clone()
    }

    /// Whether the settings have changed since they were looked at. For a worker whose driver may be told of a change: it
    /// asks this for each request that it has taken, before it does it, since it may be in the middle of a batch. That costs a
    /// load from memory that nobody else writes.
    pub fn is_stale(&self) -> bool {
        self.settings.generation.load(Ordering::Acquire) != self.seen
    }
}

impl<T> AsRawFd for Subscription<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
