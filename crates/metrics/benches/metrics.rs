//! What counting costs a data path, and what formatting costs whoever asks.

#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use kindling_metrics::{Counter, Group, Header, Latency, json, metrics, open_metrics};

metrics! {
    /// About as much as a disk has.
    struct DiskMetrics {
        /// Requests.
        requests: Counter,
        /// Bytes.
        request_bytes: Counter,
        /// Failures.
        failures: Counter,
        /// Requests to read.
        reads: Counter,
        /// Bytes read.
        read_bytes: Counter,
        /// How long reading took.
        read_latency: Latency,
        /// Requests to write.
        writes: Counter,
        /// Bytes written.
        write_bytes: Counter,
        /// How long writing took.
        write_latency: Latency,
        /// Flushes.
        flushes: Counter,
        /// How long flushing took.
        flush_latency: Latency,
        /// Discards.
        discards: Counter,
        /// Bytes discarded.
        discarded_bytes: Counter,
        /// Resets.
        resets: Counter,
        /// Requests under way.
        in_flight: Gauge,
    }
}

const DEVICES: usize = 50;

fn bench(criterion: &mut Criterion) {
    let counter = Counter::new();
    criterion.bench_function("counter", |bencher| bencher.iter(|| counter.add(black_box(4096))));

    let latency = Latency::new();
    let mut took = Duration::ZERO;
    criterion.bench_function("latency", |bencher| {
        bencher.iter(|| {
            // All over the buckets, and a bit beyond.
            took = Duration::from_nanos(took.as_nanos() as u64 * 3 % 20_000_000_011 + 1_000);
            latency.record(black_box(took));
        });
    });

    let groups: Vec<Group> = (0..DEVICES)
        .map(|index| {
            let disk = DiskMetrics::default();
            for nanoseconds in (0..35).map(|shift| 1 << shift) {
                disk.requests.add(nanoseconds);
                disk.read_latency.record(Duration::from_nanos(nanoseconds));
            }
            Group { subsystem: "block", id: Some(format!("disk{index}")), metrics: Arc::new(disk) }
        })
        .collect();
    let header = Header { utc_timestamp_ms: 1_739_000_000_000, ..Header::default() };
    println!("{DEVICES} devices: {} bytes of JSON", json(&groups, &header).len());
    println!("{DEVICES} devices: {} bytes of OpenMetrics", open_metrics(&groups).len());
    criterion
        .bench_function("50 devices as JSON", |bencher| bencher.iter(|| json(black_box(&groups), &header)));
    criterion.bench_function("50 devices as OpenMetrics", |bencher| {
        bencher.iter(|| open_metrics(black_box(&groups)));
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
