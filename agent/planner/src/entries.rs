//! Entries of the datapath's maps.

use std::net::IpAddr;

use mesh_ebpf_types::{
    ALLOW_FORWARDING, Address, Block, BlockKey, BlockKind, CONTROL_ADDRESS, Config, DIRECT_RETURN, ENCRYPTED,
    EndpointKey, HOST_ADDRESS, HOST_ALL, HOST_DNS, HostRouteKey, INTERNAL, Interface, METADATA, Mac,
    MapEntry, Member, Vni,
};
use mesh_model::desired::{Encapsulation, Peer};
use mesh_model::{
    Desired, Endpoint, HostAccess, HostPolicy, Lease, LeaseState, MacAddr, MetadataAccess, Network, Prefix,
    naming,
};

/// Returns the entry of `CONFIG`; the underlay's fields are zero, for the caller to fill.
pub(crate) fn config(desired: &Desired, host_mac: MacAddr) -> Config {
    let encapsulation = match desired.underlay.encapsulation {
        Encapsulation::Direct => mesh_ebpf_types::Encapsulation::Direct,
        Encapsulation::Device => mesh_ebpf_types::Encapsulation::Device,
    };
    Config {
        local: desired.underlay.address.into(),
        vxlan_ifindex: naming::VXLAN_INDEX,
        host_ifindex: naming::HOST_LEG_PEER_INDEX,
        host_mac: Mac(host_mac.octets()),
        vxlan_port: desired.underlay.port.to_be_bytes(),
        encapsulation: encapsulation as u8,
        flags: if desired.underlay.dsr { DIRECT_RETURN } else { 0 },
        wireguard_port: desired.nodes.get(&desired.node).map_or(0, |own| own.wireguard_port).to_be_bytes(),
        ..Config::default()
    }
}

/// The other nodes, by all addresses of their hosts. This node's data-path address is not among
/// them: what claims to come from it is forged.
pub(crate) fn members(desired: &Desired) -> impl Iterator<Item = MapEntry> {
    let wireguard_port = |peer: &Peer| peer.wireguard_port.to_be_bytes();
    let others = || desired.nodes.iter().filter(|(node, _)| **node != desired.node).map(|(_, peer)| peer);
    // The planner keeps the last entry of a key: a report of a host's address must not replace the
    // address at which a node has its tunnels.
    let own = desired.nodes.get(&desired.node).map(|own| own.address);
    let hosts = others().flat_map(move |peer| {
        let member = Member { kind: HOST_ADDRESS, wireguard_port: wireguard_port(peer), ..Member::default() };
        let addresses = peer.host_addresses.iter().filter(move |address| Some(**address) != own);
        addresses.map(move |address| MapEntry::Member((*address).into(), member))
    });
    let control = desired.nodes.values().filter_map(|peer| {
        let address = peer.control_address?;
        let tunnels = desired.nodes.values().any(|other| other.address == address);
        let member = Member { kind: CONTROL_ADDRESS, ..Member::default() };
        (!tunnels).then(|| MapEntry::Member(address.into(), member))
    });
    let tunnels = others().map(move |peer| {
        let member = Member { wireguard_port: wireguard_port(peer), ..Member::default() };
        MapEntry::Member(peer.address.into(), member)
    });
    hosts.chain(control).chain(tunnels)
}

/// Returns the entries of a network with local endpoints: itself, its subnets, gateways and leases.
pub(crate) fn network(desired: &Desired, network: &Network, mtu: u32) -> Vec<MapEntry> {
    let vni = Vni::new(network.vni.get());
    let mut flags = 0;
    if network.internal {
        flags |= INTERNAL;
    }
    if network.encrypted {
        flags |= ENCRYPTED;
    }
    flags |= host_policy(network.host_policy);
    let value = mesh_ebpf_types::Network { flags, mtu, prefix6: network.prefix6() };
    let mut entries = vec![MapEntry::Network(vni, value)];
    for subnet in &network.subnets {
        let unassigned = Block { kind: BlockKind::Unassigned as u32, ..Block::default() };
        let gateway = Block { kind: BlockKind::Gateway as u32, ..Block::default() };
        entries.push(MapEntry::Block(block_key(vni, subnet.subnet), unassigned));
        entries.push(MapEntry::Block(block_key(vni, Prefix::single(subnet.gateway)), gateway));
    }
    entries.extend(subnets(network));
    let leases = desired
        .leases
        .iter()
        .filter(|lease| lease.network == network.id && lease.state == LeaseState::Active);
    let block = |lease: &Lease| Block { peer: peer(desired, network, lease), ..block(desired, lease) };
    entries.extend(leases.map(|lease| MapEntry::Block(block_key(vni, lease.prefix), block(lease))));
    entries
}

const fn host_policy(HostPolicy { access, metadata }: HostPolicy) -> u32 {
    let access = match access {
        HostAccess::None => 0,
        HostAccess::Dns => HOST_DNS,
        HostAccess::All => HOST_ALL,
    };
    match metadata {
        MetadataAccess::Block => access,
        MetadataAccess::Allow => access | METADATA,
    }
}

/// Returns the subnets of a network, even without local endpoints, so that containers of other
/// networks are kept from them.
pub(crate) fn subnets(network: &Network) -> impl Iterator<Item = MapEntry> {
    let vni = Vni::new(network.vni.get());
    network.subnets.iter().map(move |subnet| {
        let (prefix_bits, address) = prefix(subnet.subnet);
        MapEntry::HostRoute(HostRouteKey { prefix_bits, address }, vni)
    })
}

/// Returns the entry that identifies the sender at an endpoint's device.
pub(crate) fn interface(endpoint: &Endpoint, network: &Network, index: u32) -> MapEntry {
    let value = Interface {
        vni: Vni::new(network.vni.get()),
        ipv4: endpoint.ipv4.map_or([0; 4], |ipv4| ipv4.octets()),
        ipv6: endpoint.ipv6.map_or(Address::NONE, Address::from),
        mac: Mac(endpoint.mac.octets()),
        flags: flags(endpoint),
    };
    MapEntry::Interface(index, value)
}

/// Returns the entries of an endpoint's addresses.
pub(crate) fn addresses(endpoint: &Endpoint, network: &Network, index: u32) -> Vec<MapEntry> {
    let vni = Vni::new(network.vni.get());
    let value =
        mesh_ebpf_types::Endpoint { ifindex: index, mac: Mac(endpoint.mac.octets()), flags: flags(endpoint) };
    let key = |address: IpAddr| EndpointKey { vni, address: address.into() };
    endpoint.addresses().map(|address| MapEntry::Endpoint(key(address), value)).collect()
}

fn flags(endpoint: &Endpoint) -> u16 {
    if endpoint.allow_forwarding { ALLOW_FORWARDING } else { 0 }
}

/// Returns the block of a lease. The lease of a removed node is unassigned; the wider lease of
/// another node around it would be wrong.
fn block(desired: &Desired, lease: &Lease) -> Block {
    if lease.node == desired.node {
        return Block { kind: BlockKind::Local as u32, ..Block::default() };
    }
    match desired.nodes.get(&lease.node) {
        Some(peer) => {
            Block { tunnel: peer.address.into(), kind: BlockKind::Remote as u32, ..Block::default() }
        }
        None => Block { kind: BlockKind::Unassigned as u32, ..Block::default() },
    }
}

/// Returns the WireGuard peer number of a lease's node; 0 in unencrypted networks, for this node,
/// and without a key.
fn peer(desired: &Desired, network: &Network, lease: &Lease) -> u16 {
    let peer = desired.wireguard_peers.get(&lease.node).filter(|_| lease.node != desired.node);
    peer.filter(|_| network.encrypted).copied().unwrap_or_default()
}

fn block_key(vni: Vni, of: Prefix) -> BlockKey {
    let (prefix_bits, address) = prefix(of);
    BlockKey { vni, prefix_bits, address }
}

fn prefix(prefix: Prefix) -> (u8, Address) {
    (Address::prefix_bits(prefix.first(), prefix.len()), prefix.first().into())
}
