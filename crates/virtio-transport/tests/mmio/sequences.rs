//! Any sequence of accesses, with the monitor's calls in between: nothing panics, and what must always hold does.

use std::time::{Duration, Instant};

use kindling_virtio_transport::Transport;
use proptest::prelude::*;
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

use crate::support::Guest;

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Register(u32, u32),
    Status(u32),
    Sleep,
    Wake,
    Reset,
    /// Saves the sleeping device and goes on with another.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![0_u32..0x40, Just(0x40)].prop_map(|word| word * 4);
    let value = prop_oneof![0_u32..4, Just(8), Just(0x1_0000), any::<u32>()];
    prop_oneof![
        2 => (any::<u64>(), 0_usize..9).prop_map(|(offset, width)| Step::Read(offset, width)),
        2 => (0_u64..0x120, 0_usize..9).prop_map(|(offset, width)| Step::Read(offset, width)),
        2 => (0_u64..0x120, prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, data)| Step::Write(offset, data)),
        8 => (register, value).prop_map(|(offset, value)| Step::Register(offset, value)),
        8 => prop::sample::select(vec![0, 1, 3, 0xb, 0xf, 0x8f, 0xff]).prop_map(Step::Status),
        1 => Just(Step::Sleep),
        1 => Just(Step::Wake),
        1 => Just(Step::Reset),
        1 => Just(Step::Move),
    ]
}

fn run(guest: Guest, step: &Step) -> Guest {
    let soon = || Instant::now() + Duration::from_secs(20);
    match step {
        Step::Read(offset, width) => guest.read(*offset, &mut vec![0; *width]),
        Step::Write(offset, data) => guest.write(*offset, data),
        Step::Register(offset, value) => guest.set(*offset, *value),
        Step::Status(value) => {
            if *value == 0xb {
                guest.accept(guest.offered());
            }
            guest.set(VIRTIO_MMIO_STATUS, *value);
        }
        Step::Sleep => guest.transport.sleep(soon()).unwrap(),
        Step::Wake => guest.transport.wake().unwrap(),
        Step::Reset => {
            guest.transport.reset(soon()).unwrap();
            assert_eq!(guest.status(), 0);
        }
        Step::Move => {
            guest.transport.sleep(soon()).unwrap();
            let state = guest.save().unwrap();
            let new = Guest::new();
            new.restore(&state).unwrap();
            assert_eq!(new.save().unwrap(), state);
            return new;
        }
    }
    guest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_accesses_leads_to_an_impossible_state(steps in prop::collection::vec(step(), 1..80)) {
        let mut guest = Guest::new();
        for step in steps {
            guest = run(guest, &step);
            let status = guest.status();
            let ladder = status & 0xf;
            prop_assert!([0, 1, 3, 0xb, 0xf].contains(&ladder), "status {status:#x}");
            prop_assert!(status & VIRTIO_CONFIG_S_NEEDS_RESET == 0 || ladder == 0xf, "status {status:#x}");
            prop_assert!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS) <= 3);
            for (features, _) in guest.log.activations.lock().unwrap().iter() {
                prop_assert!(features & !guest.offered() == 0 && features >> VIRTIO_F_VERSION_1 & 1 == 1);
            }
        }
    }
}
