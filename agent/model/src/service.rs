//! Services: named sets of endpoints behind a virtual address and published ports.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::word::{InvalidWord, words};
use crate::{HealthCheck, Name, NetworkId, PublishedPort, ServiceId};

/// What a service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// A virtual address, balanced over the backends.
    Vip,
    /// The backends' own addresses, in changing order.
    Dnsrr,
}

/// Whether a client's connections stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// Each connection goes to a backend of its own choice.
    None,
    /// All connections of one client address go to the same backend.
    ClientIp,
}

/// What becomes of new connections to a service while none of its backends passes its check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenAllUnhealthy {
    /// All backends get them: the check may be wrong.
    #[default]
    All,
    /// None gets them: they are refused.
    None,
}

words!(EndpointMode, "endpoint mode", "vip or dnsrr", Vip = "vip", Dnsrr = "dnsrr");
words!(WhenAllUnhealthy, "choice for when all are unhealthy", "all or none", All = "all", None = "none");
words!(Affinity, "affinity", "none or client-ip", None = "none", ClientIp = "client-ip");

/// A named set of endpoints of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its identity.
    pub id: ServiceId,
    /// Its name, unique among the services of its network.
    pub name: Name,
    /// The network that its backends are in.
    pub network: NetworkId,
    /// What its name resolves to.
    pub endpoint_mode: EndpointMode,
    /// Its virtual IPv4 address: with mode vip in a network with an IPv4 subnet.
    pub vip: Option<Ipv4Addr>,
    /// Its virtual IPv6 address: with mode vip in a network with an IPv6 subnet.
    pub vip6: Option<Ipv6Addr>,
    /// The ports that hosts answer for it. Their published ports are chosen, none is 0.
    pub ports: Vec<PublishedPort>,
    /// Whether a client's connections stay together.
    pub affinity: Affinity,
    /// How its backends are checked; `None`: they are not.
    pub health: Option<HealthCheck>,
    /// What becomes of new connections while no backend passes the check.
    #[serde(default)]
    pub when_all_unhealthy: WhenAllUnhealthy,
    /// Further names that resolve to what its name does.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Free-form labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Service {
    /// Its virtual addresses, IPv4 first.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vip.map(IpAddr::V4).into_iter().chain(self.vip6.map(IpAddr::V6))
    }
}
