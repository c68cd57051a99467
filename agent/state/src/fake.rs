//! A small cluster as one of its nodes knows it, for tests.

#![expect(clippy::unwrap_used, reason = "every value is valid")]

use std::collections::BTreeMap;
use std::path::Path;

use mesh_ipam::Delays;
use mesh_model::cluster::Cluster;
use mesh_model::desired::Encapsulation;
use mesh_model::endpoint::NetnsRef;
use mesh_model::{
    Affinity, Availability, Backend, BackendState, Endpoint, EndpointMode, EndpointPhase, Lease, LeaseState,
    Network, Node, NodeId, Role, Service, Subnet,
};

use crate::agent::Agent;
use crate::state_paths::StatePaths;
use crate::view::ClusterView;

/// The node `h1` with the address 192.0.2.1.
pub fn node() -> Node {
    numbered_node(1)
}

/// The node `hN` with the address 192.0.2.N.
pub fn numbered_node(number: u8) -> Node {
    Node {
        id: format!("{number:024x}").parse().unwrap(),
        name: format!("h{number}").parse().unwrap(),
        role: Role::Worker,
        availability: Availability::Active,
        advertise_addr: ([192, 0, 2, number], 7377).into(),
        data_path_addr: [192, 0, 2, number].into(),
        data_path_mtu: 1500.try_into().unwrap(),
        version: "test".into(),
        wireguard: None,
        host_addrs: std::collections::BTreeSet::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// The cluster's record.
pub fn cluster() -> Cluster {
    Cluster {
        id: "c".into(),
        data_path_port: 4789,
        default_addr_pools: vec!["10.64.0.0/10".parse().unwrap()],
        default_addr_pool_mask_length: 20,
        ipv6_pool: "fd00:1:2::/48".parse().unwrap(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        dsr: false,
    }
}

/// The network `app`, 10.64.0.0/20.
pub fn network() -> Network {
    Network {
        id: format!("{:024x}", 9).parse().unwrap(),
        name: "app".parse().unwrap(),
        vni: 4096.try_into().unwrap(),
        subnets: vec![subnet(64)],
        mtu: None,
        encrypted: false,
        internal: false,
        attachable: true,
        host_policy: mesh_model::HostPolicy::default(),
        removing: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// The subnet 10.N.0.0/20.
pub fn subnet(number: u8) -> Subnet {
    Subnet {
        subnet: format!("10.{number}.0.0/20").parse().unwrap(),
        gateway: [10, number, 0, 1].into(),
        ip_range: None,
        aux: BTreeMap::new(),
    }
}

/// A block of a network that a node has leased.
pub fn lease(network: &Network, prefix: &str, node: NodeId) -> Lease {
    Lease {
        network: network.id.clone(),
        prefix: prefix.parse().unwrap(),
        node,
        state: LeaseState::Active,
        revision: 3,
    }
}

/// What `h1` knows at revision 3: the network `app`, of which it has leased the first block.
pub fn view() -> ClusterView {
    let network = network();
    let lease = lease(&network, "10.64.0.0/26", node().id);
    let mut view = ClusterView::new(cluster(), node(), vec![]);
    view.revision = 3;
    view.leases.insert((network.id.clone(), lease.prefix), lease);
    view.networks.insert(network.id.clone(), network);
    view
}

/// The service `sN` of the network `app`, with a virtual address.
pub fn service(number: u32) -> Service {
    // Ids of services are random from their first character on.
    let id = u128::from(number.wrapping_mul(0x9e37_79b9)) << 64 | u128::from(number);
    Service {
        id: format!("{id:024x}").parse().unwrap(),
        name: format!("s{number}").parse().unwrap(),
        network: network().id,
        endpoint_mode: EndpointMode::Vip,
        vip: Some(std::net::Ipv4Addr::from_bits(0x0A40_0800 + number)),
        vip6: None,
        ports: Vec::new(),
        affinity: Affinity::None,
        health: None,
        when_all_unhealthy: mesh_model::WhenAllUnhealthy::All,
        aliases: Vec::new(),
        labels: BTreeMap::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// A backend of that service, on node `hM` where M is its number modulo 3, plus 1.
pub fn backend(service: &Service, number: u32) -> Backend {
    Backend {
        id: number.try_into().unwrap(),
        service: service.id.clone(),
        network: service.network.clone(),
        endpoint: format!("{number:024x}").parse().unwrap(),
        name: format!("c{number}").parse().unwrap(),
        node: format!("{:024x}", number % 3 + 1).parse().unwrap(),
        ipv4: Some(std::net::Ipv4Addr::from_bits(0x0A40_0000 + number)),
        ipv6: None,
        state: BackendState::Active,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// The agent of `h1`, which keeps its state in `dir` and begins with [`view`].
pub fn agent(dir: &Path) -> Agent {
    agent_with(dir, view())
}

/// The agent of `h1`, which keeps its state in `dir` and begins with this view.
pub fn agent_with(dir: &Path, view: ClusterView) -> Agent {
    Agent::load(node(), view, Encapsulation::Direct, StatePaths::new(dir), Delays::default()).unwrap()
}

/// The endpoint `cN`.
pub fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        id: format!("{n:024x}").parse().unwrap(),
        name: format!("web-{n}").parse().unwrap(),
        network: format!("{:024x}", 1).parse().unwrap(),
        node: format!("{:024x}", 2).parse().unwrap(),
        ipv4: Some([10, 64, 0, n].into()),
        ipv6: None,
        mac: format!("02:42:0a:40:00:{n:02x}").parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
        allow_forwarding: false,
        service: None,
        aliases: vec![],
        netns: NetnsRef { path: format!("/run/netns/web-{n}").into(), inode: n.into(), cookie: 0 },
        owner: None,
        phase: EndpointPhase::Attaching,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}
