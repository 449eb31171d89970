#![doc = include_str!("../README.md")]

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, from 0 when its owner is made. It wraps at 2^64, which no counter here lives to see.
///
/// Any thread may add to it: adding is one relaxed atomic instruction, and says nothing about the order of other memory
/// accesses.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// What has been counted.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A group of counters, such as those of one device.
pub trait Metrics: Send + Sync {
    /// Calls `visit` with the name, the description and the present value of each, always in the same order.
    fn visit(&self, visit: &mut dyn FnMut(&'static str, &'static str, u64));
}

/// Declares a group of [`Counter`]s: a struct whose fields' documentation is at the same time what a reader of the
/// metrics is told about them.
///
/// ```
/// kindling_metrics::counters! {
///     /// What a door did.
///     pub struct DoorMetrics {
///         /// Times it was opened.
///         opened,
///         /// Times it was found locked.
///         refused,
///     }
/// }
/// let door = DoorMetrics::default();
/// door.opened.increment();
/// ```
#[macro_export]
macro_rules! counters {
    (
        $(#[doc = $about:literal])*
        $visibility:vis struct $name:ident {
            $($(#[doc = $help:literal])+ $field:ident),+ $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[doc = $help])+ pub $field: $crate::Counter,)+
        }

        impl $crate::Metrics for $name {
            fn visit(&self, visit: &mut dyn FnMut(&'static str, &'static str, u64)) {
                $(visit(stringify!($field), concat!($($help),+).trim_ascii(), self.$field.get());)+
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    counters! {
        /// Counters of a test.
        struct TestMetrics {
            /// Things read.
            reads,
            /// Things written
            /// and kept.
            writes,
        }
    }

    #[test]
    fn a_group_names_describes_and_counts_its_members_in_order() {
        let metrics = TestMetrics::default();
        metrics.writes.add(41);
        metrics.writes.increment();
        let mut seen = Vec::new();
        metrics.visit(&mut |name, help, value| seen.push((name, help, value)));
        assert_eq!(seen, [("reads", "Things read.", 0), ("writes", "Things written and kept.", 42)]);
    }

    #[test]
    fn counts_from_many_threads_are_all_there() {
        let counter = Counter::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| counter.increment()));
            }
        });
        assert_eq!(counter.get(), 4_000);
    }
}
