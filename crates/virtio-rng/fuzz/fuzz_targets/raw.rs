#![no_main]
//! Rings and descriptors are made of the fuzzer's bytes. Whatever they say, the device comes to an end with them.

use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Area, Inline, MockDriver};
use kindling_virtio_rng::{Limits, Rng};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut rng) = Rng::new(Limits::default()) else { return };
    let driver = MockDriver::new(&rng);
    let queue = &driver.queues[0];
    let (ring, table) = data.split_at(data.len().min(64));
    queue.overwrite(Area::Available, 0, ring);
    queue.overwrite(Area::Descriptors, 0, table.get(..8192).unwrap_or(table));
    let Ok(workers) = rng.activate(driver.activation()) else { unreachable!("all queues are there") };
    if let Ok(mut workers) = Inline::start(workers) {
        for _ in 0..4 {
            queue.kick();
            if workers.step(0).is_err() {
                break;
            }
        }
    }
});
