//! Random desired states, small enough that two of them often share parts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use mesh_model::desired::{Desired, Encapsulation, Peer, Underlay};
use mesh_model::endpoint::{Endpoint, EndpointPhase, NetnsRef};
use mesh_model::{
    EndpointId, InterfacePatterns, Lease, LeaseState, MacAddr, Network, NetworkId, NodeId, Subnet,
};
use proptest::prelude::*;

/// The address of this node on its underlay.
pub(crate) const UNDERLAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);

/// The variable properties of a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkShape {
    pub number: u8,
    pub ipv6: bool,
    pub second_subnet: bool,
    pub internal: bool,
    pub mtu: Option<u32>,
}

/// The variable properties of an endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndpointShape {
    pub number: u8,
    pub network: u8,
    pub container: u8,
    pub host_part: u8,
    pub allow_forwarding: bool,
}

/// The variable properties of a desired state.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// MTU of each other node.
    pub others: Vec<u32>,
    pub networks: Vec<NetworkShape>,
    pub endpoints: Vec<EndpointShape>,
    /// Single addresses that another node borrowed from this node's block.
    pub borrowed: BTreeSet<(u8, u8)>,
    pub port: u16,
}

fn network_shapes() -> impl Strategy<Value = Vec<NetworkShape>> {
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(1280..1500u32));
    prop::collection::btree_map(0..3u8, shape, 0..4).prop_map(|shapes| {
        let shapes = shapes.into_iter();
        shapes
            .map(|(number, (ipv6, second_subnet, internal, mtu))| NetworkShape {
                number,
                ipv6,
                second_subnet,
                internal,
                mtu,
            })
            .collect()
    })
}

fn endpoint_shapes() -> impl Strategy<Value = Vec<EndpointShape>> {
    let shape = (0..3u8, 0..3u8, any::<bool>());
    prop::collection::btree_map(0..6u8, shape, 0..7).prop_map(|shapes| {
        let shapes = shapes.into_iter();
        shapes
            .map(|(number, (network, container, allow_forwarding))| EndpointShape {
                number,
                network,
                container,
                host_part: 2 + number,
                allow_forwarding,
            })
            .collect()
    })
}

/// Generates any desired state of this node.
pub(crate) fn shapes() -> impl Strategy<Value = Shape> {
    (
        prop::collection::vec(prop::sample::select(vec![1400u32, 1500, 9000]), 0..4),
        network_shapes(),
        endpoint_shapes(),
        prop::collection::btree_set((0..3u8, 20..24u8), 0..3),
        prop::sample::select(vec![4789u16, 4789, 4790]),
    )
        .prop_map(|(others, networks, endpoints, borrowed, port)| Shape {
            others,
            networks,
            endpoints,
            borrowed,
            port,
        })
}

pub(crate) fn node_id(number: usize) -> NodeId {
    format!("{number:024x}").parse().unwrap()
}

pub(crate) fn network_id(number: u8) -> NetworkId {
    format!("{number:024x}").parse().unwrap()
}

/// An endpoint never changes, so another shape is another endpoint. Ids differ in their first eight
/// characters, which determine the device names.
pub(crate) fn endpoint_id(shape: EndpointShape) -> EndpointId {
    let EndpointShape { number, network, container, allow_forwarding, .. } = shape;
    format!("{number:02x}{network:02x}{container:02x}{:02x}{:016x}", u8::from(allow_forwarding), 0)
        .parse()
        .unwrap()
}

pub(crate) fn network(shape: NetworkShape) -> Network {
    let number = shape.number;
    let subnet = |text: String, gateway: String| Subnet {
        subnet: text.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
        ip_range: None,
        aux: BTreeMap::new(),
    };
    let mut subnets = vec![subnet(format!("10.64.{number}.0/24"), format!("10.64.{number}.1"))];
    if shape.second_subnet {
        subnets.push(subnet(format!("10.65.{number}.0/24"), format!("10.65.{number}.1")));
    }
    if shape.ipv6 {
        subnets.push(subnet(format!("fd00:64:0:{number}::/64"), format!("fd00:64:0:{number}::1")));
    }
    Network {
        id: network_id(number),
        name: format!("net{number}").parse().unwrap(),
        vni: (4096 + u32::from(number)).try_into().unwrap(),
        subnets,
        mtu: shape.mtu.map(|mtu| mtu.try_into().unwrap()),
        encrypted: false,
        internal: shape.internal,
        attachable: true,
        host_policy: mesh_model::HostPolicy::default(),
        removing: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

/// Builds a desired state; `namespace` returns the namespace of a container.
pub(crate) fn desired(shape: &Shape, namespace: impl Fn(u8) -> NetnsRef) -> Desired {
    let networks: BTreeMap<NetworkId, Network> = shape
        .networks
        .iter()
        .map(|shape| network(*shape))
        .map(|network| (network.id.clone(), network))
        .collect();
    let mut nodes = BTreeMap::from([(
        node_id(0),
        Peer {
            address: UNDERLAY.into(),
            control_address: None,
            host_addresses: BTreeSet::new(),
            mtu: 1500.try_into().unwrap(),
            wireguard_port: 0,
        },
    )]);
    for (number, mtu) in shape.others.iter().enumerate() {
        let last = u8::try_from(12 + number).unwrap();
        let address = IpAddr::V4(Ipv4Addr::new(192, 168, 77, last));
        nodes.insert(
            node_id(1 + number),
            Peer {
                address,
                control_address: None,
                host_addresses: BTreeSet::new(),
                mtu: (*mtu).try_into().unwrap(),
                wireguard_port: 51820,
            },
        );
    }
    let mut leases = BTreeSet::new();
    let mut lease = |network: u8, prefix: String, node: usize, state: LeaseState| {
        leases.insert(Lease {
            network: network_id(network),
            prefix: prefix.parse().unwrap(),
            node: node_id(node),
            state,
            revision: 0,
        });
    };
    for NetworkShape { number, .. } in &shape.networks {
        for node in 0..=shape.others.len().min(3) {
            lease(*number, format!("10.64.{number}.{}/26", node * 64), node, LeaseState::Active);
        }
    }
    for (number, last) in &shape.borrowed {
        lease(*number, format!("10.64.{number}.{last}/32"), 1, LeaseState::Active);
        lease(
            *number,
            format!("10.64.{number}.{}/32", last + 100),
            0,
            LeaseState::Pending { from: node_id(1), replaced: false },
        );
    }
    let endpoints = shape
        .endpoints
        .iter()
        .filter_map(|endpoint| {
            let network = shape.networks.iter().find(|network| network.number == endpoint.network)?;
            Some(self::endpoint(*endpoint, *network, namespace(endpoint.container)))
        })
        .map(|endpoint| (endpoint.id.clone(), endpoint))
        .collect();
    Desired {
        wireguard_peers: BTreeMap::new(),
        wireguard_number: 0,
        wireguard_generations: BTreeSet::new(),
        avoided_ports: [51820].into(),
        node: node_id(0),
        underlay: Underlay {
            address: UNDERLAY.into(),
            port: shape.port,
            encapsulation: Encapsulation::Direct,
            dsr: false,
        },
        publish_interfaces: InterfacePatterns::default(),
        nodes,
        networks,
        leases,
        endpoints,
    }
}

fn endpoint(shape: EndpointShape, network: NetworkShape, netns: NetnsRef) -> Endpoint {
    let EndpointShape { number, host_part, .. } = shape;
    let third = network.number;
    let ipv6 = Ipv6Addr::new(0xfd00, 0x64, 0, third.into(), 0, 0, 0, host_part.into());
    Endpoint {
        id: endpoint_id(shape),
        name: format!("ep{number}").parse().unwrap(),
        network: network_id(third),
        node: node_id(0),
        ipv4: Some(Ipv4Addr::new(10, 64, third, host_part)),
        ipv6: network.ipv6.then_some(ipv6),
        mac: MacAddr::new([0x02, 0x42, 10, 64, third, host_part]).unwrap(),
        ifname: format!("eth{number}").parse().unwrap(),
        allow_forwarding: shape.allow_forwarding,
        service: None,
        aliases: Vec::new(),
        netns,
        owner: None,
        phase: EndpointPhase::Attached,
        created_at: Timestamp::from_second(i64::from(number)).unwrap(),
    }
}
