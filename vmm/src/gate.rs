//! Whether the vCPUs of a guest run, rest, or end: what the event loop tells their threads.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use crate::devices::lock;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const ENDED: u8 = 2;

/// What every vCPU thread passes before it enters the guest.
///
/// A thread that is in the guest has to be kicked out of it to take notice.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU8,
    /// Threads that rest. The state changes under this lock only, so that none that waits misses it.
    resting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Waits while the gate is closed, calling `rest` before if it is. Returns whether to go on.
    ///
    /// It can be closed again by the time this returns: whoever closes it kicks the threads, so that they come by once more.
    pub fn pass(&self, rest: impl FnOnce()) -> bool {
        if self.state.load(Ordering::SeqCst) == CLOSED {
            rest();
            let mut resting = lock(&self.resting);
            *resting = resting.saturating_add(1);
            self.changed.notify_all();
            while self.state.load(Ordering::SeqCst) == CLOSED {
                resting = self.changed.wait(resting).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            *resting = resting.saturating_sub(1);
        }
        !self.has_ended()
    }

    /// Has threads rest that come by from now on.
    pub fn close(&self) {
        self.set(CLOSED);
    }

    /// Lets all threads pass.
    pub fn open(&self) {
        self.set(OPEN);
    }

    /// Has all threads end, for good: it can be neither closed nor opened any more.
    pub fn end(&self) {
        self.set(ENDED);
    }

    /// Whether they shall end.
    pub fn has_ended(&self) -> bool {
        self.state.load(Ordering::SeqCst) == ENDED
    }

    /// Waits until `count` threads rest, until `deadline` or the end at most. Returns whether they do.
    pub fn wait_for(&self, count: usize, deadline: Instant) -> bool {
        let mut resting = lock(&self.resting);
        while *resting < count {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() || self.has_ended() {
                return false;
            }
            let waited = self.changed.wait_timeout(resting, rest);
            resting = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        true
    }

    fn set(&self, state: u8) {
        let _resting = lock(&self.resting);
        if !self.has_ended() {
            self.state.store(state, Ordering::SeqCst);
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    #[test]
    fn threads_rest_while_it_is_closed_and_end_when_it_ends() {
        let (gate, turns) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, turns) = (Arc::clone(&gate), Arc::clone(&turns));
                std::thread::spawn(move || {
                    let mut rests = 0;
                    while gate.pass(|| rests += 1) {
                        turns.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                    }
                    rests
                })
            })
            .collect();
        let soon = || Instant::now() + Duration::from_secs(10);
        for _ in 0..5 {
            gate.close();
            assert!(gate.wait_for(3, soon()));
            let before = turns.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(turns.load(Ordering::SeqCst), before);
            gate.open();
            while turns.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
        }
        gate.close();
        assert!(gate.wait_for(3, soon()));
        assert!(!gate.wait_for(4, Instant::now()));
        gate.end();
        assert!(!gate.wait_for(4, soon()));
        for thread in threads {
            assert!(thread.join().unwrap() >= 1);
        }
        gate.close();
        assert!(!gate.wait_for(1, soon()) && !gate.pass(|| ()), "the end is final");
    }
}
