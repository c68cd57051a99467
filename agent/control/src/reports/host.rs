//! What a node reports about its host.

use std::net::IpAddr;

use mesh_model::Mtu;

use super::shown;

/// The least MTU of a data path: below it no network could carry IPv6 (RFC 8200, section 5), and
/// with much less none works.
pub(crate) const MIN_DATA_PATH_MTU: u32 = Mtu::MIN_IPV6;
/// Most characters of an agent's version.
const MAX_VERSION: usize = 64;

/// The MTU of a data path.
pub(crate) fn data_path_mtu(mtu: u32) -> Result<Mtu, String> {
    let checked = Mtu::try_from(mtu).ok().filter(|mtu| mtu.get() >= MIN_DATA_PATH_MTU);
    checked.ok_or_else(|| format!("data-path MTU {mtu} is out of range: {MIN_DATA_PATH_MTU} to {}", Mtu::MAX))
}

/// The version of an agent: printable ASCII without spaces.
pub(crate) fn version(text: &str) -> Result<String, String> {
    if text.len() <= MAX_VERSION && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("version {} is not valid: up to {MAX_VERSION} printable ASCII characters", shown(text)))
    }
}

/// Refuses what cannot be a host's own address on a network that other hosts reach.
pub(crate) fn underlay_address(address: IpAddr) -> Result<IpAddr, String> {
    let kind = match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "of no network",
        IpAddr::V4(v4) if v4.is_loopback() => "a loopback address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.is_multicast() => "a multicast address",
        // The limited broadcast address and class E.
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => "a reserved or broadcast address",
        IpAddr::V6(v6) if v6.is_unspecified() => "of no network",
        IpAddr::V6(v6) if v6.is_loopback() => "a loopback address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.is_multicast() => "a multicast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
        address => return Ok(address),
    };
    Err(format!("{address} cannot be a node's address: it is {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_other_hosts_can_reach_is_a_nodes() {
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(underlay_address(bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in ["192.168.77.11", "10.0.0.1", "203.0.113.9", "fd77::11", "2001:db8::1", "100.64.0.1"] {
            assert!(underlay_address(good.parse().unwrap()).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_data_path_has_at_least_the_mtu_that_ipv6_needs() {
        for bad in [0, 68, 685, 1279, 65536, u32::MAX] {
            assert!(data_path_mtu(bad).is_err(), "{bad}");
        }
        assert!(data_path_mtu(1280).is_ok() && data_path_mtu(65535).is_ok());
    }

    #[test]
    fn a_version_is_short_and_printable() {
        assert_eq!(version("0.4.1-rc.1+abc").unwrap(), "0.4.1-rc.1+abc");
        for bad in ["a\x1b[31m", "1 2", "\u{9b}", &"x".repeat(4 << 20)] {
            let why = version(bad).unwrap_err();
            assert!(why.len() < 200 && why.is_ascii() | why.contains('…'), "{why}");
        }
    }
}
