//! Ways from one thread to another: a queue of what is asked for, and a place for one answer.
//!
//! Those of the standard library yield the processor (`sched_yield`) at moments that no test can bring about, and a filter
//! of system calls would have to allow that on the word of their source. These wait on a lock, and for an answer on a
//! condition variable.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::StopError;

/// What was asked for and not taken; nothing any more once it is closed.
pub(crate) struct Queue<T>(Mutex<Option<VecDeque<T>>>);

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(Mutex::new(Some(VecDeque::new())))
    }
}

impl<T> Queue<T> {
    /// Adds to the end, or drops what nobody will take.
    pub(crate) fn push(&self, item: T) {
        let refused = match lock(&self.0).as_mut() {
            Some(items) => {
                items.push_back(item);
                None
            }
            None => Some(item),
        };
        // Not under the lock: what is dropped may do anything.
        drop(refused);
    }

    /// Takes what has waited longest.
    pub(crate) fn pop(&self) -> Option<T> {
        lock(&self.0).as_mut()?.pop_front()
    }

    /// Drops what is there and what will come.
    pub(crate) fn close(&self) {
        let items = lock(&self.0).take();
        drop(items);
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

/// A place for one answer: who gives it, and who waits for it.
pub(crate) fn answer<T>() -> (Giver<T>, Taker<T>) {
    let place = Arc::new(Place { state: Mutex::new(State::Awaited(None)), changed: Condvar::new() });
    (Giver(Arc::clone(&place)), Taker(place))
}

struct Place<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    /// With what is to be written when it is no longer so.
    Awaited(Option<Arc<EventFd>>),
    Given(T),
    /// Taken, or never to come.
    Gone,
}

impl<T> Place<T> {
    fn set(&self, state: State<T>) {
        let before = std::mem::replace(&mut *lock(&self.state), state);
        self.changed.notify_all();
        if let State::Awaited(Some(event)) = &before {
            // Fails only when the counter is full, and then it is about to be read anyway.
            let _ = event.write(1);
        }
        drop(before);
    }
}

/// Gives an answer; who waits learns when it is dropped without.
pub(crate) struct Giver<T>(Arc<Place<T>>);

impl<T> Giver<T> {
    pub(crate) fn give(self, answer: T) {
        self.0.set(State::Given(answer));
    }
}

impl<T> Drop for Giver<T> {
    fn drop(&mut self) {
        let is_awaited = matches!(*lock(&self.0.state), State::Awaited(_));
        if is_awaited {
            self.0.set(State::Gone);
        }
    }
}

/// Waits for an answer.
pub(crate) struct Taker<T>(Arc<Place<T>>);

impl<T> Taker<T> {
    /// Waits until `deadline`. One can wait again after [`StopError::Deadline`].
    pub(crate) fn take(&self, deadline: Instant) -> Result<T, StopError> {
        let mut state = lock(&self.0.state);
        loop {
            match std::mem::replace(&mut *state, State::Gone) {
                State::Given(answer) => return Ok(answer),
                State::Gone => return Err(StopError::Gone),
                awaited => *state = awaited,
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest == Duration::ZERO {
                return Err(StopError::Deadline);
            }
            state = self.0.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has `event` written once, in place of any other: when the answer is there, or it turns out that none will come. For
    /// those who have other things to wait for.
    pub(crate) fn notify(&self, event: &Arc<EventFd>) {
        match &mut *lock(&self.0.state) {
            State::Awaited(whom) => *whom = Some(Arc::clone(event)),
            State::Given(_) => {
                // As above.
                let _ = event.write(1);
            }
            State::Gone => (),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn what_is_asked_for_comes_in_order_until_the_queue_is_closed() {
        let (queue, item) = (Queue::default(), Arc::new(()));
        (0..3).for_each(|number| queue.push((number, Arc::clone(&item))));
        assert_eq!(queue.pop().unwrap().0, 0);
        queue.close();
        queue.push((4, Arc::clone(&item)));
        assert!(queue.pop().is_none());
        assert_eq!(Arc::strong_count(&item), 1, "the rest was dropped");
    }

    #[test]
    fn an_answer_is_waited_for_again_and_again_and_taken_once() {
        let (giver, taker) = answer();
        assert!(matches!(taker.take(Instant::now()), Err(StopError::Deadline)));
        let thread = std::thread::spawn(move || giver.give(7));
        assert_eq!(taker.take(soon()).unwrap(), 7);
        assert!(matches!(taker.take(soon()), Err(StopError::Gone)));
        thread.join().unwrap();
    }

    #[test]
    fn who_waits_for_an_answer_that_will_not_come_learns_of_it() {
        let (giver, taker) = answer::<()>();
        let thread = std::thread::spawn(move || drop(giver));
        assert!(matches!(taker.take(soon()), Err(StopError::Gone)));
        thread.join().unwrap();
    }

    #[test]
    fn who_waits_for_something_else_as_well_is_notified_once() {
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (giver, taker) = answer();
        (0..2).for_each(|_| taker.notify(&event));
        assert!(event.read().is_err(), "it is not there");
        giver.give(1);
        assert_eq!(event.read().unwrap(), 1);
        taker.notify(&event);
        assert_eq!(event.read().unwrap(), 1, "it is there already");
        taker.take(Instant::now()).unwrap();
        taker.notify(&event);
        assert!(event.read().is_err(), "it was taken");

        let (giver, taker) = answer::<()>();
        taker.notify(&event);
        drop(giver);
        assert_eq!(event.read().unwrap(), 1, "it will not come");
        taker.notify(&event);
        assert!(event.read().is_err(), "that was told");
    }

    #[test]
    fn an_answer_that_nobody_takes_is_dropped() {
        let ((giver, taker), answer) = (answer(), Arc::new(()));
        drop(taker);
        giver.give(Arc::clone(&answer));
        assert_eq!(Arc::strong_count(&answer), 1);
    }
}
