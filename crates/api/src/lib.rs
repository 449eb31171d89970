#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod boot_source;
mod drive;
mod error;
mod id;
mod json;
mod logger;
mod machine_config;
mod memory_size;
mod network_interface;
mod rate_limiter;
mod serial;
mod small_devices;
mod vm_config;

pub use boot_source::{BOOT_ARGS_MAX_LEN, BootProtocol, BootSource};
pub use drive::{CacheType, DriveConfig, IoEngine};
pub use error::{ConfigError, FieldError};
pub use logger::{LogLevel, LoggerConfig};
pub use machine_config::{CpuTemplate, HugePages, MEM_SIZE_MIB, MachineConfig, VCPU_COUNT};
pub use memory_size::{MemorySizeError, parse_memory_size};
pub use network_interface::{MacAddress, NetworkInterfaceConfig};
pub use rate_limiter::{RateLimiterConfig, TokenBucketConfig};
pub use serial::{SerialConfig, SerialMode};
pub use small_devices::{BalloonConfig, EntropyConfig, VsockConfig};
pub use vm_config::{CONFIG_MAX_LEN, VmConfig};
