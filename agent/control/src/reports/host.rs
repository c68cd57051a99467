//! A node's report about its host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_model::Mtu;

use super::shown;

/// The smallest MTU of a data path: below it no network could carry IPv6 (RFC 8200, section 5).
pub(crate) const MIN_DATA_PATH_MTU: u32 = Mtu::MIN_IPV6;
/// Maximum number of characters of an agent's version.
const MAX_VERSION: usize = 64;

/// Checks the MTU of a data path.
pub(crate) fn data_path_mtu(mtu: u32) -> Result<Mtu, String> {
    let checked = Mtu::try_from(mtu).ok().filter(|mtu| mtu.get() >= MIN_DATA_PATH_MTU);
    checked.ok_or_else(|| format!("data-path MTU {mtu} is out of range: {MIN_DATA_PATH_MTU} to {}", Mtu::MAX))
}

/// Checks the version of an agent: printable ASCII without spaces.
pub(crate) fn version(text: &str) -> Result<String, String> {
    if text.len() <= MAX_VERSION && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("version {} is not valid: up to {MAX_VERSION} printable ASCII characters", shown(text)))
    }
}

/// Largest number of addresses of a host in its node's record.
const MAX_ADDRESSES: usize = 32;

/// Returns the addresses that a host reports and may have, and what is wrong with the others.
/// `is_anothers` says which belong to another node or to a network.
pub(crate) fn addresses(
    texts: &[String],
    is_anothers: impl Fn(IpAddr) -> bool,
) -> (BTreeSet<IpAddr>, Option<String>) {
    let mut fault = None;
    let mut read = BTreeSet::new();
    for text in texts {
        let address =
            text.parse().map_err(|_| format!("the host reports \"{}\", which is no address", shown(text)));
        match address.and_then(underlay_address) {
            Ok(address) if is_anothers(address) => {
                fault = Some(format!(
                    "the host reports the address {address}, which another node or a network has"
                ));
            }
            Ok(address) => {
                read.insert(address);
            }
            Err(why) => fault = Some(why),
        }
    }
    if read.len() > MAX_ADDRESSES {
        fault = Some(format!(
            "the host has {} addresses: --host-access protects only {MAX_ADDRESSES} of them from \
             containers of other hosts",
            read.len()
        ));
        read = read.into_iter().take(MAX_ADDRESSES).collect();
    }
    (read, fault)
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
    fn only_an_address_that_other_hosts_can_reach_is_accepted() {
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
    fn a_host_has_a_bounded_number_of_addresses_and_none_of_anothers() {
        let read = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            addresses(&texts, |address| address == "10.99.0.9".parse::<IpAddr>().unwrap())
        };
        let (found, fault) = read(&["10.99.0.2", "fd99::2", "10.99.0.2"]);
        assert_eq!((found.len(), fault), (2, None));
        for bad in ["127.0.0.1", "fe80::1", "10.99.0.9", "nonsense", ""] {
            let (found, fault) = read(&[bad, "10.99.0.2"]);
            assert!(found.len() == 1 && fault.is_some(), "{bad}");
        }
        let many: Vec<String> = (0..=255).map(|last| format!("10.98.0.{last}")).collect();
        let (found, fault) = addresses(&many, |_| false);
        assert!(found.len() == MAX_ADDRESSES && fault.unwrap().contains("256"));
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
