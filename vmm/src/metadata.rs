//! The metadata service: one for the machine, made when it is first needed, and the way to it on network devices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_api::{Fault, MmdsConfig, MmdsVersion, Status};
use kindling_metadata::{Endpoint, EndpointConfig, Error as ServiceError, Service, Version};
use kindling_metrics::Group;
use kindling_virtio_net::{DETOUR_HEAD_BYTES, Detour};
use serde_json::Value;

use crate::error::{Error, one_line};

/// The service, if anybody has asked for it yet.
pub struct Metadata {
    limit: usize,
    service: Option<Arc<Service>>,
}

impl Metadata {
    /// A service that keeps at most `limit` bytes of JSON.
    pub fn new(limit: usize) -> Self {
        Metadata { limit, service: None }
    }

    fn service(&mut self) -> Result<&Arc<Service>, ServiceError> {
        match &mut self.service {
            Some(service) => Ok(service),
            none => Ok(none.insert(Service::new(self.limit)?)),
        }
    }

    /// Replaces the document.
    pub fn put(&mut self, document: Value) -> Result<(), ServiceError> {
        self.service()?.put(document)
    }

    /// Changes the document (RFC 7396).
    pub fn patch(&mut self, patch: Value) -> Result<(), ServiceError> {
        self.service()?.patch(patch)
    }

    /// The document.
    pub fn get(&mut self) -> Result<Value, ServiceError> {
        Ok(self.service()?.get())
    }

    /// Chooses how guests read it.
    pub fn configure(&mut self, config: &MmdsConfig) -> Result<(), ServiceError> {
        let version = match config.version {
            MmdsVersion::V1 => Version::V1,
            MmdsVersion::V2 => Version::V2,
        };
        self.service()?.configure(version, config.imds_compat);
        Ok(())
    }

    /// The way to it on the network interface `id`, if `config` has it there.
    pub fn detour(
        &mut self,
        config: Option<&MmdsConfig>,
        id: &str,
    ) -> Result<Option<Box<dyn Detour>>, Error> {
        let Some(config) = config.filter(|config| config.network_interfaces.iter().any(|name| name == id))
        else {
            return Ok(None);
        };
        let endpoint = EndpointConfig { address: config.ipv4_address, ..EndpointConfig::default() };
        let endpoint = self.service().and_then(|service| Endpoint::new(endpoint, Arc::clone(service)));
        let endpoint = endpoint.map_err(Error::host("set up the metadata service"))?;
        Ok(Some(Box::new(Way(endpoint))))
    }

    /// What it counts.
    pub fn metrics(&self) -> Option<Group> {
        let metrics = self.service.as_ref()?.metrics();
        Some(Group { subsystem: "mmds", id: None, metrics })
    }
}

/// What a client is told of a document that was refused.
pub fn refused(error: &ServiceError) -> Fault {
    let status = match error {
        ServiceError::TooLarge { .. } => Status::PayloadTooLarge,
        _ => Status::BadRequest,
    };
    Fault::new(status, one_line(error))
}

/// A network device's way to the service.
struct Way(Endpoint);

impl Detour for Way {
    fn wants(&self, head: &[u8; DETOUR_HEAD_BYTES]) -> bool {
        self.0.is_for_us(head)
    }

    fn receive(&self, now: Instant, frame: &[u8]) {
        self.0.receive(now, frame);
    }

    fn next_frame(&self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        self.0.next_frame(now, buffer)
    }

    fn next_timeout(&self, now: Instant) -> Option<Duration> {
        self.0.next_timeout(now)
    }
}
