#![no_main]
//! A driver that keeps to the protocol asks for random bytes in any shape, while the device sleeps and wakes and its
//! limits change. Each chain comes back once, with what it has room for.

use std::time::Duration;

use arbitrary::Arbitrary;
use kindling_rate_limiter::BucketConfig;
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_rng::{Limits, REQUEST_MAX, Rng};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Ask { readable: Option<u8>, writable: Vec<u16>, indirect: bool },
    Run,
    Take,
    Sleep,
    Limit { size: u16 },
    Unlimit,
}

fuzz_target!(|steps: Vec<Step>| {
    let Ok(mut rng) = Rng::new(Limits::default()) else { return };
    let control = rng.control();
    let mut driver = MockDriver::new(&rng);
    let Ok(workers) = rng.activate(driver.activation()) else { unreachable!("all queues are there") };
    let Ok(mut workers) = Inline::start(workers) else { unreachable!("nothing is wrong yet") };
    let take = |driver: &mut MockDriver| {
        while let Some(used) = driver.queues[0].take_used() {
            let room = u32::try_from(used.data.len()).unwrap_or(u32::MAX);
            assert_eq!(used.written, room.min(REQUEST_MAX));
        }
    };
    let (mut asked, mut budget) = (0, 1 << 20);
    for step in steps.into_iter().take(200) {
        match step {
            Step::Ask { readable, writable, indirect } => {
                let mut buffers: Vec<_> = writable
                    .iter()
                    .take(8)
                    .map(|len| Buffer::Writable(u32::from(*len)))
                    .take_while(|buffer| match buffer {
                        Buffer::Writable(len) if budget >= *len => {
                            budget -= len;
                            true
                        }
                        _ => false,
                    })
                    .collect();
                let bytes = [0; 256];
                if let Some(len) = readable {
                    buffers.insert(0, Buffer::Readable(&bytes[..usize::from(len)]));
                }
                if buffers.is_empty() || asked == 20 {
                    continue;
                }
                asked += 1;
                if indirect {
                    driver.queues[0].add_indirect(&buffers);
                } else {
                    driver.queues[0].add(&buffers);
                }
            }
            Step::Run => assert!(workers.run(50).is_ok()),
            Step::Take => {
                take(&mut driver);
                asked = driver.queues[0].outstanding();
            }
            Step::Sleep => match Inline::start(workers.stop()) {
                Ok(awake) => workers = awake,
                Err(error) => unreachable!("{error}"),
            },
            Step::Limit { size } => {
                let bucket = BucketConfig {
                    size: u64::from(size) + 1,
                    refill_time: Duration::from_micros(1),
                    one_time_burst: 0,
                };
                let limits = Limits { bandwidth: Some(bucket), ops: Some(bucket) };
                assert!(control.set_limits(limits).is_ok());
            }
            Step::Unlimit => assert!(control.set_limits(Limits::default()).is_ok()),
        }
    }
    assert!(control.set_limits(Limits::default()).is_ok());
    assert!(workers.run(1000).is_ok());
    take(&mut driver);
    assert_eq!(driver.queues[0].outstanding(), 0, "a request was lost");
    assert!(!driver.interrupt.is_reset_needed());
});
