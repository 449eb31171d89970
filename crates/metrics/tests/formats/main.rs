//! The two text forms, read as their readers would.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod json;
mod open_metrics;

use std::sync::Arc;
use std::time::Duration;

use kindling_metrics::{Group, metrics};

metrics! {
    /// Metrics of a disk.
    struct DiskMetrics {
        /// Requests that read.
        reads: Counter,
        /// Bytes read
        /// by them, "\" included.
        read_bytes: Counter,
        /// How long they took.
        read_latency: Latency,
        /// Requests under way.
        in_flight: Gauge,
    }
}

metrics! {
    /// Metrics of what a disk is attached to.
    struct TransportMetrics {
        /// Times it was reset.
        resets: Counter,
    }
}

metrics! {
    /// Metrics of something that there is one of.
    struct MemoryMetrics {
        /// Bytes in use.
        used_bytes: Gauge,
    }
}

fn group(
    subsystem: &'static str,
    id: Option<&str>,
    metrics: impl kindling_metrics::Metrics + 'static,
) -> Group {
    Group { subsystem, id: id.map(str::to_owned), metrics: Arc::new(metrics) }
}

/// Two disks, of which the second is `id`, each with its transport, and something without an id.
fn machine(id: &str) -> Vec<Group> {
    let disk = DiskMetrics::default();
    disk.reads.add(3);
    disk.read_bytes.add(4096);
    disk.in_flight.set(2);
    for microseconds in [10, 11, 20_000_000] {
        disk.read_latency.record(Duration::from_micros(microseconds));
    }
    let transport = TransportMetrics::default();
    transport.resets.increment();
    vec![
        group("block", Some("rootfs"), disk),
        group("block", Some("rootfs"), transport),
        group("memory", None, MemoryMetrics::default()),
        group("block", Some(id), DiskMetrics::default()),
        group("block", Some(id), TransportMetrics::default()),
    ]
}
