//! What one node's kernel should look like, in the cluster's own terms: derived from the store's
//! records and from the node's own endpoints, never from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Endpoint, EndpointId, InterfacePatterns, Lease, Mtu, Network, NetworkId, NodeId};

/// How packets of clear networks are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// The programs write the outer headers themselves.
    Direct,
    /// The kernel's VXLAN device does; for kernels that lack a piece, and where it is asked for.
    Device,
}

/// The node's side of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The node's data-path address; the interface that has it is the data-path interface.
    pub address: IpAddr,
    /// UDP port of VXLAN.
    pub port: u16,
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
    /// Whether replies of published ports leave by this node, whichever the client spoke to.
    pub dsr: bool,
}

/// Another member, as far as the datapath cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The outer address of its tunnels.
    pub address: IpAddr,
    /// Where its control plane is reached, if that is another address.
    pub control_address: Option<IpAddr>,
    /// The other addresses of its host.
    pub host_addresses: BTreeSet<IpAddr>,
    /// MTU of its data-path interface.
    pub mtu: Mtu,
    /// UDP port of its WireGuard engine; 0 while it has announced none.
    pub wireguard_port: u16,
}

/// What a member's kernel should look like. A host that is no member desires `None` of this:
/// everything of ours goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// This node.
    pub node: NodeId,
    /// Its side of the underlay.
    pub underlay: Underlay,
    /// The host's interfaces that answer published ports.
    pub publish_interfaces: InterfacePatterns,
    /// All nodes of the cluster, this one included: the only addresses that VXLAN is taken from.
    pub nodes: BTreeMap<NodeId, Peer>,
    /// The networks that this node holds leases in.
    pub networks: BTreeMap<NetworkId, Network>,
    /// All leases of those networks, every node's.
    pub leases: BTreeSet<Lease>,
    /// The nodes that packets of encrypted networks can be sent to, with their numbers
    /// ([`crate::wireguard`]): those that share such a network with this node and have a key.
    /// Whoever is not among them gets none.
    pub wireguard_peers: BTreeMap<NodeId, u16>,
    /// This node's own number among them; 0 while it has no part in an encrypted network.
    pub wireguard_number: u16,
    /// Of which generations this node's keys are that packets may be encrypted with: one, or two
    /// while the kernel's engine goes over from one to the other.
    pub wireguard_generations: BTreeSet<u32>,
    /// Ports that what leaves masqueraded must not have: the published ones, of whatever protocol,
    /// and this node's WireGuard port.
    pub avoided_ports: BTreeSet<u16>,
    /// This node's endpoints.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
}
