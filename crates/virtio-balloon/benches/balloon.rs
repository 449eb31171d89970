//! What it costs to take a request's worth of pages from a guest: 256 of them, as Linux sends them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_virtio_balloon::{Balloon, Config};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};

fn inflate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inflate");
    group.throughput(Throughput::Elements(256));
    for (name, stride) in [("neighbours", 1), ("scattered", 7)] {
        let Ok(mut balloon) = Balloon::new(Config::default()) else { return };
        let mut driver = MockDriver::new(&balloon);
        let Ok(workers) = balloon.activate(driver.activation()) else { return };
        let Ok(mut workers) = Inline::start(workers) else { return };
        let request: Vec<u8> = (0..256_u32).flat_map(|page| (40_000 + page * stride).to_le_bytes()).collect();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                driver.queues[0].add(&[Buffer::Readable(&request)]);
                let _ = workers.step(0);
                driver.queues[0].take_used()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, inflate);
criterion_main!(benches);
