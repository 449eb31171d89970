#![no_main]
//! A driver sends requests of any shape on all queues, writes to the configuration space, and accepts any features, while
//! the host gives commands and the device sleeps and wakes. Each chain comes back, but for one of statistics.

use arbitrary::Arbitrary;
use kindling_virtio_balloon::{Balloon, Config};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Send { queue: u8, readable: Vec<u8>, split: u8, writable: Option<u16>, indirect: bool },
    Command { queue: u8, value: u8 },
    Run,
    Sleep,
    WriteConfig { offset: u8, data: [u8; 4], len: u8 },
    Amount(u32),
    Hint(bool),
    StopHinting,
}

fuzz_target!(|input: (u8, Vec<Step>)| {
    let (features, steps) = input;
    let all = Config {
        amount_mib: 1,
        deflate_on_oom: true,
        statistics_interval_s: 3600,
        free_page_hinting: true,
        free_page_reporting: true,
    };
    let Ok(mut balloon) = Balloon::new(all) else { unreachable!("one MiB is not too much") };
    let control = balloon.control();
    let accepted = (u64::from(features) & balloon.features()) | COMMON_FEATURES;
    let mut driver = MockDriver::with_features(&balloon, accepted);
    let Ok(workers) = balloon.activate(driver.activation()) else { unreachable!("all queues are there") };
    let Ok(mut workers) = Inline::start(workers) else { unreachable!("nothing is wrong yet") };
    // Those that the features leave out are not looked at.
    let count = 2 + u8::try_from((accepted & 0b10_1010).count_ones()).unwrap_or(0);
    let mut sent = 0;
    for step in steps.into_iter().take(100) {
        match step {
            Step::Send { queue, mut readable, split, writable, indirect } => {
                // A driver that gives up the pages of its own rings has no more to say: only pages at the end of memory
                // and beyond.
                readable.iter_mut().skip(1).step_by(4).for_each(|byte| *byte |= 0xf0);
                let queue = &mut driver.queues[usize::from(queue % count)];
                let (first, second) = readable.split_at(readable.len().min(split.into()));
                let mut buffers = vec![Buffer::Readable(first), Buffer::Readable(second)];
                buffers.extend(writable.map(|len| Buffer::Writable(len.into())));
                if indirect {
                    queue.add_indirect(&buffers);
                } else if sent < 20 {
                    sent += 1;
                    queue.add(&buffers);
                }
            }
            // Where they are no page numbers.
            Step::Command { queue, value } if queue % count >= 2 => {
                let queue = &mut driver.queues[usize::from(queue % count)];
                queue.add_indirect(&[Buffer::Readable(&[value, 0, 0, 0])]);
            }
            Step::Command { .. } => {}
            Step::Run => assert!(workers.run(50).is_ok()),
            Step::Sleep => match Inline::start(workers.stop()) {
                Ok(awake) => workers = awake,
                Err(error) => unreachable!("{error}"),
            },
            Step::WriteConfig { offset, data, len } => {
                let target = control.target_pages();
                balloon.write_config(offset.into(), &data[..usize::from(len % 5)]);
                assert_eq!(control.target_pages(), target);
            }
            Step::Amount(amount) => {
                let before = control.target_pages();
                match control.set_amount_mib(amount) {
                    Ok(()) => assert_eq!(u64::from(control.target_pages()), u64::from(amount) * 256),
                    Err(_) => assert_eq!(control.target_pages(), before),
                }
            }
            Step::Hint(acknowledge) => assert!(control.start_hinting(acknowledge).is_ok()),
            Step::StopHinting => assert!(control.stop_hinting().is_ok()),
        }
    }
    assert!(workers.run(100).is_ok());
    drop(workers.stop());
    for queue in driver.queues.iter_mut().take(count.into()) {
        while let Some(used) = queue.take_used() {
            assert_eq!(used.written, 0);
        }
        assert_eq!(queue.outstanding(), 0, "a chain was lost");
    }
});
