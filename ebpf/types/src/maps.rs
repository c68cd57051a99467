//! Keys and values of the maps that user space fills.

use crate::{Address, Mac, Vni};

/// [`Network::flags`]: outside the network, endpoints reach only the gateway address itself.
pub const INTERNAL: u32 = 1;

/// [`Network::flags`]: packets leave a node only inside WireGuard.
pub const ENCRYPTED: u32 = 2;

/// [`Network::flags`]: endpoints may query the name server at the gateway address, and ping hosts.
pub const HOST_DNS: u32 = 4;

/// [`Network::flags`]: endpoints may send to every socket of the hosts. Without this and
/// [`HOST_DNS`] they reach none.
pub const HOST_ALL: u32 = 8;

/// [`Network::flags`]: endpoints may send to the addresses of cloud metadata services.
pub const METADATA: u32 = 16;

/// [`Interface::flags`] and [`Endpoint::flags`]: the endpoint routes for others, so it may send
/// from IP addresses that are not its own.
pub const ALLOW_FORWARDING: u16 = 1;

/// Value of `NETWORKS`, a hash by [`Vni`]: a network with endpoints on this node.
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

/// Value of `INTERFACES`, a hash by interface index of an endpoint's host-side device: the endpoint
/// behind it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    /// The endpoint's network.
    pub vni: Vni,
    /// The endpoint's IPv4 address; zero when it has none.
    pub ipv4: [u8; 4],
    /// The endpoint's IPv6 address; [`Address::NONE`] if it has none.
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

/// Value of `ENDPOINTS`: the device and MAC of a local endpoint.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Interface index of the endpoint's host-side device.
    pub ifindex: u32,
    /// The endpoint's MAC: the destination of delivered frames.
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
    /// Number of significant bits of `address`, 0 to 128. IPv4 prefixes: 96 plus their length; see
    /// [`Address::prefix_bits`].
    pub prefix_bits: u8,
    /// The prefix; bits past `prefix_bits` are zero.
    pub address: Address,
}

/// The owner of a block.
#[repr(u32)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKind {
    /// In the network's subnet, but unassigned: neighbour requests are answered, packets are
    /// dropped.
    #[default]
    Unassigned = 0,
    /// The gateway's own address, which leads to the host and to the outside. One full-length entry
    /// for each gateway.
    Gateway = 1,
    /// This node's block: its endpoints are in `ENDPOINTS`; other addresses in it are unassigned.
    Local = 2,
    /// Another node's block; see [`Block::tunnel`].
    Remote = 3,
}

/// Value of `BLOCKS`. Every subnet of a local network has an entry ([`BlockKind::Unassigned`]);
/// leases and gateways are more specific entries. An address that matches no entry is outside the
/// network.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Data-path address of the node for [`BlockKind::Remote`]; [`Address::NONE`] otherwise.
    pub tunnel: Address,
    /// A [`BlockKind`], as its number.
    pub kind: u32,
    /// Index of the node among the WireGuard engine's peers, for [`BlockKind::Remote`] in an
    /// encrypted network. 0 while the node has no key, and in unencrypted networks.
    pub peer: u16,
    /// Zero.
    pub padding: [u8; 2],
}

/// Key of `HOST_ROUTES`, a longest-prefix-match trie with the [`Vni`] as value: a subnet of any
/// local network. It identifies the network of a packet from the host by its destination, and
/// destinations in another network.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostRouteKey {
    /// Number of significant bits of `address`, as in [`BlockKey`].
    pub prefix_bits: u8,
    /// The prefix; bits past `prefix_bits` are zero.
    pub address: Address,
}

/// [`Member::kind`]: not the node's data-path address, so no tunnel packet comes from it.
pub const CONTROL_ADDRESS: u8 = 1;

/// [`Member::kind`]: another address of the node's host. VXLAN is not accepted from it.
pub const HOST_ADDRESS: u8 = 2;

/// Value of `MEMBERS`, a hash by [`Address`]: an address of a node of the cluster. VXLAN is taken
/// from data-path addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// UDP port of the node's WireGuard engine, network order; 0 if none was announced.
    pub wireguard_port: [u8; 2],
    /// 0, [`CONTROL_ADDRESS`] or [`HOST_ADDRESS`].
    pub kind: u8,
    /// Zero.
    pub padding: u8,
}

/// [`HostCall::opener`]: the host began the flow.
pub const BY_HOST: u32 = 1;

/// [`HostCall::opener`]: an endpoint began the flow.
pub const BY_ENDPOINT: u32 = 2;

/// Value of `HOST_CALLS`, a hash by [`crate::ConnectionKey`] in the direction from the endpoint:
/// the side that began a flow between an endpoint and a socket of its host.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCall {
    /// When the opener last sent a packet (TCP: began the connection), in nanoseconds of
    /// `CLOCK_MONOTONIC`.
    pub time: u64,
    /// [`BY_HOST`] or [`BY_ENDPOINT`].
    pub opener: u32,
    /// Zero.
    pub padding: u32,
}

/// Value of `HOST_FLOWS`, a hash by [`crate::ConnectionKey`] in the direction of arriving packets:
/// a flow from a published port that the host, or a machine behind its NAT, began.
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
