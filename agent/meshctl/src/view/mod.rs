//! The objects as scripts see them: these shapes are a contract. What is absent is null.

pub(crate) mod service;

use std::collections::BTreeMap;

use mesh_model::{Availability, HostPolicy, NodeState, Role};
use mesh_proto::convert::{host_policy, required};
use mesh_proto::{InvalidMessage, Problem, v1};
use serde::Serialize;

use crate::client::incomplete;

/// The only driver there is.
pub(crate) const DRIVER: &str = "overlay";

/// A network.
#[derive(Debug, Serialize)]
pub(crate) struct Network {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) driver: &'static str,
    pub(crate) vni: u32,
    pub(crate) subnets: Vec<Subnet>,
    /// What endpoints get on this host, in bytes; null if the host does not know it.
    pub(crate) mtu: Option<u32>,
    pub(crate) encrypted: bool,
    pub(crate) internal: bool,
    pub(crate) attachable: bool,
    /// `none`, `dns` or `all`.
    pub(crate) host_access: &'static str,
    /// `block` or `allow`.
    pub(crate) metadata: &'static str,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) created_at: String,
    pub(crate) endpoints: Vec<Endpoint>,
    /// This host's, when the network is inspected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) counters: Option<Vec<NetworkCounter>>,
}

/// One subnet of a network.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the fields are called as scripts know them")]
pub(crate) struct Subnet {
    pub(crate) subnet: String,
    pub(crate) gateway: String,
    pub(crate) ip_range: Option<String>,
    pub(crate) aux: BTreeMap<String, String>,
}

/// A counter of one network.
#[derive(Debug, Serialize)]
pub(crate) struct NetworkCounter {
    pub(crate) reason: String,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// An endpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Endpoint {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) network: String,
    pub(crate) node: String,
    pub(crate) ipv4: Option<String>,
    pub(crate) ipv6: Option<String>,
    pub(crate) mac: String,
    pub(crate) ifname: String,
    pub(crate) service: Option<String>,
    pub(crate) aliases: Vec<String>,
    pub(crate) health: Option<String>,
    /// What its container should use to resolve names; null if the endpoint's host does not report
    /// it.
    pub(crate) dns: Option<Dns>,
    /// The runtime's key of it, such as `cni:app/0123abcd/eth0`; null if a person attached it.
    pub(crate) owner: Option<String>,
    pub(crate) created_at: String,
}

/// What resolv.conf(5) should have, under the words that it has there.
#[derive(Debug, Serialize)]
pub(crate) struct Dns {
    pub(crate) nameserver: Vec<String>,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// A node and how it is doing.
#[derive(Debug, Serialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) availability: Availability,
    pub(crate) state: NodeState,
    pub(crate) advertise_addr: String,
    pub(crate) data_path_addr: String,
    /// All addresses by which other hosts may reach its host.
    pub(crate) host_addrs: Vec<String>,
    pub(crate) version: String,
    pub(crate) leader: bool,
    pub(crate) last_seen: Option<String>,
    /// The nodes that cannot reach it.
    pub(crate) unreachable_from: Vec<UnreachableFrom>,
}

/// A node that cannot reach another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnreachableFrom {
    pub(crate) node: String,
    /// By WireGuard; else by VXLAN.
    pub(crate) encrypted: bool,
}

/// This host as a node: its record, without what only a manager knows of it.
#[derive(Debug, Serialize)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) availability: Availability,
    pub(crate) advertise_addr: String,
    pub(crate) data_path_addr: String,
    pub(crate) data_path_mtu: u32,
    pub(crate) version: String,
    pub(crate) created_at: String,
}

/// The cluster.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cluster {
    pub(crate) id: String,
    pub(crate) data_path_port: u32,
    pub(crate) default_addr_pools: Vec<String>,
    pub(crate) default_addr_pool_mask_length: u32,
    pub(crate) ipv6_pool: String,
    pub(crate) dsr: bool,
    pub(crate) created_at: String,
}

/// What an object is called, where no more than that is left of it.
#[derive(Debug, Serialize)]
pub(crate) struct Named {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// Text that is absent when empty.
pub(crate) fn present(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// A message that is not what it should be.
pub(crate) fn unusable(error: &InvalidMessage) -> Problem {
    incomplete(&format!("a usable {}", error.field))
}

impl Network {
    /// `mtu` is what the datapath allows on this host, as far as the host can tell; the network's
    /// own is its upper bound.
    pub(crate) fn new(network: v1::Network, endpoints: Vec<v1::Endpoint>, mtu: Option<u32>) -> Self {
        let mut endpoints: Vec<Endpoint> = endpoints.into_iter().map(Into::into).collect();
        endpoints.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let HostPolicy { access, metadata } =
            host_policy::read(network.host_access, network.metadata).unwrap_or_default();
        Self {
            host_access: access.as_str(),
            metadata: metadata.as_str(),
            id: network.id,
            name: network.name,
            driver: DRIVER,
            vni: network.vni,
            subnets: network.subnets.into_iter().map(Into::into).collect(),
            mtu: network.mtu.into_iter().chain(mtu).min(),
            encrypted: network.encrypted,
            internal: network.internal,
            attachable: network.attachable,
            labels: network.labels.into_iter().collect(),
            options: network.options.into_iter().collect(),
            created_at: network.created_at,
            endpoints,
            counters: None,
        }
    }
}

impl From<v1::Subnet> for Subnet {
    fn from(subnet: v1::Subnet) -> Self {
        Self {
            subnet: subnet.subnet,
            gateway: subnet.gateway,
            ip_range: subnet.ip_range.and_then(present),
            aux: subnet.aux.into_iter().collect(),
        }
    }
}

impl From<v1::Counter> for NetworkCounter {
    fn from(counter: v1::Counter) -> Self {
        Self { reason: counter.reason, packets: counter.packets, bytes: counter.bytes }
    }
}

impl From<v1::Endpoint> for Endpoint {
    fn from(endpoint: v1::Endpoint) -> Self {
        Self {
            id: endpoint.id,
            name: endpoint.name,
            network: endpoint.network_name,
            node: endpoint.node_name,
            ipv4: present(endpoint.ipv4),
            ipv6: present(endpoint.ipv6),
            mac: endpoint.mac,
            ifname: endpoint.ifname,
            service: present(endpoint.service),
            aliases: endpoint.aliases,
            health: present(endpoint.health),
            dns: endpoint.dns.map(Into::into),
            owner: endpoint.owner.map(|owner| {
                let v1::Owner { runtime, config, container, ifname } = owner;
                format!("{runtime}:{config}/{container}/{ifname}")
            }),
            created_at: endpoint.created_at,
        }
    }
}

impl From<v1::Dns> for Dns {
    fn from(dns: v1::Dns) -> Self {
        Self { nameserver: dns.nameservers, search: dns.search, options: dns.options }
    }
}

impl TryFrom<v1::NodeStatus> for Node {
    type Error = Problem;

    fn try_from(status: v1::NodeStatus) -> Result<Self, Problem> {
        let state = status.state().try_into().map_err(|e| unusable(&e))?;
        let node = required("node", status.node).map_err(|e| unusable(&e))?;
        Ok(Self {
            role: node.role().try_into().map_err(|e| unusable(&e))?,
            availability: node.availability().try_into().map_err(|e| unusable(&e))?,
            state,
            id: node.id,
            name: node.name,
            advertise_addr: node.advertise_addr,
            data_path_addr: node.data_path_addr,
            host_addrs: node.host_addrs,
            version: node.version,
            leader: status.leader,
            last_seen: present(status.last_seen),
            unreachable_from: status
                .unreachable_from
                .into_iter()
                .map(|from| UnreachableFrom { node: from.node, encrypted: from.encrypted })
                .collect(),
        })
    }
}

impl TryFrom<v1::Node> for Member {
    type Error = Problem;

    fn try_from(node: v1::Node) -> Result<Self, Problem> {
        Ok(Self {
            role: node.role().try_into().map_err(|e| unusable(&e))?,
            availability: node.availability().try_into().map_err(|e| unusable(&e))?,
            id: node.id,
            name: node.name,
            advertise_addr: node.advertise_addr,
            data_path_addr: node.data_path_addr,
            data_path_mtu: node.data_path_mtu,
            version: node.version,
            created_at: node.created_at,
        })
    }
}

impl From<v1::Cluster> for Cluster {
    fn from(cluster: v1::Cluster) -> Self {
        Self {
            id: cluster.id,
            data_path_port: cluster.data_path_port,
            default_addr_pools: cluster.default_addr_pools,
            default_addr_pool_mask_length: cluster.default_addr_pool_mask_length,
            ipv6_pool: cluster.ipv6_pool,
            dsr: cluster.dsr,
            created_at: cluster.created_at,
        }
    }
}

/// A role as people type it.
pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// An availability as people type it.
pub(crate) fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Drain => "drain",
    }
}

/// A node's state as people type it.
pub(crate) fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
    }
}
