//! Published ports: ports of the hosts themselves that a service answers on.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::word::{InvalidWord, words};

/// A transport with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in IP headers (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Which backends answer on a host's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// Those of all hosts, on every host.
    Ingress,
    /// Only those of that very host.
    Host,
}

words!(Protocol, "protocol", "tcp, udp or sctp", Tcp = "tcp", Udp = "udp", Sctp = "sctp");
words!(PublishMode, "publish mode", "ingress or host", Ingress = "ingress", Host = "host");

/// A port of the hosts that leads to a port of a service's backends. Its text form is what
/// `--publish` takes: `[HOSTIP:]PUBLISHED:TARGET[/PROTOCOL]`, or
/// `published=,target=,protocol=,mode=,host-ip=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The hosts' port; 0 only in a request: a free one of [`PublishedPort::AUTOMATIC`].
    pub published: u16,
    /// The backends' port, not 0.
    pub target: u16,
    /// The transport.
    pub protocol: Protocol,
    /// Which backends answer.
    pub mode: PublishMode,
    /// Only on this address of the hosts; `None`: on all.
    pub host_ip: Option<IpAddr>,
}

/// A text that is no published port.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPublishedPort {
    /// Neither form.
    #[error(
        "{text:?} is no published port: [HOSTIP:]PUBLISHED:TARGET[/tcp|udp|sctp] or published=,target=,protocol=,mode=,host-ip="
    )]
    Syntax {
        /// What was given.
        text: String,
    },
    /// Not a port's number.
    #[error("{field} {text:?} is no port: {}", if *field == "published" { "0 to 65535" } else { "1 to 65535" })]
    Port {
        /// Which of the two.
        field: &'static str,
        /// What was given.
        text: String,
    },
    /// A range of ports.
    #[error("{text:?} is a range of ports: publish each by itself")]
    Range {
        /// What was given.
        text: String,
    },
    /// Not an address that a host can have.
    #[error("host address {text:?} is no IP address of a host")]
    HostIp {
        /// What was given.
        text: String,
    },
    /// Neither tcp nor udp nor sctp, or neither ingress nor host.
    #[error(transparent)]
    Word(#[from] InvalidWord),
    /// A key that there is not, or twice.
    #[error(
        "{key:?} is given twice or is no part of a published port: published, target, protocol, mode, host-ip"
    )]
    Key {
        /// What was given.
        key: String,
    },
    /// The backends' port is missing.
    #[error("{text:?} has no target: the port of the backends")]
    NoTarget {
        /// What was given.
        text: String,
    },
}

impl PublishedPort {
    /// Where published ports are chosen from.
    pub const AUTOMATIC: RangeInclusive<u16> = 30000..=32767;

    /// A port in mode ingress, on all addresses of the hosts.
    pub const fn ingress(published: u16, target: u16, protocol: Protocol) -> Self {
        Self { published, target, protocol, mode: PublishMode::Ingress, host_ip: None }
    }

    /// Whether both would answer for the same packets: same transport and port, and an address in
    /// common.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        (self.published, self.protocol) == (other.published, other.protocol)
            && (self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip)
    }

    /// Reads the fields' texts; an empty one has its default.
    fn from_texts(
        whole: &str,
        [published, target, protocol, mode, host_ip]: [&str; 5],
    ) -> Result<Self, InvalidPublishedPort> {
        if target.is_empty() {
            return Err(InvalidPublishedPort::NoTarget { text: whole.to_owned() });
        }
        Ok(Self {
            published: if published.is_empty() { 0 } else { port("published", published)? },
            target: port("target", target)?,
            protocol: if protocol.is_empty() { Protocol::Tcp } else { protocol.parse()? },
            mode: if mode.is_empty() { PublishMode::Ingress } else { mode.parse()? },
            host_ip: if host_ip.is_empty() { None } else { host_address(host_ip)? },
        })
    }
}

/// `None`: the unspecified address, which means all addresses.
fn host_address(text: &str) -> Result<Option<IpAddr>, InvalidPublishedPort> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let invalid = || InvalidPublishedPort::HostIp { text: text.to_owned() };
    let address: IpAddr = bare.parse().map_err(|_| invalid())?;
    // "0.0.0.0" is what people write for all addresses, and no host has it.
    if address.is_unspecified() {
        return Ok(None);
    }
    if is_host_address(address) { Ok(Some(address)) } else { Err(invalid()) }
}

/// Whether a host can have this address, and be reached by it from others or from itself.
pub fn is_host_address(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

fn port(field: &'static str, text: &str) -> Result<u16, InvalidPublishedPort> {
    if let Some((first, last)) = text.split_once('-')
        && first.parse::<u16>().is_ok()
        && last.parse::<u16>().is_ok()
    {
        return Err(InvalidPublishedPort::Range { text: text.to_owned() });
    }
    let invalid = || InvalidPublishedPort::Port { field, text: text.to_owned() };
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|_| digits_only).ok_or_else(invalid)?;
    if port == 0 && field == "target" { Err(invalid()) } else { Ok(port) }
}

impl FromStr for PublishedPort {
    type Err = InvalidPublishedPort;

    fn from_str(text: &str) -> Result<Self, InvalidPublishedPort> {
        if text.contains('=') { from_pairs(text) } else { from_colons(text) }
    }
}

const KEYS: [&str; 5] = ["published", "target", "protocol", "mode", "host-ip"];

fn from_pairs(text: &str) -> Result<PublishedPort, InvalidPublishedPort> {
    let mut texts = [None; 5];
    for pair in text.split(',') {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| InvalidPublishedPort::Syntax { text: text.to_owned() })?;
        let slot = KEYS.iter().position(|known| *known == key).filter(|&index| texts[index].is_none());
        let Some(index) = slot else { return Err(InvalidPublishedPort::Key { key: key.to_owned() }) };
        texts[index] = Some(value);
    }
    PublishedPort::from_texts(text, texts.map(Option::unwrap_or_default))
}

fn from_colons(text: &str) -> Result<PublishedPort, InvalidPublishedPort> {
    let syntax = || InvalidPublishedPort::Syntax { text: text.to_owned() };
    let (ports, protocol) = match text.rsplit_once('/') {
        Some((_, "")) => return Err(syntax()),
        // "10.0.0.0/24:80:80": what is before the ports is a subnet.
        Some((_, behind)) if behind.contains(':') => {
            let address = text.rsplitn(3, ':').last().unwrap_or(text);
            return Err(InvalidPublishedPort::HostIp { text: address.to_owned() });
        }
        Some(both) => both,
        None => (text, ""),
    };
    let (rest, target) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (host_ip, published) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // "[fe80::1]:8080:80": what follows the bracket begins with a colon.
        Some((address, rest)) => {
            address
                .parse::<Ipv6Addr>()
                .map_err(|_| InvalidPublishedPort::HostIp { text: address.to_owned() })?;
            (address, rest.strip_prefix(':').ok_or_else(syntax)?)
        }
        None => match rest.split_once(':') {
            Some((_, published)) if published.contains(':') => return Err(syntax()),
            Some(both) => both,
            None => ("", rest),
        },
    };
    PublishedPort::from_texts(text, [published, target, protocol, "", host_ip])
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { published, target, protocol, mode, host_ip } = self;
        match mode {
            PublishMode::Host => {
                write!(f, "published={published},target={target},protocol={protocol},mode=host")?;
                host_ip.map_or(Ok(()), |address| write!(f, ",host-ip={address}"))
            }
            PublishMode::Ingress => {
                match host_ip {
                    Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
                    Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
                    None => {}
                }
                write!(f, "{published}:{target}/{protocol}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<PublishedPort, InvalidPublishedPort> {
        text.parse()
    }

    #[test]
    fn both_forms_of_a_published_port_are_read() {
        let web = PublishedPort::ingress(8080, 80, Protocol::Tcp);
        let on = |address: &str| PublishedPort { host_ip: Some(address.parse().unwrap()), ..web };
        for (text, port) in [
            ("8080:80", web),
            ("8080:80/tcp", web),
            ("8080:80/udp", PublishedPort { protocol: Protocol::Udp, ..web }),
            ("0.0.0.0:8080:80", web),
            ("192.168.77.11:8080:80", on("192.168.77.11")),
            ("[fd00::7]:8080:80/tcp", on("fd00::7")),
            (":80", PublishedPort { published: 0, ..web }),
            ("80", PublishedPort { published: 0, ..web }),
            ("0:80", PublishedPort { published: 0, ..web }),
            ("192.168.77.11::80", PublishedPort { published: 0, ..on("192.168.77.11") }),
            ("target=80,published=8080", web),
            ("target=80", PublishedPort { published: 0, ..web }),
            (
                "published=8080,target=80,protocol=sctp,mode=host,host-ip=fd00::7",
                PublishedPort { protocol: Protocol::Sctp, mode: PublishMode::Host, ..on("fd00::7") },
            ),
        ] {
            assert_eq!(parse(text).unwrap(), port, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_published_port_says_which_part_is_wrong() {
        for (text, part) in [
            ("", "target"),
            (":", "target"),
            ("8080:", "target"),
            ("8080:80/", "published port"),
            ("8080:80/icmp", "protocol"),
            ("8080:0", "target"),
            ("x:80", "published"),
            ("+8080:80", "published"),
            ("65536:80", "published"),
            ("8080-8090:80", "range"),
            ("host:8080:80", "host address"),
            ("224.0.0.1:8080:80", "host address"),
            ("192.0.2.0/24:8080:80", "host address \"192.0.2.0/24\""),
            ("192.0.2.0/24:8080:80/udp", "host address \"192.0.2.0/24\""),
            ("[fd00::/64]:8080:80", "host address \"[fd00::/64]\""),
            ("published=8080,target=80,host-ip=192.0.2.0/24", "host address \"192.0.2.0/24\""),
            ("fd00::7:8080:80", "published port"),
            ("[fd00::7]8080:80", "published port"),
            ("[10.0.0.1]:8080:80", "host address"),
            ("published=1,published=2,target=80", "twice"),
            ("port=80", "\"port\""),
            ("published=8080", "target"),
            ("target=80,mode=swarm", "mode"),
            ("target=80,udp", "published port"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn port() -> impl Strategy<Value = PublishedPort> {
        let host_ip = prop::option::of(any::<IpAddr>().prop_filter("a host's", |ip| is_host_address(*ip)));
        let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
        let mode = prop::sample::select(vec![PublishMode::Ingress, PublishMode::Host]);
        (any::<u16>(), 1u16.., protocol, mode, host_ip).prop_map(
            |(published, target, protocol, mode, host_ip)| PublishedPort {
                published,
                target,
                protocol,
                mode,
                host_ip,
            },
        )
    }

    proptest! {
        #[test]
        fn a_published_port_survives_being_written_and_read(port in port()) {
            prop_assert_eq!(parse(&port.to_string()).unwrap(), port);
            let json = serde_json::to_string(&port).unwrap();
            prop_assert_eq!(serde_json::from_str::<PublishedPort>(&json).unwrap(), port);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-z:.,=/\\[\\]-]{0,40}") {
            if let Ok(port) = parse(&text) {
                prop_assert_eq!(parse(&port.to_string()).unwrap(), port);
            }
        }

        #[test]
        fn conflicts_are_mutual(one in port(), other in port()) {
            let other = PublishedPort { published: one.published, protocol: one.protocol, ..other };
            prop_assert_eq!(one.conflicts_with(&other), other.conflicts_with(&one));
            prop_assert!(one.conflicts_with(&one));
        }
    }
}
