//! What a request costs a limiter: with nothing to limit, admitted by both buckets, and refused by one.

#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use kindling_rate_limiter::{BucketConfig, Clock, Monotonic, RateLimiter};

fn consume(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consume");

    let mut unlimited = RateLimiter::unlimited();
    group.bench_function("unlimited", |bencher| bencher.iter(|| unlimited.consume(black_box(4096))));

    let plenty = BucketConfig { size: 1 << 60, refill_time: Duration::from_millis(1), one_time_burst: 0 };
    let mut limited = RateLimiter::new(Some(plenty), Some(plenty)).expect("a limiter");
    group.bench_function("admitted", |bencher| bencher.iter(|| limited.consume(black_box(4096))));

    let scant = BucketConfig { size: 1 << 20, refill_time: Duration::from_secs(1 << 30), one_time_burst: 0 };
    let mut exhausted = RateLimiter::new(Some(scant), Some(plenty)).expect("a limiter");
    assert!(exhausted.consume(1 << 20));
    group.bench_function("refused", |bencher| bencher.iter(|| exhausted.consume(black_box(4096))));
    group.bench_function("refused, setting the timer", |bencher| {
        bencher.iter(|| {
            exhausted.on_timer();
            exhausted.consume(black_box(4096))
        });
    });

    // Most of what the limited ones cost.
    group.bench_function("clock alone", |bencher| bencher.iter(|| Monotonic.now()));
    group.finish();
}

criterion_group!(benches, consume);
criterion_main!(benches);
