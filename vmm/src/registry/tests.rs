//! Devices that hold up a pause.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use kindling_api::VmConfig;
use kindling_metrics::Metrics;
use kindling_seccomp_profiles::{Filters, Level};
use kindling_virtio_device::{
    ActivateError, Activation, ConfigSpace, QueueState, Watch, Worker, WorkerError,
};
use kindling_virtio_transport::TransportMetrics;
use vm_memory::GuestAddress;
use vmm_sys_util::epoll::EventSet;

use super::*;
use crate::Launch;
use crate::landlock::Landlock;

/// A device whose worker says that it starts, and finishes what it has begun when the test says so.
struct Slow {
    config: Arc<ConfigSpace>,
    worker: Mutex<Option<Box<SlowWorker>>>,
}

struct SlowWorker {
    starts: Sender<()>,
    finishes: Receiver<()>,
}

impl Device for Slow {
    fn device_type(&self) -> u32 {
        63
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[2]
    }

    fn workers(&self) -> Workers {
        Workers::Own(1)
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::new(TransportMetrics::default())
    }

    fn activate(&mut self, _: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        Ok(vec![self.worker.lock().unwrap().take().unwrap()])
    }
}

impl Worker for SlowWorker {
    fn start(&mut self, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        self.starts.send(()).unwrap();
        Ok(())
    }

    fn event(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        Ok(())
    }

    fn drain(&mut self) {
        self.finishes.recv().unwrap();
    }

    fn queues(&self) -> Vec<QueueState> {
        Vec::new()
    }
}

/// A registry with one such device, which has a driver; what the device says, and what has it finish.
fn slow() -> (Registry, Receiver<()>, Sender<()>) {
    // Without restrictions, as launches are unless they say otherwise.
    let landlock = Landlock::new(&Launch::new("test".to_owned(), VmConfig::default())).unwrap();
    let confinement = Confinement::new(Filters::embedded(Level::Off), landlock.deny_all().unwrap());
    let mut registry = Registry::new(confinement).unwrap();
    let ((starts, started), (finish, finishes)) = (channel(), channel());
    let worker = Mutex::new(Some(Box::new(SlowWorker { starts, finishes })));
    let device = Box::new(Slow { config: ConfigSpace::new(&[]), worker });
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let slots = registry.slots("slow", Thread::Io, device.as_ref()).unwrap();
    let transport =
        MmioTransport::new(device, Arc::new(memory), slots, eventfd().unwrap(), Arc::clone(&registry.late))
            .unwrap();
    // Status, the upper half of the features (version 1), and a queue whose rings are at address 0.
    for (register, value) in
        [(0x70, 1_u32), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0xb), (0x44, 1), (0x70, 0xf)]
    {
        transport.write(register, &value.to_le_bytes());
    }
    started.recv().unwrap();
    let line = IrqAllocator::new(5, 1).unwrap().allocate().unwrap();
    let id = "slow".to_owned();
    registry.devices.push(Attached { kind: "test", id, transport: Arc::new(transport), base: 0, line });
    (registry, started, finish)
}

#[test]
fn a_device_has_a_moment_to_come_to_rest_even_if_others_have_taken_all_the_time() {
    let (registry, _started, _finish) = slow();
    let begun = Instant::now();
    let (id, _) = registry.sleep(begun).unwrap_err();
    assert_eq!(id, "slow");
    assert!(begun.elapsed() >= LEAST);
}

#[test]
fn a_device_that_was_late_goes_on_when_it_has_finished() {
    let (registry, started, finish) = slow();
    registry.sleep(Instant::now()).unwrap_err();
    registry.go_on();
    assert!(registry.late().read().is_err() && started.try_recv().is_err());
    finish.send(()).unwrap();
    while registry.late().read().is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
    registry.go_on();
    started.recv_timeout(Duration::from_secs(20)).unwrap();
}
