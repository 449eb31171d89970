//! How long things took: how many of them by how long, in buckets whose bounds are the same everywhere, so that the
//! latencies of several devices, or machines, can be added up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Value;

/// Upper bounds of all buckets but the last, which has none: nanoseconds, and the same in seconds as OpenMetrics wants it
/// written ("Canonical Numbers"). From what memory takes to what makes a guest give up.
pub(crate) const BOUNDS: [(u64, &str); BUCKETS - 1] = [
    (10_000, "1e-05"),
    (20_000, "2e-05"),
    (50_000, "5e-05"),
    (100_000, "0.0001"),
    (200_000, "0.0002"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_000_000, "0.002"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (20_000_000, "0.02"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (200_000_000, "0.2"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1.0"),
    (2_000_000_000, "2.0"),
    (5_000_000_000, "5.0"),
    (10_000_000_000, "10.0"),
];

/// Buckets of a [`Latency`]: their upper bounds are 1, 2 and 5 times the powers of ten from 10 µs to 10 s, and the last has
/// none.
pub const BUCKETS: usize = 20;

/// How long something took, each time.
///
/// Any thread may record: that is two relaxed atomic additions, without a lock or an allocation.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Latency {
    /// One without samples.
    pub const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }

    /// Adds a sample.
    pub fn record(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|(bound, _)| *bound < nanoseconds);
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The samples so far, for a reader of metrics.
    pub fn value(&self) -> Value {
        Value::Latency(Distribution {
            buckets: self.buckets.each_ref().map(|count| count.load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        })
    }
}

/// The samples of a [`Latency`] at one time. While others record, the sum may lack a sample that a bucket has, or have one
/// that none has yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Samples up to each bound and above that before it.
    pub buckets: [u64; BUCKETS],
    /// Nanoseconds of all samples together.
    pub sum_ns: u64,
}

impl Distribution {
    /// The number of samples.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(latency: &Latency) -> Distribution {
        match latency.value() {
            Value::Latency(distribution) => distribution,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bound_belongs_to_its_bucket_and_what_exceeds_all_bounds_to_the_last() {
        for (index, (bound, _)) in BOUNDS.iter().enumerate() {
            let latency = Latency::new();
            latency.record(Duration::from_nanos(*bound));
            latency.record(Duration::from_nanos(bound + 1));
            let buckets = distribution(&latency).buckets;
            assert_eq!((buckets[index], buckets[index + 1]), (1, 1), "{bound}");
        }
        let latency = Latency::new();
        latency.record(Duration::ZERO);
        latency.record(Duration::MAX);
        let seen = distribution(&latency);
        assert_eq!((seen.buckets[0], seen.buckets[BUCKETS - 1], seen.count()), (1, 1, 2));
    }

    #[test]
    fn bounds_increase_and_are_written_as_the_number_they_are() {
        assert!(BOUNDS.is_sorted_by(|a, b| a.0 < b.0));
        for (nanoseconds, text) in BOUNDS {
            let seconds: f64 = text.parse().unwrap();
            assert_eq!((seconds * 1e9).round() as u64, nanoseconds);
        }
    }

    #[test]
    fn samples_of_many_threads_are_all_there_with_their_time() {
        let latency = Latency::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| latency.record(Duration::from_micros(30))));
            }
        });
        let seen = distribution(&latency);
        assert_eq!((seen.count(), seen.buckets[2], seen.sum_ns), (4_000, 4_000, 120_000_000));
    }
}
