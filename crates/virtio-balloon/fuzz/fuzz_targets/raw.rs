#![no_main]
//! Rings and descriptors of all queues are made of the fuzzer's bytes. Whatever they say, the device comes to an end with
//! them.

use kindling_virtio_balloon::{Balloon, Config};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Area, Inline, MockDriver};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let all = Config {
        amount_mib: 1,
        deflate_on_oom: true,
        statistics_interval_s: 3600,
        free_page_hinting: true,
        free_page_reporting: true,
    };
    let Ok(mut balloon) = Balloon::new(all) else { unreachable!("one MiB is not too much") };
    let driver = MockDriver::new(&balloon);
    let part = data.len() / driver.queues.len();
    for (index, queue) in driver.queues.iter().enumerate() {
        let bytes = &data[index * part..][..part];
        let (ring, table) = bytes.split_at(part.min(64));
        queue.overwrite(Area::Available, 0, ring);
        queue.overwrite(Area::Descriptors, 0, table.get(..2048).unwrap_or(table));
    }
    let Ok(workers) = balloon.activate(driver.activation()) else { unreachable!("all queues are there") };
    if let Ok(mut workers) = Inline::start(workers) {
        for round in 0..10 {
            driver.queues[round % driver.queues.len()].kick();
            if workers.step(0).is_err() {
                break;
            }
        }
    }
});
