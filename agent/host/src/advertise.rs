//! Which of the host's addresses the node is known by.

use std::net::{IpAddr, SocketAddr};

use mesh_model::IfName;

/// TCP port of the control plane when none is given.
pub const CONTROL_PORT: u16 = 7377;

/// An address of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The interface that has it.
    pub interface: IfName,
    /// The address.
    pub address: IpAddr,
    /// Whether the interface leads out of the host.
    pub leads_out: bool,
}

/// Why no address could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertiseError {
    /// The host has nothing but loopback and link-local addresses.
    #[error("this host has no global IPv4 address to advertise")]
    None,
    /// There are several, and none was named.
    #[error("this host has several addresses to advertise: {}", list(.0))]
    Several(Vec<HostAddress>),
    /// The interface that was named has none.
    #[error("interface {interface} has no global IPv4 address")]
    NoneOn {
        /// The interface.
        interface: String,
    },
    /// The interface that was named has several.
    #[error("interface {interface} has several addresses: {}", list(.addresses))]
    SeveralOn {
        /// The interface.
        interface: String,
        /// Its addresses.
        addresses: Vec<HostAddress>,
    },
    /// Neither an address nor an interface of this host.
    #[error("{text} is neither an address nor an interface of this host, which has {}", list(.addresses))]
    Unknown {
        /// What was given.
        text: String,
        /// What there is.
        addresses: Vec<HostAddress>,
    },
    /// The part after the colon is no port.
    #[error("{text}: {port:?} is no port, which is a number from 1 to 65535")]
    Port {
        /// What was given.
        text: String,
        /// Its part that should be a port.
        port: String,
    },
}

impl AdvertiseError {
    /// What to do about it, for the option that was (not) given.
    pub fn hint(&self, option: &str) -> String {
        match self {
            Self::None | Self::NoneOn { .. } => {
                format!("give the host an address, or name one with {option}")
            }
            Self::Several(_) | Self::SeveralOn { .. } | Self::Unknown { .. } => {
                format!("name one with {option} ADDRESS")
            }
            Self::Port { .. } => format!("{option} takes IP, INTERFACE, IP:PORT or INTERFACE:PORT"),
        }
    }
}

fn list(addresses: &[HostAddress]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    let each: Vec<String> = addresses.iter().map(|a| format!("{} ({})", a.address, a.interface)).collect();
    each.join(", ")
}

/// Whether other hosts may reach this host by it: not loopback, link-local (RFC 3927, RFC 4291),
/// multicast or unspecified.
#[must_use]
pub fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_unspecified()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified())
        }
    }
}

/// Chooses by what was asked for: `IP`, `INTERFACE`, either with `:PORT`, or nothing, which takes
/// the only global IPv4 address. Without a port it is [`CONTROL_PORT`].
pub fn advertise_address(text: &str, host: &[HostAddress]) -> Result<SocketAddr, AdvertiseError> {
    let (address, port) = split_port(text)?;
    Ok(SocketAddr::new(address_of(address, host)?, port.unwrap_or(CONTROL_PORT)))
}

/// As [`advertise_address`], without a port; nothing takes the advertised address.
pub fn data_path_address(
    text: &str,
    advertised: IpAddr,
    host: &[HostAddress],
) -> Result<IpAddr, AdvertiseError> {
    if text.is_empty() { Ok(advertised) } else { address_of(text, host) }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), AdvertiseError> {
    let with_port = |address, port: &str| match port.parse::<u16>() {
        Ok(number) if number != 0 => Ok((address, Some(number))),
        _ => Err(AdvertiseError::Port { text: text.to_owned(), port: port.to_owned() }),
    };
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return match rest.strip_prefix(':') {
            Some(port) => with_port(address, port),
            None => Ok((address, None)),
        };
    }
    match text.rsplit_once(':') {
        // More than one colon without brackets: an IPv6 address.
        Some((address, port)) if !address.contains(':') => with_port(address, port),
        _ => Ok((text, None)),
    }
}

fn address_of(text: &str, host: &[HostAddress]) -> Result<IpAddr, AdvertiseError> {
    let global = |of: Option<&str>| -> Vec<HostAddress> {
        host.iter()
            .filter(|a| a.address.is_ipv4() && is_global(a.address))
            .filter(|a| of.is_none_or(|interface| a.interface.as_str() == interface))
            .cloned()
            .collect()
    };
    if text.is_empty() {
        return match global(None).as_slice() {
            [] => Err(AdvertiseError::None),
            [only] => Ok(only.address),
            several => Err(AdvertiseError::Several(several.to_vec())),
        };
    }
    let unknown = || AdvertiseError::Unknown { text: text.to_owned(), addresses: global(None) };
    if let Ok(address) = text.parse::<IpAddr>() {
        return if host.iter().any(|a| a.address == address) { Ok(address) } else { Err(unknown()) };
    }
    if !host.iter().any(|a| a.interface.as_str() == text) {
        return Err(unknown());
    }
    match global(Some(text)).as_slice() {
        [] => Err(AdvertiseError::NoneOn { interface: text.to_owned() }),
        [only] => Ok(only.address),
        several => Err(AdvertiseError::SeveralOn { interface: text.to_owned(), addresses: several.to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::host_addresses;

    fn one() -> Vec<HostAddress> {
        host_addresses(&[
            ("lo", "127.0.0.1"),
            ("eth0", "192.0.2.1"),
            ("eth0", "fe80::1"),
            ("eth0", "2001:db8::1"),
        ])
    }

    fn two() -> Vec<HostAddress> {
        host_addresses(&[("eth0", "192.0.2.1"), ("eth1", "198.51.100.1"), ("eth1", "198.51.100.2")])
    }

    #[test]
    fn the_only_global_address_is_taken_when_nothing_is_said() {
        assert_eq!(advertise_address("", &one()).unwrap(), "192.0.2.1:7377".parse().unwrap());
    }

    #[test]
    fn of_several_none_is_guessed_and_all_are_listed() {
        let error = advertise_address("", &two()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("192.0.2.1 (eth0)") && text.contains("198.51.100.2 (eth1)"), "{text}");
        assert!(error.hint("--advertise-addr").contains("--advertise-addr"));
    }

    #[test]
    fn an_address_or_an_interface_with_or_without_a_port_is_understood() {
        for (text, expected) in [
            ("198.51.100.1", "198.51.100.1:7377"),
            ("198.51.100.1:99", "198.51.100.1:99"),
            ("eth0", "192.0.2.1:7377"),
            ("eth0:99", "192.0.2.1:99"),
        ] {
            assert_eq!(advertise_address(text, &two()).unwrap(), expected.parse().unwrap(), "{text}");
        }
        assert_eq!(
            advertise_address("[2001:db8::1]:99", &one()).unwrap(),
            "[2001:db8::1]:99".parse().unwrap()
        );
        assert_eq!(advertise_address("2001:db8::1", &one()).unwrap(), "[2001:db8::1]:7377".parse().unwrap());
    }

    #[test]
    fn what_the_host_does_not_have_is_refused_with_what_it_has() {
        for text in ["192.0.2.9", "eth7", "nonsense:80"] {
            let error = advertise_address(text, &one()).unwrap_err().to_string();
            assert!(error.contains("neither") && error.contains("192.0.2.1 (eth0)"), "{error}");
        }
        assert!(matches!(advertise_address("eth1", &two()), Err(AdvertiseError::SeveralOn { .. })));
        assert!(matches!(advertise_address("lo", &one()), Err(AdvertiseError::NoneOn { .. })));
        assert!(matches!(advertise_address("eth0:0", &one()), Err(AdvertiseError::Port { .. })));
        assert!(matches!(
            advertise_address("", &host_addresses(&[("lo", "127.0.0.1")])),
            Err(AdvertiseError::None)
        ));
    }

    #[test]
    fn the_data_path_follows_the_advertised_address_unless_told_otherwise() {
        let advertised = "192.0.2.1".parse().unwrap();
        assert_eq!(data_path_address("", advertised, &two()).unwrap(), advertised);
        let other: IpAddr = "198.51.100.1".parse().unwrap();
        assert_eq!(data_path_address("198.51.100.1", advertised, &two()).unwrap(), other);
    }
}
