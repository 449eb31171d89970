#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod endpoint;
mod error;
mod http;
mod metrics;
mod service;
mod store;
mod token;

pub use endpoint::{DEFAULT_ADDRESS, DEFAULT_MAC, Endpoint, EndpointConfig, HEAD_BYTES, MAX_FRAME_BYTES};
pub use error::Error;
pub use http::{Answer, MAX_REQUEST_BYTES, answer};
pub use metrics::MetadataMetrics;
pub use service::{Service, Version};
pub use store::{DEFAULT_LIMIT, MAX_DEPTH};
