//! How many lines each place in the source may write. A guest that provokes one line again and again must not fill a disk
//! with it, nor hide the others behind it.
//!
//! A place has a burst and then a line a second, by a token bucket of its own. Places are remembered as they come, a bounded
//! number of them: one whose bucket has filled up again makes room for another. So all places together are bounded too.

use kindling_rate_limiter::{BucketConfig, TokenBucket};

/// A file and a line of it.
pub type Place = (&'static str, u32);

/// Ten lines at once, and one a second.
const BUCKET: BucketConfig =
    BucketConfig { size: BURST, refill_time: std::time::Duration::from_secs(BURST), one_time_burst: 0 };
const BURST: u64 = 10;

/// Places that are remembered: more than there are in the program. Lines of further ones are left out while all of these
/// write too much.
const PLACES_MAX: usize = 64;

/// The places that wrote lately.
#[derive(Debug, Default)]
pub struct Places(Vec<Usage>);

#[derive(Debug)]
struct Usage {
    place: Place,
    bucket: TokenBucket,
    /// Lines that were left out since the last that was not.
    left_out: u64,
}

impl Places {
    /// Whether `place` may write a line at the moment `now`, in nanoseconds of any clock; and if so, how many of its lines
    /// were left out before.
    pub fn admit(&mut self, place: Place, now: u64) -> Option<u64> {
        let usage = self.usage(place, now)?;
        if usage.bucket.wait(1, now) > 0 {
            usage.left_out += 1;
            return None;
        }
        usage.bucket.take(1);
        Some(std::mem::take(&mut usage.left_out))
    }

    /// The places that had lines left out, and how many since their last line. They start again from none.
    pub fn take_left_out(&mut self) -> impl Iterator<Item = (Place, u64)> {
        let taken = self.0.iter_mut().map(|usage| (usage.place, std::mem::take(&mut usage.left_out)));
        taken.filter(|(_, left_out)| *left_out > 0)
    }

    fn usage(&mut self, place: Place, now: u64) -> Option<&mut Usage> {
        let mut index = self.0.iter().position(|usage| usage.place == place);
        if index.is_none() {
            let new = Usage { place, bucket: TokenBucket::new(BUCKET, now).ok()?, left_out: 0 };
            if self.0.len() < PLACES_MAX {
                self.0.push(new);
                index = Some(self.0.len() - 1);
            } else {
                index = self.0.iter_mut().position(|usage| usage.is_idle(now));
                *self.0.get_mut(index?)? = new;
            }
        }
        self.0.get_mut(index?)
    }
}

impl Usage {
    /// Whether forgetting it changes nothing.
    fn is_idle(&mut self, now: u64) -> bool {
        self.left_out == 0 && self.bucket.wait(BURST, now) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn admitted(places: &mut Places, place: Place, lines: usize, now: u64) -> usize {
        (0..lines).filter(|_| places.admit(place, now).is_some()).count()
    }

    #[test]
    fn a_place_has_a_burst_and_then_a_line_a_second_which_counts_those_left_out() {
        let mut places = Places::default();
        assert_eq!(admitted(&mut places, ("a.rs", 1), 1_000, 0), 10);
        assert_eq!(places.admit(("a.rs", 1), SECOND - 1), None);
        assert_eq!(places.admit(("a.rs", 1), SECOND), Some(991));
        assert_eq!(places.admit(("a.rs", 1), SECOND), None);
        assert_eq!(places.admit(("a.rs", 1), 2 * SECOND), Some(1));
        assert_eq!(admitted(&mut places, ("a.rs", 1), 1_000, 1_000 * SECOND), 10);
    }

    #[test]
    fn one_place_does_not_use_up_anothers_lines() {
        let mut places = Places::default();
        admitted(&mut places, ("a.rs", 1), 1_000, 0);
        for place in [("a.rs", 2), ("b.rs", 1)] {
            assert_eq!(admitted(&mut places, place, 1_000, 0), 10);
        }
    }

    #[test]
    fn places_are_remembered_while_it_matters_and_are_a_bounded_number() {
        let mut places = Places::default();
        let busy = (0..).map(|line| ("a.rs", line)).take(PLACES_MAX);
        for place in busy {
            admitted(&mut places, place, 2, 0);
        }
        assert_eq!(places.admit(("b.rs", 1), SECOND), None);
        assert_eq!(admitted(&mut places, ("b.rs", 1), 1_000, 2 * SECOND), 10);
        assert_eq!(places.0.len(), PLACES_MAX);
    }

    #[test]
    fn what_was_left_out_at_last_can_be_asked_for_once() {
        let mut places = Places::default();
        admitted(&mut places, ("a.rs", 1), 15, 0);
        admitted(&mut places, ("b.rs", 2), 1, 0);
        assert_eq!(places.take_left_out().collect::<Vec<_>>(), [(("a.rs", 1), 5)]);
        assert_eq!(places.take_left_out().count(), 0);
        assert_eq!(places.admit(("a.rs", 1), SECOND), Some(0));
    }
}
