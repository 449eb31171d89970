//! The metadata service: `PUT /mmds/config`, section `mmds-config` of the config file.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::error::FieldError;

/// How guests reach the metadata service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// Ids of the network interfaces that lead to it; at least one.
    pub network_interfaces: Vec<String>,
    /// Which version of the protocol it speaks.
    #[serde(default)]
    pub version: MmdsVersion,
    /// Its address, a link-local one (RFC 3927): 169.254.1.0 to 169.254.254.255.
    #[serde(default = "default_address")]
    pub ipv4_address: Ipv4Addr,
    /// Whether it answers as EC2's does: as plain text, whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}

/// Which version of the protocol the metadata service speaks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum MmdsVersion {
    /// Plain requests.
    #[default]
    V1,
    /// Requests with a token that was asked for before.
    V2,
}

impl MmdsConfig {
    /// Checks every field. `interfaces` are the ids of the machine's network interfaces.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate<'a>(
        &self,
        interfaces: &(impl Iterator<Item = &'a str> + Clone),
    ) -> Result<(), FieldError> {
        if self.network_interfaces.is_empty() {
            return Err(FieldError::new("network_interfaces", "must name at least one"));
        }
        for (index, id) in self.network_interfaces.iter().enumerate() {
            if !interfaces.clone().any(|known| known == id) {
                let cause = format!("there is no network interface {id:?}");
                return Err(FieldError::new(format!("network_interfaces[{index}]"), cause));
            }
        }
        if !matches!(self.ipv4_address.octets(), [169, 254, 1..=254, _]) {
            let cause = format!(
                "must be a link-local address, 169.254.1.0 to 169.254.254.255, got {}",
                self.ipv4_address
            );
            return Err(FieldError::new("ipv4_address", cause));
        }
        Ok(())
    }
}

fn default_address() -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 169, 254)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: [u8; 4]) -> MmdsConfig {
        MmdsConfig {
            network_interfaces: vec!["eth0".into()],
            version: MmdsVersion::V1,
            ipv4_address: address.into(),
            imds_compat: false,
        }
    }

    #[test]
    fn only_link_local_addresses_are_taken() {
        for (address, valid) in [
            ([169, 254, 169, 254], true),
            ([169, 254, 1, 0], true),
            ([169, 254, 254, 255], true),
            ([169, 254, 0, 9], false),
            ([169, 254, 255, 1], false),
            ([10, 0, 0, 1], false),
        ] {
            let result = config(address).validate(&["eth0"].into_iter());
            assert_eq!(result.is_ok(), valid, "{address:?} {result:?}");
        }
    }

    #[test]
    fn an_interface_that_does_not_exist_is_named() {
        let message = config([169, 254, 1, 1]).validate(&["eth1"].into_iter()).unwrap_err().to_string();
        assert_eq!(message, "network_interfaces[0]: there is no network interface \"eth0\"");
    }
}
