//! What an engine is to do, and what it reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Generation, OwnKey, PublicKey, Result};

/// Bytes that IPv4, UDP, VXLAN and the inner Ethernet header add to an inner packet inside the tunnel.
pub const VXLAN_OVERHEAD: u16 = 50;
/// Bytes that WireGuard over IPv4 adds to a packet in the tunnel.
pub const WIREGUARD_OVERHEAD_V4: u16 = 60;
/// Bytes that WireGuard over IPv6 adds to a packet in the tunnel.
pub const WIREGUARD_OVERHEAD_V6: u16 = 80;

/// MTU of an encrypted network's interfaces when the underlay's is `underlay` and its addresses are of IPv6 or not.
///
/// ```
/// assert_eq!(mesh_wireguard::inner_mtu(1500, false), 1390);
/// assert_eq!(mesh_wireguard::inner_mtu(1500, true), 1370);
/// ```
pub fn inner_mtu(underlay: u16, v6: bool) -> u16 {
    let wireguard = if v6 { WIREGUARD_OVERHEAD_V6 } else { WIREGUARD_OVERHEAD_V4 };
    underlay.saturating_sub(wireguard + VXLAN_OVERHEAD)
}

/// All that an engine is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineConfig {
    /// Name of the device, `meshwg0` in the product.
    pub device: String,
    /// Interface index that the device gets; `None` lets the kernel choose. One that no other device ever has makes sure
    /// that what is sent there after the device is gone goes nowhere.
    #[serde(default)]
    pub device_index: Option<u32>,
    /// UDP port on which WireGuard listens.
    pub listen_port: u16,
    /// UDP port of VXLAN inside the tunnel.
    pub vxlan_port: u16,
    /// Largest inner IP packet, in bytes: see [`inner_mtu`].
    pub inner_mtu: u16,
    /// This node's tunnel address.
    pub tunnel_address: Ipv4Addr,
    /// This node's key pairs, oldest first: one, or two during a rotation.
    pub keys: Vec<OwnKey>,
    /// The other nodes, by the index that frames on the device name them by.
    pub peers: BTreeMap<u16, PeerConfig>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// Where its WireGuard listens. `None`: it has to speak first.
    pub endpoint: Option<SocketAddr>,
    /// Its tunnel address, the only source that it may use inside the tunnel.
    pub tunnel_address: Ipv4Addr,
    /// Its public keys by generation: one, or two during a rotation.
    pub keys: BTreeMap<Generation, PublicKey>,
}

impl EngineConfig {
    /// Whether any peer is in the middle of replacing its key.
    pub fn has_peers_with_two_keys(&self) -> bool {
        self.peers.values().any(|peer| peer.keys.len() > 1)
    }

    /// Whether it contradicts itself.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, what| if ok { Ok(()) } else { Err(Error::Config(what)) };
        check(matches!(self.keys.len(), 1 | 2), "a node has one or two key pairs")?;
        check(self.keys.is_sorted_by(|a, b| a.generation < b.generation), "key pairs are in order of age")?;
        check(self.keys.iter().any(|key| key.active), "one key pair is active")?;
        check(self.inner_mtu >= 576, "the MTU is too small to be of use")?;
        check(self.inner_mtu <= u16::MAX - VXLAN_OVERHEAD, "the MTU is too large")?;
        check(self.listen_port != 0 && self.vxlan_port != 0, "a port is zero")?;
        let (mut addresses, mut keys) = (BTreeSet::from([self.tunnel_address]), BTreeSet::new());
        for own in &self.keys {
            check(keys.insert(own.private.public()), "two key pairs are the same")?;
        }
        for peer in self.peers.values() {
            check(matches!(peer.keys.len(), 1 | 2), "a peer has one or two public keys")?;
            check(addresses.insert(peer.tunnel_address), "two nodes have one tunnel address")?;
            for key in peer.keys.values() {
                check(keys.insert(*key), "two nodes have one key")?;
            }
        }
        Ok(())
    }
}

/// Which engine moves the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// The kernel's WireGuard.
    Kernel,
    /// The engine in user space.
    Userspace,
}

/// What an engine reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Which engine it is.
    pub engine: EngineKind,
    /// Its peers by index.
    pub peers: BTreeMap<u16, PeerStatus>,
    /// Packets that were dropped, by reason. Empty for the kernel's engine, which does not say.
    pub drops: BTreeMap<DropReason, u64>,
}

/// What an engine knows of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake, if there was one.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it, as UDP payload.
    pub rx_bytes: u64,
    /// Bytes sent to it, as UDP payload.
    pub tx_bytes: u64,
    /// Own and peer's key generation of the session that is used for sending; `None` without a session. The
    /// kernel's engine reports the generations that are configured.
    pub generations: Option<(Generation, Generation)>,
}

/// Why an engine dropped a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// To send: the frame names a peer that is not configured.
    UnknownPeer,
    /// To send: no session came about in time, or too much waited for it.
    NoSession,
    /// To send: nobody knows where the peer is.
    NoEndpoint,
    /// To send: the frame and the kernel's description of it contradict each other.
    MalformedFrame,
    /// To send: the frame is larger than the network's MTU, and must not be fragmented.
    TooBig,
    /// To send: the kernel refused the datagram.
    SendRefused,
    /// Received: not a WireGuard message.
    NotWireguard,
    /// Received: of a session that does not exist (any more).
    UnknownSession,
    /// Received: not encrypted with the session's key.
    NotAuthentic,
    /// Received: a second time, or too late.
    Replayed,
    /// Received: a handshake with a key that is not configured, or a wrong one.
    HandshakeRefused,
    /// Received: too many handshakes.
    HandshakeLimited,
    /// Received: the inner packet is not from the sender's tunnel address, or not to ours.
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

    /// The stable name, as in `meshctl` output.
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
