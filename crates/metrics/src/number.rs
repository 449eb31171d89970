//! Metrics that are one number: what was counted, and how much there is.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Value;

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

    /// The same, for a reader of metrics.
    pub fn value(&self) -> Value {
        Value::Counter(self.get())
    }
}

/// A level that goes up and down, at 0 when its owner is made. Any thread may change it, as cheaply as a [`Counter`].
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// A gauge at 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Makes it `level`.
    pub fn set(&self, level: u64) {
        self.0.store(level, Ordering::Relaxed);
    }

    /// Raises it by `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Lowers it by `amount`, which must have been part of it.
    pub fn subtract(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    /// The present level.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The same, for a reader of metrics.
    pub fn value(&self) -> Value {
        Value::Gauge(self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_gauge_goes_up_and_down() {
        let gauge = Gauge::new();
        gauge.add(5);
        gauge.subtract(2);
        assert_eq!(gauge.value(), Value::Gauge(3));
        gauge.set(9);
        gauge.subtract(9);
        assert_eq!(gauge.get(), 0);
    }
}
