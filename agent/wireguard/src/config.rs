//! Configuration and status of an engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Generation, OwnKey, PublicKey, Result};

/// Bytes that IPv4, UDP, VXLAN and the inner Ethernet header add to an inner packet inside the
/// tunnel.
pub const VXLAN_OVERHEAD: u16 = 50;
/// The smallest [`EngineConfig::inner_mtu`] that an engine accepts, in bytes.
pub const MIN_INNER_MTU: u16 = 576;
/// Bytes that WireGuard over IPv4 adds to a packet in the tunnel.
pub const WIREGUARD_OVERHEAD_V4: u16 = 60;
/// Bytes that WireGuard over IPv6 adds to a packet in the tunnel.
pub const WIREGUARD_OVERHEAD_V6: u16 = 80;

/// Returns the MTU of an encrypted network's interfaces. `underlay` is the underlay's MTU, `v6`
/// whether its addresses are IPv6.
///
/// ```
/// assert_eq!(mesh_wireguard::inner_mtu(1500, false), 1390);
/// assert_eq!(mesh_wireguard::inner_mtu(1500, true), 1370);
/// ```
pub fn inner_mtu(underlay: u16, v6: bool) -> u16 {
    let wireguard = if v6 { WIREGUARD_OVERHEAD_V6 } else { WIREGUARD_OVERHEAD_V4 };
    underlay.saturating_sub(wireguard + VXLAN_OVERHEAD)
}

/// The complete configuration of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineConfig {
    /// Name of the device, `meshwg0` in the product.
    pub device: String,
    /// Interface index of the device; `None` lets the kernel choose. With an index that no other
    /// device ever gets, packets that are sent to a removed device are dropped.
    #[serde(default)]
    pub device_index: Option<u32>,
    /// UDP port on which WireGuard listens.
    pub listen_port: u16,
    /// UDP port of VXLAN inside the tunnel.
    pub vxlan_port: u16,
    /// Largest inner IP packet, in bytes; see [`inner_mtu`].
    pub inner_mtu: u16,
    /// This node's tunnel address: the destination of packets to it.
    pub tunnel_address: Ipv4Addr,
    /// Source addresses of its packets inside the tunnel.
    pub sources: TunnelSources,
    /// This node's key pairs, oldest first: one, or two during a rotation.
    pub keys: Vec<OwnKey>,
    /// The other nodes, by the index that frames on the device contain.
    pub peers: BTreeMap<u16, PeerConfig>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// Address of its WireGuard. `None`: it must send first.
    pub endpoint: Option<SocketAddr>,
    /// Its tunnel address: the destination of packets to it.
    pub tunnel_address: Ipv4Addr,
    /// The only source addresses that it may use inside the tunnel.
    pub sources: TunnelSources,
    /// Its public keys by generation: one, or two during a rotation.
    pub keys: BTreeMap<Generation, PublicKey>,
}

/// Source addresses of a node's packets inside the tunnel. During a rotation, a node has one key
/// with an even and one with an odd generation, and each has its own source address. The kernel's
/// WireGuard accepts packets from an address by one key only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelSources {
    /// For keys of even generations.
    pub even: Ipv4Addr,
    /// For keys of odd generations.
    pub odd: Ipv4Addr,
}

impl TunnelSources {
    /// Returns the source address for the key of this generation.
    pub const fn of(self, generation: Generation) -> Ipv4Addr {
        if generation.is_multiple_of(2) { self.even } else { self.odd }
    }
}

impl EngineConfig {
    /// Returns whether any peer is replacing its key.
    pub fn has_peers_with_two_keys(&self) -> bool {
        self.peers.values().any(|peer| peer.keys.len() > 1)
    }

    /// Returns the MTU of the device: the kernel's carries VXLAN packets, the other one their inner
    /// packets.
    pub(crate) const fn device_mtu(&self, kind: EngineKind) -> u16 {
        match kind {
            EngineKind::Kernel => self.inner_mtu.saturating_add(VXLAN_OVERHEAD),
            EngineKind::Userspace => self.inner_mtu,
        }
    }

    /// Returns whether the engine's device exists as configured in the calling thread's network
    /// namespace. Another program may have deleted, renamed or changed it.
    pub fn device_is_intact(&self, kind: EngineKind) -> bool {
        mesh_sys::device::is_configured(&self.device, self.device_index, self.device_mtu(kind))
    }

    /// Checks that the configuration is consistent.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, what| if ok { Ok(()) } else { Err(Error::Config(what)) };
        check(matches!(self.keys.len(), 1 | 2), "a node has one or two key pairs")?;
        check(self.keys.is_sorted_by(|a, b| a.generation < b.generation), "key pairs are in order of age")?;
        check(self.keys.iter().any(|key| key.active), "one key pair is active")?;
        check(self.inner_mtu >= MIN_INNER_MTU, "the MTU is too small to be of use")?;
        check(self.inner_mtu <= u16::MAX - VXLAN_OVERHEAD, "the MTU is too large")?;
        check(self.listen_port != 0 && self.vxlan_port != 0, "a port is zero")?;
        let both = |mut generations: Vec<Generation>| {
            generations.dedup_by_key(|generation| *generation % 2);
            generations.len()
        };
        let own = self.keys.iter().map(|key| key.generation).collect();
        check(both(own) == self.keys.len(), "two key pairs have one source address")?;
        let mut addresses = BTreeSet::from([self.tunnel_address, self.sources.even, self.sources.odd]);
        check(addresses.len() == 3, "a node has one address twice")?;
        let mut keys = BTreeSet::new();
        for own in &self.keys {
            check(keys.insert(own.private.public()), "two key pairs are the same")?;
        }
        for peer in self.peers.values() {
            check(matches!(peer.keys.len(), 1 | 2), "a peer has one or two public keys")?;
            check(
                both(peer.keys.keys().copied().collect()) == peer.keys.len(),
                "two keys have one source address",
            )?;
            for address in [peer.tunnel_address, peer.sources.even, peer.sources.odd] {
                check(addresses.insert(address), "two nodes have one tunnel address")?;
            }
            for key in peer.keys.values() {
                check(keys.insert(*key), "two nodes have one key")?;
            }
        }
        Ok(())
    }
}

/// The implementation that encrypts packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// The kernel's WireGuard.
    Kernel,
    /// The engine in user space.
    Userspace,
}

impl EngineKind {
    /// Returns the stable name, as in `meshctl` output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// An engine's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// The kind of engine.
    pub engine: EngineKind,
    /// Its peers by index.
    pub peers: BTreeMap<u16, PeerStatus>,
    /// Dropped packets by reason. Empty for the kernel's engine, which does not report them.
    pub drops: BTreeMap<DropReason, u64>,
}

/// The status of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The current destination of packets to it.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake, if there was one.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it, as UDP payload.
    pub rx_bytes: u64,
    /// Bytes sent to it, as UDP payload.
    pub tx_bytes: u64,
    /// Own and peer's key generation of the session used for sending; `None` without a session.
    pub generations: Option<(Generation, Generation)>,
}

/// Why an engine dropped a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Sending: the frame names a peer that is not configured.
    UnknownPeer,
    /// Sending: no session was established in time, or too many packets waited for it.
    NoSession,
    /// Sending: the peer's underlay address is not known.
    NoEndpoint,
    /// Sending: the frame contradicts the kernel's description of it.
    MalformedFrame,
    /// Sending: the frame is larger than the network's MTU, and must not be fragmented.
    TooBig,
    /// Sending: the kernel refused the datagram.
    SendRefused,
    /// Received: not a WireGuard message.
    NotWireguard,
    /// Received: belongs to a session that does not exist or has expired.
    UnknownSession,
    /// Received: not encrypted with the session's key.
    NotAuthentic,
    /// Received: duplicate, or too late.
    Replayed,
    /// Received: a handshake with a key that is not configured, or a wrong one.
    HandshakeRefused,
    /// Received: too many handshakes.
    HandshakeLimited,
    /// Received: the inner packet is not from the sender's tunnel address, or not to this node's.
    WrongAddress,
    /// Received: the inner packet is not VXLAN.
    NotVxlan,
    /// Received: the inner packet is a fragment.
    Fragment,
    /// Received: the device refused the frame.
    DeviceRefused,
}

impl DropReason {
    /// All reasons, in the order of their values.
    pub const ALL: [Self; 16] = [
        Self::UnknownPeer,
        Self::NoSession,
        Self::NoEndpoint,
        Self::MalformedFrame,
        Self::TooBig,
        Self::SendRefused,
        Self::NotWireguard,
        Self::UnknownSession,
        Self::NotAuthentic,
        Self::Replayed,
        Self::HandshakeRefused,
        Self::HandshakeLimited,
        Self::WrongAddress,
        Self::NotVxlan,
        Self::Fragment,
        Self::DeviceRefused,
    ];

    /// Returns the stable name, as in `meshctl` output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownPeer => "unknown_peer",
            Self::NoSession => "no_session",
            Self::NoEndpoint => "no_endpoint",
            Self::MalformedFrame => "malformed_frame",
            Self::TooBig => "too_big",
            Self::SendRefused => "send_refused",
            Self::NotWireguard => "not_wireguard",
            Self::UnknownSession => "unknown_session",
            Self::NotAuthentic => "not_authentic",
            Self::Replayed => "replayed",
            Self::HandshakeRefused => "handshake_refused",
            Self::HandshakeLimited => "handshake_limited",
            Self::WrongAddress => "wrong_address",
            Self::NotVxlan => "not_vxlan",
            Self::Fragment => "fragment",
            Self::DeviceRefused => "device_refused",
        }
    }
}
