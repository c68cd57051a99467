//! The one entry of `CONFIG`.

use crate::{Address, Mac};

/// [`Config::flags`]: report drops in `EVENTS`, because a reader exists.
pub const EVENTS_WANTED: u8 = 1;

/// [`Config::flags`]: replies of published ports leave from the backend's node (direct server
/// return).
pub const DIRECT_RETURN: u8 = 2;

/// [`Config::flags`]: send packets to the kernel's WireGuard from this node's address for keys of
/// even generations.
pub const FROM_EVEN_KEY: u8 = 4;

/// [`Config::flags`]: send them from the address for keys of odd generations. With both flags, each
/// packet is sent twice. While a key is replaced, it is unknown which key encrypts a packet; the
/// receiver accepts only the copy whose source address matches the key.
pub const FROM_ODD_KEY: u8 = 8;

/// [`Config::flags`]: no published port is reachable through the data-path device.
pub const UNPUBLISHED: u8 = 16;

/// How packets to other nodes get outer headers.
#[repr(u8)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encapsulation {
    /// The endpoint program writes the outer headers. The VXLAN device handles what it cannot.
    #[default]
    Direct = 0,
    /// All packets go through the VXLAN device.
    Device = 1,
}

/// The node's configuration for all programs: the value of `CONFIG`, an array of one.
///
/// All zero (a new map) means "not configured": endpoints reach only local endpoints, and the
/// underlay program ignores all packets.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Config {
    /// This node's data-path address: the source of outgoing tunnel packets, and the only
    /// destination that is accepted.
    pub local: Address,
    /// Interface index of the data-path device.
    pub underlay_ifindex: u32,
    /// Interface index of the VXLAN device `meshvx0`.
    pub vxlan_ifindex: u32,
    /// Interface index of `mesh0p`, the datapath's end of the host leg.
    pub host_ifindex: u32,
    /// MTU of the data-path device, in bytes of an outer IP packet.
    pub underlay_mtu: u32,
    /// MAC of `mesh0`, the host's end of the host leg.
    pub host_mac: Mac,
    /// UDP port of VXLAN, network order.
    pub vxlan_port: [u8; 2],
    /// An [`Encapsulation`], as its number.
    pub encapsulation: u8,
    /// Bits: [`EVENTS_WANTED`], [`DIRECT_RETURN`], [`FROM_EVEN_KEY`], [`FROM_ODD_KEY`],
    /// [`UNPUBLISHED`].
    pub flags: u8,
    /// This node's own number in WireGuard; 0 while it has none.
    pub wireguard_peer: u16,
    /// Interface index of the WireGuard engine's device `meshwg0`; it also identifies the engine. 0
    /// while there is none.
    pub wireguard_ifindex: u32,
    /// UDP port of this node's WireGuard, network order; 0 while it has announced none.
    pub wireguard_port: [u8; 2],
    /// Zero.
    pub padding: [u8; 2],
}
