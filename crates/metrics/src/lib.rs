#![doc = include_str!("../README.md")]

mod json;
mod latency;
mod number;
mod open_metrics;

use std::sync::Arc;

pub use json::{Header, json};
pub use latency::{BUCKETS, Distribution, Latency};
pub use number::{Counter, Gauge};
pub use open_metrics::{OPEN_METRICS_CONTENT_TYPE, open_metrics};

/// What a metric is, and its present value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// How often something happened, or how much of it there was, so far.
    Counter(u64),
    /// How much of something there is.
    Gauge(u64),
    /// How long something took, each time.
    Latency(Distribution),
}

impl Value {
    /// The one number that says most: of a latency, how often there was something to time.
    pub fn number(&self) -> u64 {
        match self {
            Value::Counter(value) | Value::Gauge(value) => *value,
            Value::Latency(distribution) => distribution.count(),
        }
    }
}

/// A group of metrics, such as those of one device. [`metrics!`] declares one; a level that has to be asked for, such as a
/// process's memory, has an implementation by hand that asks.
pub trait Metrics: Send + Sync {
    /// Calls `visit` with the name, the description and the present value of each, always in the same order.
    ///
    /// A name is in snake case and ends in its unit, `_bytes` or `_seconds`, if it has one. It does not end in `_total`,
    /// `_count`, `_sum`, `_bucket` or `_created`, which OpenMetrics reserves.
    fn visit(&self, visit: &mut dyn FnMut(&'static str, &'static str, Value));

    /// The present value of the metric called `name`.
    fn value(&self, name: &str) -> Option<Value> {
        let mut found = None;
        self.visit(&mut |each, _, value| {
            if each == name {
                found = Some(value);
            }
        });
        found
    }
}

/// A group and whose it is.
///
/// Several groups of one subsystem and id appear as one, so a device's metrics and its transport's can be both. Their names
/// must differ then, and one subsystem means the same by one name throughout.
#[derive(Clone)]
pub struct Group {
    /// The part of the monitor, in snake case: `block`.
    pub subsystem: &'static str,
    /// Which one it is where there can be several: `rootfs`.
    pub id: Option<String>,
    /// What it counts.
    pub metrics: Arc<dyn Metrics>,
}

impl Group {
    fn key(&self) -> (&str, Option<&str>) {
        (self.subsystem, self.id.as_deref())
    }
}

/// Declares a group of [`Counter`]s, [`Gauge`]s and [`Latency`]s: a struct whose fields' documentation is at the same time
/// what a reader of the metrics is told about them.
///
/// ```
/// kindling_metrics::metrics! {
///     /// What a door did.
///     pub struct DoorMetrics {
///         /// Times it was opened.
///         opened: Counter,
///         /// People who wait before it.
///         waiting: Gauge,
///         /// How long they waited.
///         wait_latency: Latency,
///     }
/// }
/// let door = DoorMetrics::default();
/// door.opened.increment();
/// door.waiting.set(3);
/// door.wait_latency.record(std::time::Duration::from_millis(20));
/// ```
#[macro_export]
macro_rules! metrics {
    (
        $(#[doc = $about:literal])*
        $visibility:vis struct $name:ident {
            $($(#[doc = $help:literal])+ $field:ident: $kind:ident),+ $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[doc = $help])+ pub $field: $crate::$kind,)+
        }

        impl $crate::Metrics for $name {
            fn visit(&self, visit: &mut dyn FnMut(&'static str, &'static str, $crate::Value)) {
                $(visit(stringify!($field), concat!($($help),+).trim_ascii(), self.$field.value());)+
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    metrics! {
        /// Metrics of a test.
        struct TestMetrics {
            /// Things read.
            reads: Counter,
            /// Things written
            /// and kept.
            writes: Counter,
            /// Things open.
            open: Gauge,
            /// How long things took.
            latency: Latency,
        }
    }

    #[test]
    fn a_group_names_describes_and_counts_its_members_in_order() {
        let metrics = TestMetrics::default();
        metrics.writes.add(41);
        metrics.writes.increment();
        metrics.open.set(7);
        metrics.latency.record(Duration::from_secs(1));
        let mut seen = Vec::new();
        metrics.visit(&mut |name, help, value| seen.push((name, help, value)));
        assert_eq!(
            seen,
            [
                ("reads", "Things read.", Value::Counter(0)),
                ("writes", "Things written and kept.", Value::Counter(42)),
                ("open", "Things open.", Value::Gauge(7)),
                ("latency", "How long things took.", metrics.latency.value()),
            ]
        );
    }

    #[test]
    fn a_metric_is_found_by_its_name() {
        let metrics = TestMetrics::default();
        metrics.reads.increment();
        metrics.latency.record(Duration::from_secs(1));
        assert_eq!(metrics.value("reads"), Some(Value::Counter(1)));
        assert_eq!(metrics.value("latency").map(|value| value.number()), Some(1));
        assert_eq!(metrics.value("read"), None);
    }
}
