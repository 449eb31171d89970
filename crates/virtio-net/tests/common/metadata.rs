//! A metadata service as a detour.

#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_metadata::{DEFAULT_LIMIT, Endpoint, EndpointConfig, HEAD_BYTES, Service};
use kindling_virtio_net::{DETOUR_HEAD_BYTES, Detour};
use serde_json::json;

const _: () = assert!(HEAD_BYTES <= DETOUR_HEAD_BYTES);

struct Metadata(Endpoint);

impl Detour for Metadata {
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

pub fn service() -> Arc<Service> {
    let service = Service::new(DEFAULT_LIMIT).unwrap();
    service.put(json!({"small": "x", "large": "0123456789".repeat(5_000)})).unwrap();
    service
}

pub fn detour(service: &Arc<Service>) -> Box<dyn Detour> {
    Box::new(Metadata(Endpoint::new(EndpointConfig::default(), Arc::clone(service)).unwrap()))
}
