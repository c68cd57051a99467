//! Keys and values of the maps that user space fills.

use crate::{Address, Mac, Vni};

/// [`Network::flags`]: endpoints reach nothing outside the network but the gateway address itself.
pub const INTERNAL: u32 = 1;

/// [`Network::flags`]: packets leave a node inside WireGuard or not at all.
pub const ENCRYPTED: u32 = 2;

/// [`Network::flags`]: endpoints may ask the name server at the gateway address, and ping hosts.
pub const HOST_DNS: u32 = 4;

/// [`Network::flags`]: endpoints may send to every socket of the hosts. Without it and [`HOST_DNS`]
/// they reach none.
pub const HOST_ALL: u32 = 8;

/// [`Network::flags`]: endpoints may send to the addresses of cloud metadata services.
pub const METADATA: u32 = 16;

/// [`Interface::flags`] and [`Endpoint::flags`]: the endpoint routes for others, so it may send
/// from IP addresses that are not its own.
pub const ALLOW_FORWARDING: u16 = 1;

/// Value of `NETWORKS`, a hash by [`Vni`]: a network that has endpoints on this node.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// Bits: [`INTERNAL`], [`ENCRYPTED`], [`HOST_DNS`], [`HOST_ALL`], [`METADATA`].
    pub flags: u32,
    /// Largest inner IP packet that may leave this node, in bytes.
    pub mtu: u32,
    /// The first 96 bits of the network's (first) IPv6 subnet; zero when it has none. See
    /// [`crate::derived_mac`].
    pub prefix6: [u8; 12],
}

/// Value of `INTERFACES`, a hash by interface index of an endpoint's host-side device: who sends
/// there.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    /// The endpoint's network.
    pub vni: Vni,
    /// The endpoint's IPv4 address; zero when it has none.
    pub ipv4: [u8; 4],
    /// The endpoint's IPv6 address; none when it has none.
    pub ipv6: Address,
    /// The endpoint's MAC.
    pub mac: Mac,
    /// Bits: [`ALLOW_FORWARDING`].
    pub flags: u16,
}

/// Key of `ENDPOINTS`: an address (of either family) of an endpoint on this node.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The endpoint's network.
    pub vni: Vni,
    /// One of the endpoint's addresses.
    pub address: Address,
}

/// Value of `ENDPOINTS`: where a local endpoint is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Interface index of the endpoint's host-side device.
    pub ifindex: u32,
    /// The endpoint's MAC: delivered frames carry it.
    pub mac: Mac,
    /// Bits: [`ALLOW_FORWARDING`].
    pub flags: u16,
}

/// Key of `BLOCKS`, a longest-prefix-match trie: a prefix within a network.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The network.
    pub vni: Vni,
    /// How many bits of `address` count, 0 to 128 (IPv4 prefixes: 96 and their length;
    /// [`Address::prefix_bits`]).
    pub prefix_bits: u8,
    /// The prefix; bits past `prefix_bits` are zero.
    pub address: Address,
}

/// Whose a block is.
#[repr(u32)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKind {
    /// In the network's subnet, but nobody's: neighbours are answered, packets are dropped.
    #[default]
    Unassigned = 0,
    /// The gateway's own address: the way to the host and to the outside. One entry of full length
    /// for each gateway.
    Gateway = 1,
    /// This node's: its endpoints are in `ENDPOINTS`, the rest of it is nobody's.
    Local = 2,
    /// Another node's, [`Block::tunnel`].
    Remote = 3,
}

/// Value of `BLOCKS`. Every subnet of a local network has an entry of its own
/// ([`BlockKind::Unassigned`]); leases and gateways are more specific ones. An address that matches
/// no entry is outside the network.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Data-path address of the node, for [`BlockKind::Remote`]; else none.
    pub tunnel: Address,
    /// A [`BlockKind`], as its number.
    pub kind: u32,
    /// Index of the node among the WireGuard engine's peers, for [`BlockKind::Remote`] in an
    /// encrypted network; 0 while the node has no key, and in clear networks.
    pub peer: u16,
    /// Zero.
    pub padding: [u8; 2],
}

/// Key of `HOST_ROUTES`, a longest-prefix-match trie with the [`Vni`] as value: a subnet of any
/// local network. Tells the network of a packet from the host by its destination, and that a
/// destination is another network's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostRouteKey {
    /// How many bits of `address` count, as in [`BlockKey`].
    pub prefix_bits: u8,
    /// The prefix; bits past `prefix_bits` are zero.
    pub address: Address,
}

/// [`Member::kind`]: the address is not the node's data-path address: no tunnel's packet comes from
/// it.
pub const CONTROL_ADDRESS: u8 = 1;

/// [`Member::kind`]: another address of the node's host. VXLAN is not accepted from it.
pub const HOST_ADDRESS: u8 = 2;

/// Value of `MEMBERS`, a hash by [`Address`]: an address of a node of the cluster. VXLAN is taken
/// from data-path addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// UDP port of the node's WireGuard engine, network order; 0 while it has announced none.
    pub wireguard_port: [u8; 2],
    /// 0, [`CONTROL_ADDRESS`] or [`HOST_ADDRESS`].
    pub kind: u8,
    /// Zero.
    pub padding: u8,
}

/// [`HostCall::opener`]: the host.
pub const BY_HOST: u32 = 1;

/// [`HostCall::opener`]: an endpoint.
pub const BY_ENDPOINT: u32 = 2;

/// Value of `HOST_CALLS`, a hash by [`crate::ConnectionKey`] (in the direction of what an endpoint
/// sends): who began a flow between an endpoint and a socket of its host.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCall {
    /// When who began it last sent a packet (of TCP: began), in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// [`BY_HOST`] or [`BY_ENDPOINT`].
    pub opener: u32,
    /// Zero.
    pub padding: u32,
}

/// Value of `HOST_FLOWS`, a hash by [`crate::ConnectionKey`] (in the direction of what arrives): a
/// flow that the host, or something behind its NAT, began from a port that is published.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostFlow {
    /// When its last packet left, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// 1 after a FIN or RST left.
    pub ended: u32,
    /// Zero.
    pub padding: u32,
}
