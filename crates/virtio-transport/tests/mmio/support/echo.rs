//! The device.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use kindling_metrics::Metrics;
use kindling_virtio_device::{
    ActivateError, Activation, Chain, ConfigSpace, Device, Interrupt, Queue, QueueState, RestoreError, Watch,
    Worker, WorkerError, Workers,
};
use vmm_sys_util::epoll::EventSet;

kindling_metrics::metrics! {
    /// Counters of the device.
    pub struct EchoMetrics {
        /// Chains given back.
        echoed: Counter,
    }
}

/// What happened to the device, and what holds it up.
#[derive(Default)]
pub struct Log {
    /// The accepted features and the queues of each activation.
    pub activations: Mutex<Vec<(u64, Vec<u16>)>>,
    pub resets: AtomicU64,
    /// The driver's interrupt, of the last activation.
    pub interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    pub config_writes: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Has the workers' threads die when these are to finish their requests.
    pub dies: AtomicBool,
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl Log {
    /// Has the workers hang when they are to finish their requests, or no longer.
    pub fn set_hanging(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.changed.notify_all();
    }

    pub fn activations(&self) -> usize {
        self.activations.lock().unwrap().len()
    }
}

/// A device that copies what is readable to what is writable, with a worker for each queue. Queue 0 is essential.
pub struct Echo {
    pub config: Arc<ConfigSpace>,
    pub log: Arc<Log>,
    pub metrics: Arc<EchoMetrics>,
    /// How many threads it asks for.
    pub threads: usize,
    /// What it saves: begins with "echo".
    pub saved: Vec<u8>,
}

/// Type of the device: none that there is.
pub const TYPE: u32 = 63;

impl Echo {
    pub const FEATURES: u64 = 1 << 3 | 1 << 50;
    pub const SIZES: [u16; 2] = [16, 64];
    /// A state with which it changes its configuration.
    pub const CHANGES_CONFIG: &[u8] = b"echo, but otherwise";

    pub fn new() -> Self {
        Self {
            config: ConfigSpace::new(&[1, 2, 3, 4, 5, 6, 7]),
            log: Arc::default(),
            metrics: Arc::default(),
            threads: 2,
            saved: b"echo!".to_vec(),
        }
    }
}

impl Device for Echo {
    fn device_type(&self) -> u32 {
        TYPE
    }

    fn features(&self) -> u64 {
        Self::FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &Self::SIZES
    }

    fn workers(&self) -> Workers {
        Workers::Own(self.threads)
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log.config_writes.lock().unwrap().push((offset, data.to_vec()));
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::clone(&self.metrics) as Arc<dyn Metrics>
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let indices = activation.queues.iter().map(Queue::index).collect();
        let first = activation.take_queue(0)?;
        self.log.activations.lock().unwrap().push((activation.features, indices));
        *self.log.interrupt.lock().unwrap() = Some(Arc::clone(&activation.interrupt));
        let worker = |queue: Queue| {
            let chain = Chain::new(queue.memory());
            let (log, metrics) = (Arc::clone(&self.log), Arc::clone(&self.metrics));
            Box::new(EchoWorker { queue, chain, log, metrics }) as Box<dyn Worker>
        };
        Ok([first].into_iter().chain(activation.queues).map(worker).collect())
    }

    fn reset(&mut self) {
        self.log.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn save(&self) -> Vec<u8> {
        self.saved.clone()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if !state.starts_with(b"echo") {
            return Err(RestoreError { field: "echo", problem: "is not one".to_owned() });
        }
        self.saved = state.to_vec();
        if state == Self::CHANGES_CONFIG {
            self.config.update(|bytes| bytes[0] = 99);
        }
        Ok(())
    }
}

struct EchoWorker {
    queue: Queue,
    chain: Chain,
    log: Arc<Log>,
    metrics: Arc<EchoMetrics>,
}

impl EchoWorker {
    fn serve(&mut self) -> Result<(), WorkerError> {
        self.queue.begin_batch();
        for _ in 0..self.queue.size() {
            if !self.queue.pop(&mut self.chain).map_err(WorkerError::queue(self.queue.index()))? {
                break;
            }
            let mut bytes = [0; 64];
            let len = self.chain.readable.read(&mut bytes);
            let written = self.chain.writable.write(&bytes[..len]);
            self.queue.push(self.chain.head(), written as u32);
            self.metrics.echoed.increment();
        }
        self.queue.end_batch();
        Ok(())
    }
}

impl Worker for EchoWorker {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add_kicks(&self.queue, 0)?;
        self.serve()
    }

    fn event(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        self.serve()
    }

    fn drain(&mut self) {
        assert!(!self.log.dies.load(Ordering::SeqCst), "this thread was to die");
        let hangs = self.log.hangs.lock().unwrap();
        drop(self.log.changed.wait_while(hangs, |hangs| *hangs).unwrap());
    }

    fn queues(&self) -> Vec<QueueState> {
        vec![self.queue.state()]
    }
}
