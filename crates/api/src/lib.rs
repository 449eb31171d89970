#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod action;
mod boot_source;
#[cfg(feature = "client")]
pub mod client;
mod drive;
mod error;
mod id;
mod json;
mod logger;
mod machine_config;
mod memory_size;
mod metrics;
mod mmds;
mod network_interface;
mod phase;
mod rate_limiter;
mod requests;
mod route;
mod serial;
#[cfg(feature = "server")]
pub mod server;
mod small_devices;
mod vm_config;

pub use action::{Action, Fault, Machine, Reply, Section, Status, dispatch};
pub use boot_source::{BOOT_ARGS_MAX_LEN, BootProtocol, BootSource};
pub use drive::{CacheType, DriveConfig, IoEngine};
pub use error::{ConfigError, FieldError};
pub use logger::{LogLevel, LoggerConfig};
pub use machine_config::{CpuTemplate, HugePages, MEM_SIZE_MIB, MachineConfig, VCPU_COUNT};
pub use memory_size::{MemorySizeError, parse_memory_size};
pub use metrics::MetricsConfig;
pub use mmds::{MmdsConfig, MmdsVersion};
pub use network_interface::{MacAddress, NetworkInterfaceConfig};
pub use phase::Phase;
pub use rate_limiter::{RateLimiterConfig, TokenBucketConfig};
pub use requests::{
    ActionRequest, ActionType, BalloonPatch, BalloonStatisticsPatch, DrivePatch, HintingStart,
    MachineConfigPatch, NetworkInterfacePatch, VmPatch, VmState,
};
pub use route::{ROUTES, Route, parse as route};
pub use serial::{SerialConfig, SerialMode};
pub use small_devices::{BalloonConfig, EntropyConfig, VsockConfig};
pub use vm_config::{CONFIG_MAX_LEN, VmConfig};
