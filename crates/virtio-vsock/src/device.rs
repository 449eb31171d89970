//! The device: what outlives a driver.

use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;

use kindling_metrics::Metrics;
use kindling_virtio_device::{ActivateError, Activation, ConfigSpace, Device, RestoreError, Worker, Workers};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use crate::host::{Host, SocketFile};
use crate::worker::VsockWorker;
use crate::{Error, VsockMetrics};

/// A limit for [`Vsock::new`] that fits the descriptors that a process may usually have, and bounds what a guest can
/// have buffered to 256 MiB.
pub const DEFAULT_MAX_CONNECTIONS: NonZeroU16 = NonZeroU16::new(1024).unwrap();

/// Stream sockets are supported (VIRTIO 1.2, 5.10.3).
const VIRTIO_VSOCK_F_STREAM: u32 = 0;

/// A virtio socket device (VIRTIO 1.2, 5.10) with stream sockets, whose other ends are Unix sockets of the host.
pub struct Vsock {
    backend: Backend,
    config: Arc<ConfigSpace>,
    /// Removes the listening socket's file with the device.
    file: Arc<SocketFile>,
    /// Whether the driver is to be told that all its connections are gone.
    transport_reset: bool,
    /// Whether there was a worker since the last reset.
    activated: bool,
}

/// What a device shares with its worker.
#[derive(Clone)]
pub(crate) struct Backend {
    pub guest_cid: u32,
    pub host: Arc<Host>,
    pub max_connections: NonZeroU16,
    pub metrics: Arc<VsockMetrics>,
}

impl Vsock {
    /// A device for the guest with CID `guest_cid`, 3 to 0xffff_fffe. It creates a Unix socket at `uds_path` and listens
    /// there; the file gets permissions by the process's umask and goes away with the device. No more than
    /// `max_connections` exist at a time, those included that are being made.
    ///
    /// # Errors
    ///
    /// For a reserved CID, and when the socket cannot be created: something is there already, for example, which is
    /// left alone.
    pub fn new(guest_cid: u32, uds_path: &Path, max_connections: NonZeroU16) -> Result<Self, Error> {
        if !(3..u32::MAX).contains(&guest_cid) {
            return Err(Error::GuestCid(guest_cid));
        }
        let (host, file) = Host::bind(uds_path)?;
        let backend = Backend { guest_cid, host: Arc::new(host), max_connections, metrics: Arc::default() };
        let config = ConfigSpace::new(&u64::from(guest_cid).to_le_bytes());
        Ok(Self { backend, config, file: Arc::new(file), transport_reset: false, activated: false })
    }

    /// The listening socket's file. It goes away with the device and the last of these.
    pub fn socket_file(&self) -> Arc<SocketFile> {
        Arc::clone(&self.file)
    }

    /// Has the next worker tell the driver that all its connections are gone and that it has to read its CID again
    /// (VIRTIO 1.2, 5.10.6.6), for a guest that goes on here and has begun elsewhere. [`Device::restore`] does it too.
    pub fn announce_transport_reset(&mut self) {
        self.transport_reset = true;
    }
}

impl Device for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256; 3]
    }

    fn workers(&self) -> Workers {
        Workers::Own(1)
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::clone(&self.backend.metrics) as Arc<dyn Metrics>
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        // Connections go with their worker: the driver that resets but a queue loses them too.
        let transport_reset = self.transport_reset || self.activated;
        let worker = VsockWorker::new(self.backend.clone(), activation, transport_reset)?;
        (self.transport_reset, self.activated) = (false, true);
        Ok(vec![Box::new(worker)])
    }

    fn reset(&mut self) {
        // A new driver has no connections that could be gone.
        (self.transport_reset, self.activated) = (false, false);
    }

    /// There is nothing to be taken over: connections do not survive.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if !state.is_empty() {
            let problem = format!("{} bytes, and this device has none", state.len());
            return Err(RestoreError { field: "device state", problem });
        }
        self.announce_transport_reset();
        Ok(())
    }
}
