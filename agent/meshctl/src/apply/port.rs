//! Compose's `ports:`, in both syntaxes.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use mesh_model::published::is_host_address;
use mesh_model::word::InvalidWord;
use mesh_model::{Protocol, PublishMode, PublishedPort};

use super::Port;
use super::notes::Ignored;
use super::yaml::{Invalid, Item};

/// Why a text is not a published port.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidPort {
    /// It is neither a port nor a range of ports.
    #[error("{0:?} is not a port (1 to 65535) or a range of ports such as 8000-8010")]
    Range(String),
    /// It is not an address.
    #[error("{0:?} is not an IP address of a host")]
    HostIp(String),
    /// The two ranges do not match.
    #[error("a range of target ports needs a range of published ports of the same length")]
    Lengths,
    /// Unknown protocol or mode.
    #[error(transparent)]
    Word(#[from] InvalidWord),
}

/// A non-empty range of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range(RangeInclusive<u16>);

impl FromStr for Range {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        let invalid = || InvalidPort::Range(text.to_owned());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|port| digits && *port != 0).ok_or_else(invalid)
        };
        let (first, last) = (port(first)?, port(last)?);
        if first <= last { Ok(Self(first..=last)) } else { Err(invalid()) }
    }
}

/// Reads a text or a map of `ports:`.
pub(super) fn read(item: &Item<'_>, ignored: &mut Vec<Ignored>) -> Result<Vec<Port>, Invalid> {
    if item.is_map() { long(item.clone(), ignored) } else { item.read(short) }
}

/// Parses `[[IP:]PUBLISHED:]TARGET[/PROTOCOL]`, where `PUBLISHED` and `TARGET` may be ranges.
fn short(text: &str) -> Result<Vec<Port>, InvalidPort> {
    let (ports, protocol) = match text.rsplit_once('/') {
        // In "10.0.0.0/24:80:80" the part before the ports is a subnet.
        Some((_, behind)) if behind.contains(':') => {
            return Err(InvalidPort::HostIp(text.rsplitn(3, ':').last().unwrap_or(text).to_owned()));
        }
        Some((ports, protocol)) => (ports, protocol.parse()?),
        None => (text, Protocol::Tcp),
    };
    let (rest, target) = ports.rsplit_once(':').unwrap_or(("", ports));
    // An IPv6 address may have brackets; the port follows the last colon in either case.
    let (host_ip, published) = rest.rsplit_once(':').unwrap_or(("", rest));
    let published = if published.is_empty() { None } else { Some(published.parse::<Range>()?) };
    expand(published, &target.parse()?, protocol, PublishMode::Ingress, host_address(host_ip)?)
}

fn long(item: Item<'_>, ignored: &mut Vec<Ignored>) -> Result<Vec<Port>, Invalid> {
    let whole = item.clone();
    let mut section = item.section()?;
    let target: Range = section.required("target")?.parse()?;
    // Compose uses 0 for a port that the engine chooses.
    let published = section.take("published");
    let published = match published {
        Some(published) if !matches!(published.text()?, "" | "0") => Some(published.parse::<Range>()?),
        _ => None,
    };
    let protocol = section.take("protocol").map_or(Ok(Protocol::Tcp), |protocol| protocol.parse())?;
    let mode = section.take("mode").map_or(Ok(PublishMode::Ingress), |mode| mode.parse())?;
    let host_ip = section.take("host_ip").map_or(Ok(None), |address| address.read(host_address))?;
    section.finish(ignored);
    expand(published, &target, protocol, mode, host_ip).map_err(|error| whole.invalid_key("ports", error))
}

/// Ranges of equal length form pairs; a range with a single target is a choice.
fn expand(
    published: Option<Range>,
    Range(target): &Range,
    protocol: Protocol,
    mode: PublishMode,
    host_ip: Option<IpAddr>,
) -> Result<Vec<Port>, InvalidPort> {
    let port = |published, target| Port { published, target, protocol, mode, host_ip };
    match published {
        None => Ok(target.clone().map(|target| port(PublishedPort::AUTOMATIC, target)).collect()),
        Some(Range(published)) if published.len() == target.len() => Ok(published
            .zip(target.clone())
            .map(|(published, target)| port(published..=published, target))
            .collect()),
        Some(Range(published)) if target.len() == 1 => Ok(vec![port(published, *target.start())]),
        Some(_) => Err(InvalidPort::Lengths),
    }
}

/// Returns `None` for all addresses of the host.
fn host_address(text: &str) -> Result<Option<IpAddr>, InvalidPort> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || InvalidPort::HostIp(text.to_owned());
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address: IpAddr = bare.parse().map_err(|_| invalid())?;
    match address.is_unspecified() {
        true => Ok(None),
        false if is_host_address(address) => Ok(Some(address)),
        false => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let port = |port: Port| {
            let (first, last) = (*port.published.start(), *port.published.end());
            let one = port.with(first).to_string();
            if first == last { one } else { format!("{one}..{last}") }
        };
        short(text).unwrap().into_iter().map(port).collect()
    }

    #[test]
    fn every_example_of_composes_short_syntax_is_parsed() {
        for (text, ports) in [
            ("3000", &["30000:3000/tcp..32767"][..]),
            ("3000-3001", &["30000:3000/tcp..32767", "30000:3001/tcp..32767"]),
            ("8000:8000", &["8000:8000/tcp"]),
            ("9090-9091:8080-8081", &["9090:8080/tcp", "9091:8081/tcp"]),
            ("8000-9000:80", &["8000:80/tcp..9000"]),
            ("192.0.2.1:8001:8001", &["192.0.2.1:8001:8001/tcp"]),
            ("192.0.2.1::80", &["192.0.2.1:30000:80/tcp..32767"]),
            ("0.0.0.0:80:80", &["80:80/tcp"]),
            ("fd00::1:6000:6000", &["[fd00::1]:6000:6000/tcp"]),
            ("[fd00::1]:6001:6001", &["[fd00::1]:6001:6001/tcp"]),
            ("6060:6060/udp", &["6060:6060/udp"]),
        ] {
            assert_eq!(shown(text), ports, "{text}");
        }
    }

    #[test]
    fn a_subnet_as_host_address_is_reported() {
        for (text, address) in [("10.0.0.0/24:1222:2", "10.0.0.0/24"), ("fd00::/64:80:80/udp", "fd00::/64")] {
            let error = short(text).unwrap_err().to_string();
            assert_eq!(error, format!("{address:?} is not an IP address of a host"), "{text}");
        }
    }

    #[test]
    fn invalid_ports_are_refused() {
        for text in [
            "",
            ":",
            "0",
            "80:",
            "80:0",
            "65536:80",
            "90-80:80",
            "80-81:80-82",
            "80:80-81",
            "x:80:80",
            "80/icmp",
        ] {
            assert!(short(text).is_err(), "{text}");
        }
    }
}
