//! An attachment as a container runtime needs to know it.

use std::net::IpAddr;
use std::path::PathBuf;

use mesh_model::IfName;
use mesh_proto::{Problem, v1};

/// One interface of one container, with both of its ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// The endpoint.
    pub endpoint: v1::Endpoint,
    /// The device on the host.
    pub host_ifname: IfName,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// MTU inside the container, in bytes; `None` before the kernel loop has run once.
    pub mtu: Option<u32>,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<AttachedAddress>,
    /// Whether the network has no way outside, and so the container no default route.
    pub internal: bool,
}

/// An address inside a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its subnet's prefix, in bits.
    pub prefix_len: u8,
    /// The gateway of its subnet.
    pub gateway: IpAddr,
}

/// Whether this agent can attach containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It can as long as its leases last, since it reaches no manager.
    Limited(Problem),
    /// It cannot, since this host is no member of a cluster.
    NotMember(Problem),
}
