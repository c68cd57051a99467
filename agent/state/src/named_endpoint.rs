//! Other nodes' endpoints, as far as names go.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_model::{Name, NodeId};
use serde::{Deserialize, Serialize};

/// Another node's endpoint, as far as names go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedEndpoint {
    /// The node that it is on.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Further names.
    pub aliases: Vec<Name>,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether a service that it is a backend of has a check that it does not pass, or has not
    /// passed yet.
    pub unhealthy: bool,
}
