//! Published ports. The node that receives a packet sends it unchanged to the backend's node. That
//! node translates it, and records the receiving node, to which replies return.

use mesh_ebpf::ip;
use mesh_ebpf_types::{
    Address, BACKEND_ENCRYPTED, BACKEND_FINISHED, Backend, CLIENT_FINISHED, Config, ConnectionKind,
    DIRECT_RETURN, EndpointKey, LOCAL, Mac, PUBLISHED_BIT, REPLY_BIT, RETURNS, RETURNS_MAC, Reason,
    UNPUBLISHED, VXLAN_OVERHEAD_IPV4, Vni, WATCHED, WIREGUARD_OVERHEAD_IPV4, host_published,
    is_host_published, published_vni,
};

use super::flows::{self, Becomes, NEITHER};
use super::own::{self, Owner};
use super::packet::{self, FLOW, LATER, LOST, OTHER, Packet};
use super::translate::{DESTINATION, SOURCE, translate, translate_client};
use super::tunnel::{is_peer, of_peer};
use super::{connection, hops, outbound, reassembly, replies};
use crate::datapath::count::{count, dropped};
use crate::datapath::maps;
use crate::datapath::skb::Skb;
use crate::datapath::too_big;
use crate::datapath::verdict::Verdict;

/// Ethernet, IPv4 without options, and ports.
const READ: usize = 38;
const PLAIN_IPV4: u16 = u16::from_ne_bytes([0x08, 0]);
pub(in crate::datapath) const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);

/// Handles a packet that arrived at one of the host's interfaces, except VXLAN at the data-path
/// device. Returns [`Verdict::Pass`], with the packet unchanged, unless it is for a published port
/// on one of the host's addresses.
#[inline(never)]
pub(in crate::datapath) fn arrived(skb: Skb, packet: &mut Packet) -> Verdict {
    if is_irrelevant(skb) || is_unpublished(skb) || packet::read(skb, packet, 0) == OTHER {
        return Verdict::Pass;
    }
    if !maps::is_host_address(packet.parsed.destination)
        && !is_new_address(skb, packet.parsed.source, packet.parsed.destination)
    {
        return Verdict::Pass;
    }
    if reassembly::needs_reassembly(skb, packet) {
        return Verdict::SendToReassembly;
    }
    match own::owner(skb, packet) {
        Owner::Host => {
            packet::remember_unserved(packet);
            Verdict::Pass
        }
        Owner::Nobody => dropped(skb, Vni::NONE, Reason::ForeignTunnel),
        Owner::Service => {
            packet.decided.arrived_at = skb.ifindex();
            flows::begin(packet, skb.ifindex(), 0, [0; 2], skb.known_hash());
            Verdict::ToPublished
        }
    }
}

/// Returns whether an address belongs to the host, but is too new to be in the maps: it moved here
/// just now. The kernel would reset the connections that moved with it.
#[inline(always)]
fn is_new_address(skb: Skb, source: Address, destination: Address) -> bool {
    let (Some(source), Some(destination)) = (source.to_v4(), destination.to_v4()) else { return false };
    if matches!(destination, [127, ..] | [169, 254, ..]) {
        return false;
    }
    skb.is_delivered_locally(u32::from_ne_bytes(source), u32::from_ne_bytes(destination))
}

/// Returns whether the packet arrived at the data-path device, and that device answers no published
/// ports.
#[inline(always)]
fn is_unpublished(skb: Skb) -> bool {
    maps::config()
        .is_some_and(|config| config.flags & UNPUBLISHED != 0 && skb.ifindex() == config.underlay_ifindex)
}

/// Returns whether a cheap check shows that it is for no published port, as most packets to a host.
#[inline(always)]
fn is_irrelevant(skb: Skb) -> bool {
    let Some(frame) = skb.start::<READ>() else { return false };
    let protocol = frame.byte(23);
    if frame.half(12) != PLAIN_IPV4
        || frame.byte(14) != 0x45
        || frame.half(20) & FRAGMENT != 0
        || !matches!(protocol, ip::TCP | ip::UDP | ip::SCTP)
    {
        return false;
    }
    let destination = Address::from_v4(frame.word(30).to_ne_bytes());
    maps::published(destination, frame.half(36).to_ne_bytes(), protocol).is_none()
}

/// Sends a packet to a published port to its backend, or refuses it. Returns [`Verdict::Pass`] if
/// the port is not published. The packet has been read, and its destination is the host's.
#[inline(never)]
pub(super) fn receive(packet: &mut Packet) -> Verdict {
    packet.parsed.key.vni = [0; 3];
    if packet.parsed.class == LOST {
        return Verdict::Pass;
    }
    let [_, _, p0, p1] = packet.parsed.key.ports;
    let destination = packet.parsed.key.destination;
    let requested_address = maps::real_address(destination).copied().unwrap_or(destination);
    let Some(published) = maps::published(requested_address, [p0, p1], packet.parsed.key.protocol) else {
        // The host's own stack must not answer at stand-in addresses.
        if is_host_published(destination) {
            return Verdict::Refuse;
        }
        packet::remember_fragment(packet);
        return Verdict::Pass;
    };
    if published.flags & WATCHED != 0 {
        packet::remember_fragment(packet);
        return Verdict::Pass;
    }
    if packet.parsed.first_fragment != 0 && packet::is_in_reassembly(packet) {
        return Verdict::LateFragment;
    }
    packet.decided.table = [published.first, published.size, published.flags];
    packet.decided.target = published.target;
    packet::remember_fragment(packet);
    let [_, v0, v1, v2] = published.vni.0;
    packet.decided.reply_vni = [v0, v1, v2];
    Verdict::ToBackend
}

#[inline(never)]
pub(super) fn to_backend(skb: Skb, packet: &mut Packet) -> Verdict {
    let [v0, v1, v2] = packet.decided.reply_vni;
    let vni = Vni([0, v0, v1, v2]);
    let routed = hops::is_routed(packet);
    if routed && hops::are_exhausted(packet) {
        return Verdict::HopLimitReached;
    }
    let number = connection::choose(packet);
    let Some(backend) = maps::backend(number) else {
        return if number == connection::GONE { Verdict::Reset } else { Verdict::Refuse };
    };
    if connection::address_of(backend, packet.parsed.v6 != 0).is_none() {
        return Verdict::Refuse;
    }
    let Some(config) = maps::config() else { return Verdict::Pass };
    // Other nodes reach clients beyond the data-path interface. Clients beyond another interface
    // may be out of their reach, as a container of another runtime.
    let directly = config.flags & DIRECT_RETURN != 0 && packet.decided.arrived_at == config.underlay_ifindex;
    packet.decided.returns = u32::from(config.flags & DIRECT_RETURN != 0 && !directly);
    // Of a flow whose replies go another way, only the client's end is seen here.
    connection::finish_own(
        packet,
        if directly { CLIENT_FINISHED | BACKEND_FINISHED } else { CLIENT_FINISHED },
    );
    count(skb, vni, Reason::Published);
    if backend.flags & LOCAL != 0 {
        if routed && !hops::lower(skb, packet) {
            return dropped(skb, vni, Reason::TranslationFailed);
        }
        (packet.decided.number, packet.decided.node) = (number, 0);
        return Verdict::ToEndpoint;
    }
    let encrypted = backend.flags & BACKEND_ENCRYPTED != 0;
    let wireguard = if encrypted { WIREGUARD_OVERHEAD_IPV4 } else { 0 };
    let mtu = config.underlay_mtu.saturating_sub(u32::from(VXLAN_OVERHEAD_IPV4) + u32::from(wireguard));
    let fits = outbound::segment_length(skb, packet) <= mtu;
    if !fits && packet.parsed.dont_fragment != 0 {
        let verdict = too_big::answer(skb, u32::from_ne_bytes(vni.0), mtu);
        return if verdict == Verdict::Pass { dropped(skb, vni, Reason::TooBig) } else { verdict };
    }
    let node = if encrypted {
        of_peer(backend.peer)
    } else {
        let Some(node) = backend.node.to_v4() else { return dropped(skb, vni, Reason::NotConfigured) };
        u32::from_ne_bytes(node)
    };
    if routed && !hops::lower(skb, packet) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    (packet.decided.number, packet.decided.node) = (number, node);
    (packet.decided.tunnel_vni, packet.decided.fits) = (published_vni(number).number(), u32::from(fits));
    if fits && !encrypted {
        let becomes = Becomes { end: NEITHER, port: [0; 2], counted: vni, reason: Reason::Published };
        flows::to_node(packet, becomes, mtu, Mac([0; 6]));
    }
    if maps::real_address(packet.parsed.key.destination).is_some() {
        Verdict::FromOwnAddress
    } else {
        Verdict::Tunnel
    }
}

/// Handles the host's own packet to a stand-in for one of its addresses. It is sent to another node
/// with the real address, because only this node knows the stand-ins.
#[inline(never)]
pub(super) fn from_own(skb: Skb, packet: &mut Packet) -> Verdict {
    let Some(own) = maps::real_address(packet.parsed.key.destination) else { return Verdict::Pass };
    packet.decided.to = *own;
    if translate(skb, packet, DESTINATION, 0) {
        Verdict::Tunnel
    } else {
        dropped(skb, Vni::NONE, Reason::TranslationFailed)
    }
}

/// Translates a packet to a published port, and delivers it to the backend on this node. Its `node`
/// is the one where the client's packets arrive.
#[inline(never)]
pub(super) fn to_endpoint(skb: Skb, packet: &mut Packet) -> Verdict {
    let (number, node) = (packet.decided.number, packet.decided.node);
    let Some(backend) = maps::backend(number) else { return dropped(skb, Vni::NONE, Reason::NoBackend) };
    let vni = backend.vni;
    let Some(address) = connection::address_of(backend, packet.parsed.v6 != 0) else {
        return dropped(skb, vni, Reason::NoBackend);
    };
    packet.decided.to = address;
    let [_, v0, v1, v2] = vni.0;
    packet.decided.reply_vni = [v0, v1, v2];
    let hairpin = packet::is_same(&packet.decided.to, &packet.parsed.key.source);
    let (kind, node) = if hairpin {
        (ConnectionKind::Hairpin, replies::HAIRPIN_NODE)
    } else {
        (ConnectionKind::Published, node)
    };
    replies::expect_replies(packet, number, kind as u32, node, u32::from(hairpin));
    if packet.decided.moved != 0 {
        maps::renew(&packet.scratch.other);
    }
    if packet.parsed.class == FLOW {
        connection::finish(packet, CLIENT_FINISHED);
    }
    let reason = if node == 0 { Reason::Published } else { Reason::Received };
    translate_and_deliver(skb, packet, u32::from_ne_bytes(vni.0), reason as u32)
}

/// Translates a packet to a published port, and delivers it to the backend with the address
/// [`packet::Decided::to`]. `vni` has the bytes of a [`Vni`], `reason` is the counter.
///
/// Separate from [`to_endpoint`], whose other callees need the stack that this function uses.
#[inline(never)]
fn translate_and_deliver(skb: Skb, packet: &mut Packet, vni: u32, reason: u32) -> Verdict {
    let vni = Vni(vni.to_ne_bytes());
    let hairpin = packet::is_same(&packet.decided.to, &packet.parsed.key.source);
    if !translate(skb, packet, DESTINATION, u16::from_ne_bytes(packet.decided.target))
        || !translate_client(skb, packet, SOURCE)
    {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    if hairpin {
        return Verdict::ToItself;
    }
    let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address: packet.decided.to }) else {
        return dropped(skb, vni, Reason::NoEndpoint);
    };
    let reason = if reason == Reason::Published as u32 { Reason::Published } else { Reason::Received };
    let becomes = Becomes { end: DESTINATION, port: packet.decided.target, counted: vni, reason };
    flows::to_endpoint(packet, becomes, endpoint.ifindex, endpoint.mac);
    match skb.deliver(endpoint.ifindex, endpoint.mac) {
        Ok(verdict) => verdict,
        Err(_) => dropped(skb, vni, Reason::TranslationFailed),
    }
}

/// Verdict for a frame of the routing mesh from another node, without its outer headers. `sender`
/// is that node, as it lies in memory; `encrypted`: the frame came encrypted; `mac`: its source.
#[inline(always)]
pub(in crate::datapath) fn of_mesh(
    packet: &mut Packet,
    vni: u32,
    sender: u32,
    encrypted: bool,
    mac: Mac,
) -> Verdict {
    packet.decided.returns = u32::from(mac == RETURNS_MAC);
    packet.decided.tunnel_vni = vni;
    packet.decided.node = sender;
    packet.decided.fits = u32::from(encrypted);
    Verdict::Tunnelled
}

/// Handles such a frame: a packet for a backend on this node, or a reply to a client of this node.
#[inline(never)]
pub(super) fn tunnelled(skb: Skb, packet: &mut Packet) -> Verdict {
    let returns = packet.decided.returns;
    if packet::read(skb, packet, 0) == OTHER {
        return dropped(skb, Vni::NONE, Reason::Malformed);
    }
    packet.decided.returns = returns;
    let (vni, encrypted) = (packet.decided.tunnel_vni, packet.decided.fits != 0);
    if !encrypted {
        flows::begin_received(packet, packet.decided.node, Vni::new(vni), [0; 2]);
    }
    let number = vni & (REPLY_BIT - 1);
    let Some(backend) = maps::backend(number) else { return dropped(skb, Vni::NONE, Reason::NoBackend) };
    if is_unencrypted(backend, encrypted) {
        return dropped(skb, backend.vni, Reason::EncryptedInClear);
    }
    if vni & REPLY_BIT != 0 {
        return Verdict::ReplyArrived;
    }
    if backend.flags & LOCAL == 0 {
        return dropped(skb, Vni::NONE, Reason::NoBackend);
    }
    if matches!(packet.parsed.class, LOST | LATER) {
        packet.parsed.class = LATER;
    } else {
        let [_, _, p0, p1] = packet.parsed.key.ports;
        let Some(published) =
            maps::published(packet.parsed.key.destination, [p0, p1], packet.parsed.key.protocol)
        else {
            return dropped(skb, backend.vni, Reason::NoBackend);
        };
        packet.decided.target = published.target;
    }
    count(skb, backend.vni, Reason::Received);
    packet.decided.number = number;
    Verdict::ToEndpoint
}

/// Returns whether a packet of an encrypted network arrived unencrypted.
#[inline(always)]
const fn is_unencrypted(backend: &Backend, encrypted: bool) -> bool {
    backend.flags & BACKEND_ENCRYPTED != 0 && !encrypted
}

/// Handles a reply of a backend on this node, for which [`replies::back`] found the flow.
#[inline(never)]
pub(in crate::datapath) fn reply(skb: Skb, packet: &mut Packet) -> Verdict {
    let vni = packet.vni();
    let (node, number) = (u32::from_ne_bytes(packet.scratch.found.node), packet.scratch.found.backend);
    if hops::is_reply_routed(packet) {
        if hops::are_exhausted(packet) {
            return Verdict::HopLimitReached;
        }
        if !hops::lower(skb, packet) {
            return dropped(skb, vni, Reason::TranslationFailed);
        }
    }
    if !translate(skb, packet, SOURCE, u16::from_ne_bytes(packet.scratch.found.port))
        || !translate_client(skb, packet, DESTINATION)
    {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    count(skb, vni, Reason::PublishedReply);
    let port = packet.scratch.found.port;
    let becomes = Becomes { end: SOURCE, port, counted: vni, reason: Reason::PublishedReply };
    if node == 0 || returns_directly(packet, number, node) {
        replies::forward_key(packet);
        flows::note(packet, becomes);
        return Verdict::Leave;
    }
    (packet.decided.number, packet.decided.node) = (number, node);
    (packet.decided.tunnel_vni, packet.decided.fits) = (PUBLISHED_BIT | REPLY_BIT | number, 1);
    if !is_peer(node) {
        flows::to_node(packet, becomes, u32::MAX, Mac([0; 6]));
    }
    Verdict::Tunnel
}

/// Returns whether a reply leaves from this node although its client uses another. The cluster must
/// allow this, and the client must be neither a container nor the other host itself. What an
/// encrypted network sends to a host stays inside WireGuard.
#[inline(always)]
fn returns_directly(packet: &Packet, number: u32, node: u32) -> bool {
    let (Some(config), Some(backend)) = (maps::config(), maps::backend(number)) else { return false };
    let client = packet.client();
    config.flags & DIRECT_RETURN != 0
        && backend.flags & BACKEND_ENCRYPTED == 0
        && packet.scratch.found.state & RETURNS == 0
        && !is_host_published(packet.decided.to)
        && client.to_v4().map(u32::from_ne_bytes) != Some(node)
        && !maps::is_host_address(client)
        && maps::network_of(client).is_none()
}

/// Handles a reply from another node's backend to a client of this node.
#[inline(never)]
pub(super) fn reply_arrived(skb: Skb, packet: &mut Packet) -> Verdict {
    let source = packet.parsed.source;
    if !is_host_published(source) && !maps::is_host_address(source) {
        return dropped(skb, Vni::NONE, Reason::NotOurAddress);
    }
    if maps::is_host_address(packet.client()) && !to_stand_in(skb, packet) {
        return dropped(skb, Vni::NONE, Reason::TranslationFailed);
    }
    connection::opposite_key(packet, [0; 3]);
    if packet.parsed.class == FLOW {
        connection::note_reply(packet);
    }
    count(skb, Vni::NONE, Reason::PublishedReply);
    let reason = Reason::PublishedReply;
    flows::note(packet, Becomes { end: NEITHER, port: [0; 2], counted: Vni::NONE, reason });
    Verdict::Leave
}

/// Rewrites the source of a reply to the host itself from one of its own addresses to the stand-in
/// ([`from_own`]). Returns `false` if the kernel refuses.
#[inline(always)]
fn to_stand_in(skb: Skb, packet: &mut Packet) -> bool {
    let Some(number @ 1..) = maps::number_of_host_address(packet.parsed.key.source) else { return true };
    packet.decided.to = host_published(number, packet.parsed.v6 == 0);
    let translated = translate(skb, packet, SOURCE, 0);
    packet.parsed.key.source = packet.decided.to;
    translated
}

/// Sends a reply to its client: a container on this node, the host itself, or an outside client.
/// For the last, [`super::packet::Scratch::other`] is the key of the opposite direction.
#[inline(never)]
pub(super) fn leave(skb: Skb, packet: &Packet) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Pass };
    let client = packet.client();
    if let Some(vni) = maps::network_of(client) {
        let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address: client }) else {
            return dropped(skb, vni, Reason::NoEndpoint);
        };
        return match skb.deliver(endpoint.ifindex, endpoint.mac) {
            Ok(verdict) => verdict,
            Err(_) => dropped(skb, vni, Reason::TranslationFailed),
        };
    }
    if maps::is_host_address(client) {
        return to_host(skb, config);
    }
    if own::is_reply_to_tunnel(packet) {
        return dropped(skb, Vni::NONE, Reason::ForeignTunnel);
    }
    Verdict::ToOutside
}

#[inline(always)]
fn to_host(skb: Skb, config: &Config) -> Verdict {
    if config.host_ifindex == 0 || skb.store(0, &config.host_mac.0).is_err() {
        return dropped(skb, Vni::NONE, Reason::NotConfigured);
    }
    skb.send(config.host_ifindex)
}
