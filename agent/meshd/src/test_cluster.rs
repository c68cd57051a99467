//! A small cluster as one of its nodes knows it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_model::cluster::Cluster;
use mesh_model::{Availability, Lease, LeaseState, Network, Node, Role, Subnet};

use crate::view::ClusterView;

/// The node `h1` with the address 192.0.2.1.
pub(crate) fn node() -> Node {
    Node {
        id: format!("{:024x}", 1).parse().unwrap(),
        name: "h1".parse().unwrap(),
        role: Role::Worker,
        availability: Availability::Active,
        advertise_addr: SocketAddr::from(([192, 0, 2, 1], 7377)),
        data_path_addr: [192, 0, 2, 1].into(),
        data_path_mtu: 1500.try_into().unwrap(),
        version: "test".into(),
        wireguard: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// What it knows at revision 3: a network `app`, of which it has leased the first block.
pub(crate) fn view() -> ClusterView {
    let cluster = Cluster {
        id: "c".into(),
        data_path_port: 4789,
        default_addr_pools: vec!["10.64.0.0/10".parse().unwrap()],
        default_addr_pool_mask_length: 20,
        ipv6_pool: "fd00:1:2::/48".parse().unwrap(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        dsr: false,
    };
    let network = Network {
        id: format!("{:024x}", 9).parse().unwrap(),
        name: "app".parse().unwrap(),
        vni: 4096.try_into().unwrap(),
        subnets: vec![Subnet {
            subnet: "10.64.0.0/20".parse().unwrap(),
            gateway: [10, 64, 0, 1].into(),
            ip_range: None,
            aux: BTreeMap::new(),
        }],
        mtu: None,
        encrypted: false,
        internal: false,
        attachable: true,
        removing: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let lease = Lease {
        network: network.id.clone(),
        prefix: "10.64.0.0/26".parse().unwrap(),
        node: node().id,
        state: LeaseState::Active,
        revision: 3,
    };
    let mut view = ClusterView::new(cluster, node(), vec![]);
    view.revision = 3;
    view.leases.insert((network.id.clone(), lease.prefix), lease);
    view.networks.insert(network.id.clone(), network);
    view
}
