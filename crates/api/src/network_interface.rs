//! Network devices: `PUT /network-interfaces/{id}`, section `network-interfaces` of the config file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::drive::{is_one, one};
use crate::error::FieldError;
use crate::id::check_id;
use crate::rate_limiter::RateLimiterConfig;

/// Pairs of queues that a network interface can have.
const NUM_QUEUES: std::ops::RangeInclusive<u16> = 1..=16;
/// Smallest and largest MTU in bytes (VIRTIO 1.2, 5.1.4.1).
const MTU: std::ops::RangeInclusive<u16> = 68..=u16::MAX;
/// Longest name of a network device of the host in bytes (`IFNAMSIZ` less the NUL).
const HOST_NAME_MAX_LEN: usize = 15;

/// A network device over a tap of the host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceConfig {
    /// Its name: letters, digits and `_`.
    pub iface_id: String,
    /// The tap on the host; made if it does not exist.
    pub host_dev_name: String,
    /// The guest's MAC address; the guest chooses one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddress>,
    /// The largest packet in bytes, 68 to 65,535; the guest takes 1,500 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
    /// Pairs of queues, 1 to 16; each has a thread. Firecracker has no such field.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub num_queues: u16,
}

/// An Ethernet address of one station, written as six hexadecimal bytes with colons.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let read = bytes.iter_mut().all(|byte| {
            parts.next().is_some_and(|part| {
                let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
                digits && u8::from_str_radix(part, 16).map(|value| *byte = value).is_ok()
            })
        });
        if !read || parts.next().is_some() {
            return Err(format!("must be a MAC address such as 06:00:AC:10:00:02, got {text:?}"));
        }
        match bytes {
            [first, ..] if first & 1 == 1 => {
                Err(format!("must be the MAC address of one station, got the group address {text:?}"))
            }
            _ => Ok(Self(bytes)),
        }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl NetworkInterfaceConfig {
    /// An interface over the tap `host_dev_name`, the rest as by default.
    pub fn new(iface_id: impl Into<String>, host_dev_name: impl Into<String>) -> Self {
        Self {
            iface_id: iface_id.into(),
            host_dev_name: host_dev_name.into(),
            guest_mac: None,
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
            num_queues: one(),
        }
    }

    /// Checks every field; no network device is touched.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        check_id("iface_id", &self.iface_id)?;
        let name = &self.host_dev_name;
        let is_name = (1..=HOST_NAME_MAX_LEN).contains(&name.len())
            && !matches!(name.as_str(), "." | "..")
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
        if !is_name {
            let cause = format!(
                "must be the name of a network device, 1 to {HOST_NAME_MAX_LEN} characters without `/`, `:` and `%`, \
                 got {name:?}"
            );
            return Err(FieldError::new("host_dev_name", cause));
        }
        if let Some(mtu) = self.mtu
            && !MTU.contains(&mtu)
        {
            return Err(FieldError::new("mtu", format!("must be between 68 and 65535, got {mtu}")));
        }
        for (name, limiter) in
            [("rx_rate_limiter", &self.rx_rate_limiter), ("tx_rate_limiter", &self.tx_rate_limiter)]
        {
            if let Some(limiter) = limiter {
                limiter.validate().map_err(|error| error.within(name))?;
            }
        }
        if !NUM_QUEUES.contains(&self.num_queues) {
            let cause = format!("must be between 1 and 16, got {}", self.num_queues);
            return Err(FieldError::new("num_queues", cause));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_six_bytes_of_one_station() {
        let address: MacAddress = "06:00:ac:10:00:0F".parse().unwrap();
        assert_eq!(address.0, [6, 0, 0xac, 0x10, 0, 0xf]);
        assert_eq!(address.to_string(), "06:00:ac:10:00:0f");
        for text in [
            "",
            "06:00:ac:10:00",
            "06:00:ac:10:00:02:03",
            "6:00:ac:10:00:02",
            "+6:00:ac:10:00:02",
            "01:00:5e:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_name_of_a_host_device_is_one_the_kernel_takes() {
        for (name, valid) in [
            ("tap0", true),
            ("a23456789012345", true),
            ("a234567890123456", false),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("tap%d", false),
            ("a b", false),
        ] {
            let result = NetworkInterfaceConfig::new("eth0", name).validate();
            assert_eq!(result.is_ok(), valid, "{name}");
        }
    }
}
