//! Work that is done on all processors.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// How many processors this machine has.
pub fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Does `work` with every item, at most `places` at a time and the first ones first. Returns what comes of them in their order.
pub fn in_parallel<T, R>(
    items: impl IntoIterator<Item = T, IntoIter: Send>,
    places: usize,
    work: impl Fn(usize, T) -> R + Sync,
) -> Vec<R>
where
    R: Send,
{
    let waiting = Mutex::new(items.into_iter().enumerate());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || std::iter::from_fn(next).map(|(index, item)| (index, work(index, item))).collect();
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..places).map(|_| scope.spawn(work)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<_>>| {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_than_there_are_places_for_are_done_at_a_time_and_all_in_order() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let done = in_parallel(0..9, 3, |index, item| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(10 - item));
            now.fetch_sub(1, Ordering::SeqCst);
            (index, item)
        });
        assert_eq!(done, (0..9).map(|item| (item as usize, item)).collect::<Vec<_>>());
        assert!((2..=3).contains(&most.into_inner()));
    }
}
