//! Endpoints: a node's own records, kept on its disk and reported to the managers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{EndpointId, IfName, MacAddr, Name, NetworkId, NodeId, Owner};

/// How far an endpoint has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointPhase {
    /// Written down, its caller still waits: undone when the agent restarts.
    Attaching,
    /// Its caller has the answer: kept across restarts.
    Attached,
}

/// One container's attachment to one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Its name, unique within its network.
    pub name: Name,
    /// The network.
    pub network: NetworkId,
    /// The node it is on.
    pub node: NodeId,
    /// Its IPv4 address, when the network has an IPv4 subnet.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, when the network has an IPv6 subnet.
    pub ipv6: Option<Ipv6Addr>,
    /// Its device's address.
    pub mac: MacAddr,
    /// The device's name inside the container.
    pub ifname: IfName,
    /// May send packets whose source is not its own address, as a router does.
    #[serde(default)]
    pub allow_forwarding: bool,
    /// The service it is a backend of.
    #[serde(default)]
    pub service: Option<Name>,
    /// Further names that resolve to it.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Where its namespace is.
    pub netns: NetnsRef,
    /// The runtime's key of it; `None` if a person attached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// How far it has come.
    pub phase: EndpointPhase,
    /// When it was attached.
    pub created_at: Timestamp,
}

impl Endpoint {
    /// The device's name on the host: `mesh` and the first eight characters of the id.
    pub fn host_ifname(&self) -> IfName {
        host_ifname(&self.id)
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

/// The host's end of an endpoint's veth pair: `mesh` and eight hexadecimal characters.
pub fn host_ifname(id: &EndpointId) -> IfName {
    format!("mesh{}", id.short(8))
        .parse()
        .expect("four letters and eight hexadecimal characters are a valid name")
}

/// A container's network namespace: the path it is reached by, and what tells that it is still the
/// same one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsRef {
    /// A file that can be opened to enter it: `/run/netns/NAME`, `/proc/PID/ns/net`, or a runtime's
    /// own.
    pub path: PathBuf,
    /// Inode number on nsfs (namespaces(7)): another one at the same path means that the old
    /// namespace is gone.
    pub inode: u64,
    /// The kernel's own number of the namespace (`SO_NETNS_COOKIE`), which it never gives twice, as
    /// it may an inode number; 0 where it has none to tell.
    #[serde(default)]
    pub cookie: u64,
}

impl NetnsRef {
    /// Whether both mean the same namespace, by whichever path.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.inode, self.cookie) == (other.inode, other.cookie)
    }
}
