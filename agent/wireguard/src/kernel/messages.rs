//! Converts configurations to the kernel's attributes and back (`linux/wireguard.h`). Pure
//! functions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use mesh_ebpf_types::MARK;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};

use crate::{EngineConfig, Generation, OwnKey, PeerConfig, PeerStatus, PublicKey};

/// Peers in one message: an attribute holds at most 64 KiB, and a peer needs about 150 bytes.
const PEERS_PER_MESSAGE: usize = 200;
/// Interval of persistent keepalives, in seconds.
const KEPT_ALIVE: u16 = 25;
/// How long a session lasts (whitepaper, section 6.1: `Reject-After-Time`).
const SESSION: Duration = Duration::from_mins(3);

/// A peer of the device, observed or desired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DevicePeer {
    pub(super) endpoint: Option<SocketAddr>,
    /// The source address of its packets, and its tunnel address if this key is used for sending.
    pub(super) allowed: BTreeSet<Ipv4Addr>,
    pub(super) last_handshake: Option<Duration>,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// The observed device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) public: Option<PublicKey>,
    pub(super) listen_port: u16,
    /// The mark on packets that the device sends to other nodes.
    pub(super) mark: u32,
    pub(super) peers: BTreeMap<PublicKey, DevicePeer>,
}

/// Returns the device's own key. It can have only one: the newest that may be used.
pub(super) fn own_key(config: &EngineConfig) -> Option<&OwnKey> {
    config.keys.iter().rev().find(|key| key.active)
}

/// Records that the device's own key was replaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replaced {
    pub(super) at: Instant,
    /// The generation of the previous key.
    pub(super) before: Option<Generation>,
    /// The peers that must be contacted next with the new key.
    pub(super) greeting: Option<Greeting>,
}

/// Peers that do not know the device's new key yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// All peers, using those of their keys that are used for sending.
    InUse,
    /// Peers that did not respond, using their other keys.
    Others,
}

/// Returns a replacement if `config` changes the own key of a device that has one.
pub(super) fn replaced(config: &EngineConfig, device: &Device) -> Option<Replaced> {
    let (has, wanted) = (device.public?, own_key(config)?.private.public());
    let before = || config.keys.iter().find(|own| own.private.public() == has).map(|own| own.generation);
    let greeting = Some(Greeting::InUse);
    (has != wanted).then(|| Replaced { at: Instant::now(), before: before(), greeting })
}

/// Returns the desired peers of the device. A tunnel address can belong to one key only. This is
/// the key with the latest handshake, since a peer that rotates its key uses the new one as soon as
/// it is ready; without a handshake it is the oldest key.
pub(super) fn desired(config: &EngineConfig, device: &Device) -> BTreeMap<PublicKey, DevicePeer> {
    let mut peers = BTreeMap::new();
    for peer in config.peers.values() {
        let in_use = key_in_use(&peer.keys, device);
        for (generation, key) in &peer.keys {
            let mut allowed = BTreeSet::from([peer.sources.of(*generation)]);
            allowed.extend((Some(*key) == in_use).then_some(peer.tunnel_address));
            peers.insert(*key, DevicePeer { endpoint: peer.endpoint, allowed, ..DevicePeer::default() });
        }
    }
    peers
}

/// Returns the key of a peer that the device uses for sending.
fn key_in_use(keys: &BTreeMap<Generation, PublicKey>, device: &Device) -> Option<PublicKey> {
    let handshake = |key: &PublicKey| device.peers.get(key).and_then(|peer| peer.last_handshake);
    keys.values()
        .copied()
        .filter(|key| handshake(key).is_some())
        .min_by_key(|key| handshake(key))
        .or_else(|| keys.values().next().copied())
}

/// Returns the attributes that change `device` to `config`, in messages of a size that the kernel
/// accepts.
pub(super) fn changes(
    config: &EngineConfig,
    configured: &BTreeMap<PublicKey, Option<SocketAddr>>,
    device: &Device,
) -> Vec<Vec<WireguardAttribute>> {
    let mut first = Vec::new();
    if let Some(own) = own_key(config)
        && device.public != Some(own.private.public())
    {
        first.push(WireguardAttribute::PrivateKey(own.private.secret().to_bytes()));
    }
    if device.listen_port != config.listen_port {
        first.push(WireguardAttribute::ListenPort(config.listen_port));
    }
    if device.mark != MARK {
        first.push(WireguardAttribute::Fwmark(MARK));
    }
    let desired = desired(config, device);
    let owned: BTreeSet<Ipv4Addr> = desired.values().flat_map(|peer| peer.allowed.iter().copied()).collect();
    let removed = device.peers.keys().filter(|key| !desired.contains_key(key)).map(|key| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ])
    });
    let changed = desired.iter().filter_map(|(key, peer)| change(*key, peer, configured, device, &owned));
    // An address moves directly from one key to another, so it always has an owner.
    let peers: Vec<WireguardPeer> = changed.chain(removed).collect();
    if !first.is_empty() {
        first.insert(0, WireguardAttribute::IfName(config.device.clone()));
    }
    let first = Some(first).filter(|first| !first.is_empty());
    first.into_iter().chain(in_messages(config, &peers)).collect()
}

/// Returns the attributes that move each peer's tunnel address to the key that the peer uses.
pub(super) fn moves(config: &EngineConfig, device: &Device) -> Vec<Vec<WireguardAttribute>> {
    let moves = config.peers.values().filter_map(|peer| {
        let (key, address) = (key_in_use(&peer.keys, device)?, peer.tunnel_address);
        let known = device.peers.get(&key)?;
        // The previous owner needs no message: an address has one owner.
        (!known.allowed.contains(&address)).then(|| {
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(key.0),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
                allowed_ips([address]),
            ])
        })
    });
    in_messages(config, &moves.collect::<Vec<_>>())
}

/// Returns the key of each peer that the device uses for sending.
pub(super) fn in_use(config: &EngineConfig, device: &Device) -> Vec<PublicKey> {
    config.peers.values().filter_map(|peer| key_in_use(&peer.keys, device)).collect()
}

/// Returns the unused keys of peers without a session with the device's new key.
pub(super) fn others_of_silent(
    config: &EngineConfig,
    device: &Device,
    replaced: &Replaced,
) -> Vec<PublicKey> {
    let since = replaced.at.elapsed();
    let is_silent = |key: PublicKey| {
        let handshake = device.peers.get(&key).and_then(|peer| peer.last_handshake);
        handshake.is_none_or(|age| age > since)
    };
    let others = config.peers.values().filter_map(|peer| {
        let in_use = key_in_use(&peer.keys, device).filter(|key| is_silent(*key))?;
        Some(peer.keys.values().copied().filter(move |key| *key != in_use))
    });
    others.flatten().collect()
}

/// Returns the attributes that make the device contact peers with these keys. The kernel sends to a
/// peer as soon as keepalives are enabled; they are disabled again at once.
pub(super) fn greetings<'k>(
    keys: impl IntoIterator<Item = &'k PublicKey>,
    config: &EngineConfig,
) -> Vec<Vec<WireguardAttribute>> {
    let keys: Vec<&PublicKey> = keys.into_iter().collect();
    let kept_alive = |seconds| {
        keys.iter().map(move |key| {
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(key.0),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
                WireguardPeerAttribute::PersistentKeepalive(seconds),
            ])
        })
    };
    [KEPT_ALIVE, 0]
        .into_iter()
        .flat_map(|seconds| in_messages(config, &kept_alive(seconds).collect::<Vec<_>>()))
        .collect()
}

/// Splits peers of the device into messages of a size that the kernel accepts.
fn in_messages(config: &EngineConfig, peers: &[WireguardPeer]) -> Vec<Vec<WireguardAttribute>> {
    let message = |peers: &[WireguardPeer]| {
        vec![WireguardAttribute::IfName(config.device.clone()), WireguardAttribute::Peers(peers.to_vec())]
    };
    peers.chunks(PEERS_PER_MESSAGE).map(message).collect()
}

/// Returns the missing changes of a peer; `None` if there are none. A peer that moved keeps its new
/// endpoint unless its configuration changed. `owned` are the desired addresses of all peers: an
/// address that moves to another peer is taken from this one by that peer's change.
fn change(
    key: PublicKey,
    peer: &DevicePeer,
    configured: &BTreeMap<PublicKey, Option<SocketAddr>>,
    device: &Device,
    owned: &BTreeSet<Ipv4Addr>,
) -> Option<WireguardPeer> {
    let known = device.peers.get(&key);
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(key.0)];
    let moved = known.is_none() || configured.get(&key) != Some(&peer.endpoint);
    if let Some(endpoint) = peer.endpoint.filter(|_| moved) {
        attributes.push(WireguardPeerAttribute::Endpoint(endpoint));
    }
    let has = known.map(|known| known.allowed.clone()).unwrap_or_default();
    if has.is_subset(owned) {
        let missing: Vec<Ipv4Addr> = peer.allowed.difference(&has).copied().collect();
        if !missing.is_empty() {
            attributes.push(allowed_ips(missing));
        }
    } else {
        attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps));
        attributes.push(allowed_ips(peer.allowed.iter().copied()));
    }
    (attributes.len() > 1 || known.is_none()).then_some(WireguardPeer(attributes))
}

fn allowed_ips(allowed: impl IntoIterator<Item = Ipv4Addr>) -> WireguardPeerAttribute {
    let allowed = allowed.into_iter().map(|address| {
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
            WireguardAllowedIpAttr::IpAddr(address.into()),
            WireguardAllowedIpAttr::Cidr(32),
        ])
    });
    WireguardPeerAttribute::AllowedIps(allowed.collect())
}

/// Adds the contents of one dump message to `device`. A peer may be split over two messages.
pub(super) fn read(attributes: &[WireguardAttribute], now: SystemTime, device: &mut Device) {
    for attribute in attributes {
        match attribute {
            WireguardAttribute::PublicKey(key) => device.public = Some(PublicKey(*key)),
            WireguardAttribute::ListenPort(port) => device.listen_port = *port,
            WireguardAttribute::Fwmark(mark) => device.mark = *mark,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    read_peer(&peer.0, now, device);
                }
            }
            _ => {}
        }
    }
}

fn read_peer(attributes: &[WireguardPeerAttribute], now: SystemTime, device: &mut Device) {
    let key = attributes.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let peer = device.peers.entry(key).or_default();
    for attribute in attributes {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
            WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = *bytes,
            WireguardPeerAttribute::LastHandshake(time) => {
                // Zero means no handshake. The kernel reports wall-clock time, which may have been
                // changed since.
                let seconds = u64::try_from(time.seconds).ok().filter(|seconds| *seconds > 0);
                let nanoseconds = u32::try_from(time.nano_seconds).unwrap_or_default();
                peer.last_handshake = seconds.map(|seconds| {
                    let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
                    now.duration_since(at).unwrap_or_default()
                });
            }
            WireguardPeerAttribute::AllowedIps(allowed) => {
                for allowed in allowed {
                    for attribute in &allowed.0 {
                        if let WireguardAllowedIpAttr::IpAddr(IpAddr::V4(address)) = attribute {
                            peer.allowed.insert(*address);
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

/// Returns the status by peer index, as sums over a peer's keys.
pub(super) fn status(
    config: &EngineConfig,
    device: &Device,
    replaced: Option<&Replaced>,
) -> BTreeMap<u16, PeerStatus> {
    let own = own_key(config).map(|key| key.generation);
    // A session older than the device's key uses the previous key.
    let own_at = |age: Duration| match replaced {
        Some(replaced) if age > replaced.at.elapsed() => replaced.before,
        _ => own,
    };
    let of = |peer: &PeerConfig| {
        let mut status = PeerStatus::default();
        for (generation, key) in &peer.keys {
            let tunnel_address = peer.tunnel_address;
            let Some(peer) = device.peers.get(key) else { continue };
            status.rx_bytes += peer.rx_bytes;
            status.tx_bytes += peer.tx_bytes;
            if peer.allowed.contains(&tunnel_address) {
                status.endpoint = peer.endpoint;
                status.last_handshake = peer.last_handshake;
                let session = peer.last_handshake.filter(|age| *age < SESSION);
                status.generations = session.and_then(own_at).map(|own| (own, *generation));
            }
        }
        status
    };
    config.peers.iter().map(|(index, peer)| (*index, of(peer))).collect()
}
