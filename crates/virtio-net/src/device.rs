//! The device: what outlives a driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use kindling_metrics::Metrics;
use kindling_virtio_device::{ActivateError, Activation, ConfigSpace, Device, RestoreError, Worker, Workers};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

use crate::control::Shared;
use crate::detour::SharedDetour;
use crate::worker::{Commands, Negotiated, NetWorker, WorkerDetour};
use crate::{Backend, Detour, Error, NetControl};

/// Entries of each queue for frames. No chain is longer, so that a single `writev` takes every frame.
const QUEUE_SIZE: u16 = 256;
const _: () = assert!(QUEUE_SIZE as i32 <= libc::UIO_MAXIOV);

/// Entries of the queue for commands: Linux has one command at a time, of up to four buffers.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Smallest MTU (VIRTIO 1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;

/// What a device of any back end offers: no more than a tap can do.
const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_UFO
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_UFO
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS;

/// What a device with several queue pairs offers besides.
const MULTI_QUEUE_FEATURES: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;

/// A network device (VIRTIO 1.2, 5.1).
///
/// It has one worker for each queue pair of its back end. The first one serves the queue for commands too.
pub struct Net {
    backend: Arc<Backend>,
    shared: Arc<Shared>,
    features: u64,
    mtu: Option<u16>,
    queue_sizes: Vec<u16>,
    /// Queue pairs that the driver wants to use: 1 until it says so. It outlives the reset of single queues.
    wanted_pairs: Arc<AtomicU16>,
    detour: Option<Arc<dyn Detour>>,
}

impl Net {
    /// A device with its link up and no rate limit; see [`Net::control`].
    ///
    /// Without a `mac`, the guest makes one up. With an `mtu`, of 68 bytes or more, the driver is told not to send larger
    /// packets, and gets none.
    ///
    /// # Errors
    ///
    /// [`Error::Mtu`] when the MTU is out of its range.
    pub fn new(backend: Backend, mac: Option<[u8; 6]>, mtu: Option<u16>) -> Result<Self, Error> {
        if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(Error::Mtu(mtu));
        }
        let pairs = backend.queue_pairs();
        let mut features = FEATURES;
        features |= u64::from(mac.is_some()) << VIRTIO_NET_F_MAC;
        features |= u64::from(mtu.is_some()) << VIRTIO_NET_F_MTU;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        if pairs > 1 {
            features |= MULTI_QUEUE_FEATURES;
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        Ok(Self {
            shared: Shared::new(ConfigSpace::new(&config_bytes(mac, pairs, mtu))),
            backend: Arc::new(backend),
            features,
            mtu,
            queue_sizes,
            wanted_pairs: Arc::new(AtomicU16::new(1)),
            detour: None,
        })
    }

    /// The same device with a detour for some of the guest's frames.
    #[must_use]
    pub fn with_detour(self, detour: Box<dyn Detour>) -> Self {
        Self { detour: Some(detour.into()), ..self }
    }

    /// What changes the device while it runs.
    pub fn control(&self) -> NetControl {
        NetControl(Arc::clone(&self.shared))
    }
}

/// `struct virtio_net_config` (VIRTIO 1.2, 5.1.4): MAC, status, number of queue pairs, MTU.
fn config_bytes(mac: Option<[u8; 6]>, pairs: u16, mtu: Option<u16>) -> Vec<u8> {
    let mut bytes = mac.unwrap_or_default().to_vec();
    let link_up = virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP as u16;
    for field in [link_up, pairs, mtu.unwrap_or_default()] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

impl Device for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn workers(&self) -> Workers {
        Workers::Own(self.backend.queue_pairs().into())
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.shared.config
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::clone(&self.shared.metrics) as Arc<dyn Metrics>
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let has_commands = activation.has_feature(VIRTIO_NET_F_CTRL_VQ);
        let is_multi_queue = has_commands && activation.has_feature(VIRTIO_NET_F_MQ);
        let most = if is_multi_queue { self.backend.queue_pairs() } else { 1 };
        // Its index depends on what the driver accepted (VIRTIO 1.2, 5.1.2). A driver with no commands need not have it.
        let commands = if has_commands { activation.take_queue(most.saturating_mul(2)).ok() } else { None };
        let mut queues = Vec::new();
        for receive in (0..).step_by(2).take(most.into()) {
            let pair = (activation.take_queue(receive), activation.take_queue(receive.saturating_add(1)));
            match pair {
                (Ok(receive), Ok(transmit)) => queues.push((receive, transmit)),
                (Err(missing), _) | (_, Err(missing)) if queues.is_empty() => return Err(missing),
                // A driver with fewer pairs than there could be.
                _ => break,
            }
        }
        // At most as many as the back end has.
        let pairs = queues.len() as u16;
        let commands = commands
            .map(|queue| Commands::new(queue, &self.backend, pairs, &self.wanted_pairs, &self.shared));
        let mut commands =
            commands.transpose().map_err(host("make a timer for a network device's commands"))?;
        let negotiated = Negotiated::new(activation.features, self.mtu);
        let detour = self.detour.as_ref().map(SharedDetour::new).transpose();
        let detour = detour.map_err(host("make a timer for a network device"))?;
        let mut workers = Vec::<Box<dyn Worker>>::new();
        for ((receive, transmit), tap) in queues.into_iter().zip(self.backend.queues()) {
            let tap = Arc::clone(tap);
            let own = detour.as_ref().map(|detour| WorkerDetour::new(detour, workers.is_empty()));
            let worker =
                NetWorker::new(&self.shared, tap, negotiated, receive, transmit, commands.take(), own);
            workers.push(Box::new(worker.map_err(host("make a worker of a network device"))?));
        }
        match self.backend.set_offloads(activation.features) {
            // Deleted while there was no driver. The workers will find out too, and live with it.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => self.shared.lose_tap(),
            result => {
                result.map_err(host("choose the offloads of a network device's tap"))?;
                let active = self.wanted_pairs.load(Ordering::Relaxed).min(pairs);
                self.backend
                    .set_active(active)
                    .map_err(host("choose the active queues of a network device's tap"))?;
            }
        }
        Ok(workers)
    }

    fn reset(&mut self) {
        self.wanted_pairs.store(1, Ordering::Relaxed);
        // If this fails, the next activation tries again.
        let _ = self.backend.set_active(1);
    }

    /// The number of queue pairs that the driver wants to use.
    fn save(&self) -> Vec<u8> {
        self.wanted_pairs.load(Ordering::Relaxed).to_le_bytes().to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let error = |problem| RestoreError { field: "active queue pairs", problem };
        let bytes = state.try_into().map_err(|_| error(format!("{} bytes, not 2", state.len())))?;
        let (pairs, most) = (u16::from_le_bytes(bytes), self.backend.queue_pairs());
        if pairs == 0 || pairs > most {
            return Err(error(format!("{pairs}, not 1 to {most}")));
        }
        self.wanted_pairs.store(pairs, Ordering::Relaxed);
        Ok(())
    }
}

fn host(doing: &'static str) -> impl FnOnce(std::io::Error) -> ActivateError {
    move |source| ActivateError::Host { doing, source }
}
