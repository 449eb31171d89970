//! What a request for random bytes costs, the driver's side included.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_rng::{Limits, Rng};

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for bytes in [16, 4096, 65_536] {
        let Ok(mut rng) = Rng::new(Limits::default()) else { return };
        let mut driver = MockDriver::new(&rng);
        let Ok(workers) = rng.activate(driver.activation()) else { return };
        let Ok(mut workers) = Inline::start(workers) else { return };
        group.throughput(Throughput::Bytes(bytes.into()));
        group.bench_function(bytes.to_string(), |bencher| {
            bencher.iter(|| {
                driver.queues[0].add(&[Buffer::Writable(bytes)]);
                let _ = black_box(workers.step(0));
                black_box(driver.queues[0].take_used())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
