//! The cluster's records, as the store keeps them (JSON), and as the managers send them to agents.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{HostPolicy, Mtu, Name, NetworkId, NodeId, Prefix, Vni};

/// What is true for the whole cluster: written once by `cluster init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The cluster's own identity, drawn at `cluster init`.
    pub id: String,
    /// UDP port of VXLAN on every node.
    pub data_path_port: u16,
    /// Where automatic subnets come from, in order.
    pub default_addr_pools: Vec<Prefix>,
    /// Prefix length of automatic IPv4 subnets.
    pub default_addr_pool_mask_length: u8,
    /// A /48 of unique local addresses (RFC 4193) drawn at `cluster init`: automatic IPv6 subnets
    /// are its /64s.
    pub ipv6_pool: Prefix,
    /// When the cluster was made.
    pub created_at: Timestamp,
    /// Direct server return: replies of published ports leave by the backend's own node, with the
    /// address that the client spoke to as their source. The underlay must let such packets pass.
    #[serde(default)]
    pub dsr: bool,
}

/// What a node may do in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves the control plane and keeps the store.
    Manager,
    /// Runs endpoints; may write its own records only.
    Worker,
}

/// Whether a node takes new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes new endpoints.
    Active,
    /// Keeps what it has, takes nothing new; its backends get no new connections.
    Drain,
}

/// How a node is doing: never stored, always derived from its session and from probes of its
/// datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Its agent's session is alive.
    Ready,
    /// Its agent is silent, but its datapath answers: nothing is withdrawn.
    Unknown,
    /// The host itself does not answer.
    Down,
}

/// A node's keys for the tunnels of encrypted networks, as it announces them itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wireguard {
    /// UDP port that its engine listens on, at its data-path address.
    pub port: u16,
    /// Public keys (Curve25519, base64) by generation. The newest is the one to begin sessions
    /// with; older ones are still answered while a rotation is under way.
    pub keys: BTreeMap<u32, String>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity, the subject of its certificate.
    pub id: NodeId,
    /// Its name, unique in the cluster; by default the host's name.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// Whether it takes new work.
    pub availability: Availability,
    /// Where its control plane is reached (managers), or would be.
    pub advertise_addr: SocketAddr,
    /// Its address on the underlay: the outer address of its tunnels.
    pub data_path_addr: IpAddr,
    /// MTU of its data-path interface; networks take the least over all nodes.
    pub data_path_mtu: Mtu,
    /// Version of its agent.
    pub version: String,
    /// Its keys for encrypted networks, once it has announced some.
    #[serde(default)]
    pub wireguard: Option<Wireguard>,
    /// All addresses of its host that other hosts may reach, as its agent reports them.
    #[serde(default)]
    pub host_addrs: BTreeSet<IpAddr>,
    /// When it joined.
    pub created_at: Timestamp,
}

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet itself.
    pub subnet: Prefix,
    /// The address of the network's gateway on every host.
    pub gateway: IpAddr,
    /// Dynamic addresses come from here only, when set.
    pub ip_range: Option<Prefix>,
    /// Addresses that are never handed out, by the name of what has them.
    #[serde(default)]
    pub aux: BTreeMap<String, IpAddr>,
}

/// An isolated layer-3 overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent flag of the network, named as people type it"
)]
pub struct Network {
    /// Its identity.
    pub id: NetworkId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Its VNI, unique in the cluster.
    pub vni: Vni,
    /// Its subnets: one or more IPv4, and IPv6 ones where asked for.
    pub subnets: Vec<Subnet>,
    /// Upper bound of the endpoints' MTU; `None` follows the underlay alone.
    pub mtu: Option<Mtu>,
    /// Leaves a host inside WireGuard or not at all.
    pub encrypted: bool,
    /// Reaches nothing outside.
    pub internal: bool,
    /// May be attached to by hand.
    pub attachable: bool,
    /// What its containers may reach of the hosts.
    #[serde(default)]
    pub host_policy: HostPolicy,
    /// Being removed: takes no new endpoints. Set for the moment in which a removal asks every
    /// node.
    #[serde(default)]
    pub removing: bool,
    /// Free-form labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Network {
    /// The first 96 bits of its first IPv6 subnet, as the datapath knows them; zero without one.
    pub fn prefix6(&self) -> [u8; 12] {
        let mut prefix6 = [0; 12];
        let first = self.subnets.iter().find_map(|subnet| match subnet.subnet.first() {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6.octets()),
        });
        if let Some(octets) = first {
            prefix6.copy_from_slice(&octets[..12]);
        }
        prefix6
    }
}

/// Whether a lease may be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// The node may hand out its addresses.
    Active,
    /// Asked of the owner, who has not yet agreed.
    Pending {
        /// The owner.
        from: NodeId,
        /// Whether the owner held a lease of this very prefix, which a refusal brings back; if not,
        /// a block around it.
        #[serde(default)]
        replaced: bool,
    },
}

/// A node's right to the addresses of a prefix; the most specific lease of an address wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lease {
    /// Of which network.
    pub network: NetworkId,
    /// Which addresses.
    pub prefix: Prefix,
    /// Whose.
    pub node: NodeId,
    /// Whether it may be used.
    pub state: LeaseState,
    /// The store's revision at which this record was last written: tells it from an earlier or
    /// later one of the same prefix. It is 0 in the stored value itself; whoever reads the record
    /// fills it in.
    #[serde(default)]
    pub revision: u64,
}

impl Lease {
    /// The record of a lease in a network.
    pub fn of(network: &NetworkId, lease: mesh_ipam::Lease<NodeId>) -> Self {
        let state = match lease.state {
            mesh_ipam::LeaseState::Active => LeaseState::Active,
            mesh_ipam::LeaseState::Pending { from, replaced } => LeaseState::Pending { from, replaced },
        };
        let (prefix, node, revision) = (lease.prefix, lease.node, lease.revision);
        Self { network: network.clone(), prefix, node, state, revision }
    }
}

impl From<&Lease> for mesh_ipam::Lease<NodeId> {
    fn from(lease: &Lease) -> Self {
        let state = match lease.state.clone() {
            LeaseState::Active => mesh_ipam::LeaseState::Active,
            LeaseState::Pending { from, replaced } => mesh_ipam::LeaseState::Pending { from, replaced },
        };
        Self { prefix: lease.prefix, node: lease.node.clone(), state, revision: lease.revision }
    }
}
