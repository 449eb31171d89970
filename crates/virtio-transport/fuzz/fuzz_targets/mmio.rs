#![no_main]
//! A guest accesses the registers as it likes, while the monitor lets the device sleep and wake, resets it, and restores
//! states that it should not trust.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use kindling_virtio_device::{
    ActivateError, Activation, ConfigSpace, Device, GuestMemory, Queue, QueueConfig, QueueState, Watch,
    Worker, WorkerError, WorkerSlot, WorkerThread, Workers,
};
use kindling_virtio_transport::{MmioTransport, QueueRegisters, Selectors, Transport, TransportState};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

kindling_metrics::metrics! {
    /// None.
    struct NoMetrics {
        /// Nothing.
        nothing: Counter,
    }
}

/// A device that asserts what it is promised, and does nothing. Its first queue is essential.
struct Idle(Arc<ConfigSpace>);

const FEATURES: u64 = 0xff;
const SIZES: [u16; 3] = [4, 256, 32_768];
const CONFIG: [u8; 5] = [1, 2, 3, 4, 5];
const VERSION_1: u64 = 1 << 32;
const OFFERED: u64 = FEATURES | VERSION_1 | 1 << 28 | 1 << 29 | 1 << 40;

impl Device for Idle {
    fn device_type(&self) -> u32 {
        63
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn workers(&self) -> Workers {
        Workers::Shared
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.0
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        assert!(offset as usize + data.len() <= CONFIG.len());
        self.0.update_by_driver(|bytes| bytes[offset as usize..][..data.len()].copy_from_slice(data));
    }

    fn metrics(&self) -> Arc<dyn kindling_metrics::Metrics> {
        Arc::new(NoMetrics::default())
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        assert_eq!(activation.features & !OFFERED, 0);
        assert!(activation.has_feature(32));
        assert!(activation.queues.is_sorted_by(|one, next| one.index() < next.index()));
        for queue in &activation.queues {
            assert!(queue.size() <= SIZES[usize::from(queue.index())]);
        }
        let first = activation.take_queue(0)?;
        Ok(vec![Box::new(IdleWorker([first].into_iter().chain(activation.queues).collect()))])
    }
}

struct IdleWorker(Vec<Queue>);

impl Worker for IdleWorker {
    fn start(&mut self, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        Ok(())
    }

    fn event(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        Ok(())
    }

    fn queues(&self) -> Vec<QueueState> {
        self.0.iter().map(Queue::state).collect()
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read {
        offset: u16,
        width: u8,
    },
    Write {
        offset: u16,
        data: [u8; 9],
        width: u8,
    },
    Register {
        word: u8,
        value: u32,
    },
    Status(u8),
    /// Goes as far as FEATURES_OK.
    Negotiate(u64),
    /// Sets up and enables a queue.
    SetUp {
        queue: u8,
        size: u8,
        page: u8,
    },
    Sleep,
    Wake,
    Reset,
    Move,
    Restore(Box<State>),
}

#[derive(Arbitrary, Debug)]
struct State {
    queues: Option<[SavedQueue; 3]>,
    status: u8,
    features: u64,
    selectors: [u32; 3],
    interrupt_status: u8,
    config: Vec<u8>,
    generation: u32,
}

#[derive(Arbitrary, Debug)]
struct SavedQueue {
    size: u16,
    rings: [u64; 3],
    positions: [u16; 2],
    ready: bool,
    reset: bool,
}

impl SavedQueue {
    fn into_registers(self, index: u16) -> QueueRegisters {
        let [descriptor_table, available_ring, used_ring] = self.rings;
        let [next_available, next_used] = self.positions;
        let config = QueueConfig { size: self.size, descriptor_table, available_ring, used_ring };
        let state = QueueState { index, config, next_available, next_used };
        QueueRegisters { state, ready: self.ready, reset: self.reset }
    }
}

impl State {
    fn into_state(self, mut present: TransportState) -> TransportState {
        if let Some(queues) = self.queues {
            present.queues = (0..).zip(queues).map(|(index, queue)| queue.into_registers(index)).collect();
        }
        let [device_features, driver_features, queue] = self.selectors;
        TransportState {
            status: self.status.into(),
            driver_features: self.features,
            selectors: Selectors { device_features, driver_features, queue },
            interrupt_status: self.interrupt_status.into(),
            config: self.config,
            config_generation: self.generation,
            ..present
        }
    }
}

fn place() -> (Arc<GuestMemory>, WorkerSlot) {
    static PLACE: OnceLock<(Arc<GuestMemory>, WorkerThread)> = OnceLock::new();
    let (memory, thread) = PLACE.get_or_init(|| {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap();
        (Arc::new(memory), WorkerThread::spawn("fuzz", || Ok(())).unwrap())
    });
    (Arc::clone(memory), thread.slot())
}

fn new() -> MmioTransport {
    let (memory, slot) = place();
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let late = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    MmioTransport::new(Box::new(Idle(ConfigSpace::new(&CONFIG))), memory, vec![slot], line, late).unwrap()
}

fn get(transport: &MmioTransport, offset: u64) -> u32 {
    let mut value = [0; 4];
    transport.read(offset, &mut value);
    u32::from_le_bytes(value)
}

fn set(transport: &MmioTransport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

/// Every worker comes back at once.
fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn run(transport: MmioTransport, step: Step) -> MmioTransport {
    match step {
        Step::Read { offset, width } => {
            let mut data = [0xee; 9];
            transport.read(offset.into(), &mut data[..usize::from(width % 10)]);
        }
        Step::Write { offset, data, width } => {
            transport.write(offset.into(), &data[..usize::from(width % 10)]);
        }
        Step::Register { word, value } => set(&transport, u64::from(word % 0x44) * 4, value),
        Step::Status(value) => set(&transport, 0x70, value.into()),
        Step::Negotiate(features) => {
            set(&transport, 0x70, 0);
            set(&transport, 0x70, 3);
            let features = features & OFFERED | VERSION_1;
            for half in [0, 1] {
                set(&transport, 0x24, half);
                set(&transport, 0x20, (features >> (32 * half)) as u32);
            }
            set(&transport, 0x70, 0xb);
            assert_eq!(get(&transport, 0x70), 0xb);
        }
        Step::SetUp { queue, size, page } => {
            set(&transport, 0x30, (queue % 4).into());
            set(&transport, 0x38, 1 << (size % 17));
            for (part, offset) in [(0, 0x80), (1, 0x90), (2, 0xa0)] {
                set(&transport, offset, (u32::from(page) + 16 * part) << 12);
            }
            set(&transport, 0x44, 1);
        }
        Step::Sleep => transport.sleep(deadline()).unwrap(),
        Step::Wake => transport.wake().unwrap(),
        Step::Reset => {
            transport.reset(deadline()).unwrap();
            assert_eq!(get(&transport, 0x70), 0);
        }
        Step::Move => return move_to_another(&transport),
        Step::Restore(state) => {
            let other = new();
            other.sleep(deadline()).unwrap();
            let before = other.save().unwrap();
            let state = state.into_state(before.clone());
            match other.restore(&state) {
                Ok(()) => return move_to_another(&other),
                Err(_) => assert_eq!(other.save().unwrap(), before),
            }
        }
    }
    transport
}

fn move_to_another(transport: &MmioTransport) -> MmioTransport {
    transport.sleep(deadline()).unwrap();
    let state = transport.save().unwrap();
    let other = new();
    other.restore(&state).unwrap();
    assert_eq!(other.save().unwrap(), state);
    other
}

fn check(transport: &MmioTransport) {
    let status = get(transport, 0x70);
    assert!(matches!(status & 0x3f, 0 | 1 | 3 | 0xb | 0xf), "status {status:#x}");
    assert!(status & 0x40 == 0 || status & 0xf == 0xf, "status {status:#x}");
    assert!(status <= 0xff);
    assert!(get(transport, 0x60) <= 3);
    assert!(get(transport, 0x44) == 0 || status & 8 != 0, "a queue before FEATURES_OK");
}

fuzz_target!(|data: &[u8]| {
    let mut data = Unstructured::new(data);
    let mut transport = new();
    while !data.is_empty() {
        let Ok(step) = Step::arbitrary(&mut data) else { break };
        transport = run(transport, step);
        check(&transport);
    }
});
