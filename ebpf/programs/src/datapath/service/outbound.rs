//! Packets from endpoints to VIPs and to published ports of their own host, and replies of
//! backends.

use mesh_ebpf_types::{
    ALLOW_FORWARDING, Address, CLIENT_FINISHED, ConnectionKind, ENCRYPTED, EndpointKey, INTERNAL, Interface,
    LOCAL, Network, Reason, Vni, derived_mac,
};

use super::flows::{self, Becomes};
use super::packet::{self, LOST, OTHER, Packet};
use super::translate::{DESTINATION, SOURCE, translate, translate_client};
use super::{connection, own, reassembly, replies};
use crate::datapath::count::{count, dropped};
use crate::datapath::maps;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;
use crate::datapath::{segment, too_big};

/// Result of [`replies::back`] for a flow of a published port.
const PUBLISHED_KIND: u32 = ConnectionKind::Published as u32 + 1;

/// Balances a packet from an endpoint. Returns [`Verdict::Unchanged`] if it is not for a service,
/// and [`Verdict::Translated`] if it continues to a backend.
#[inline(never)]
pub(in crate::datapath) fn balance(skb: Skb, packet: &mut Packet) -> Verdict {
    let Some(interface) = maps::interface(skb.ifindex()) else { return Verdict::Unchanged };
    if skb.has_vlan()
        || packet::read(skb, packet, u32::from_ne_bytes(interface.vni.0)) == OTHER
        || !is_own(packet, interface)
    {
        return Verdict::Unchanged;
    }
    flows::begin_sent(packet, skb.ifindex());
    decide(skb, packet)
}

/// Returns whether the packet's source is its sender's; packets with others are dropped later.
#[inline(always)]
fn is_own(packet: &Packet, interface: &Interface) -> bool {
    let own = if packet.parsed.v6 == 0 { Address::from_v4(interface.ipv4) } else { interface.ipv6 };
    packet.parsed.source_mac == interface.mac
        && !packet.parsed.destination_mac.is_group()
        && (packet.parsed.source == own || interface.flags & ALLOW_FORWARDING != 0)
}

#[inline(never)]
fn decide(skb: Skb, packet: &mut Packet) -> Verdict {
    let vni = packet.vni();
    let mut from_backend = false;
    let leads_out = |network: &Network| network.flags & INTERNAL == 0;
    if packet.parsed.class == LOST || packet.parsed.first_fragment != 0 {
        if needs_reassembly(packet) {
            return Verdict::Reassemble;
        }
        if maps::is_host_address(packet.parsed.key.destination)
            && maps::network(vni).is_some_and(leads_out)
            && reassembly::needs_reassembly(skb, packet)
        {
            return Verdict::SendToReassembly;
        }
    }
    if maps::is_backend(vni, packet.parsed.key.source) {
        packet::remember_fragment(packet);
        match replies::back(packet) {
            0 => from_backend = true,
            PUBLISHED_KIND => return Verdict::PublishedReply,
            _ => return Verdict::Reply,
        }
    }
    if let Some(service) = maps::service(vni, packet.parsed.key.destination) {
        packet.decided.table = [service.first, service.size, service.flags];
        packet::remember_fragment(packet);
        return Verdict::ToVip;
    }
    if packet.parsed.starts != 0 && maps::is_backend(vni, packet.parsed.key.destination) {
        replies::forget_replies(packet);
        return Verdict::Unchanged;
    }
    if maps::is_host_address(packet.parsed.key.destination) && maps::network(vni).is_some_and(leads_out) {
        if own::has_socket(skb, packet) {
            packet::remember_unserved(packet);
        } else if packet.parsed.class != LOST {
            packet::remember_fragment(packet);
            return Verdict::ToPublished;
        }
    }
    if from_backend {
        flows::unbalanced(packet);
    }
    Verdict::Unchanged
}

/// Returns whether the current fragment goes to the host's kernel. This is the case if the packet's
/// destination depends on its ports, and a later fragment arrived before the first one. Packets to
/// the outside go to the kernel anyway.
#[inline(never)]
fn needs_reassembly(packet: &mut Packet) -> bool {
    if packet.parsed.class != LOST {
        // [`reassembly`] handles those to the host's addresses.
        return packet::is_in_reassembly(packet) && !maps::is_host_address(packet.parsed.key.destination);
    }
    let (vni, destination) = (packet.vni(), packet.parsed.key.destination);
    let concerned = maps::service(vni, destination).is_some()
        || maps::is_backend(vni, packet.parsed.key.source) && maps::network_of(destination) == Some(vni);
    if concerned {
        packet::note_reassembly(packet);
    }
    concerned
}

#[inline(never)]
pub(super) fn to_vip(skb: Skb, packet: &mut Packet) -> Verdict {
    let vni = packet.vni();
    let Some(network) = maps::network(vni) else { return Verdict::Unchanged };
    let number = connection::choose(packet);
    let Some(backend) = maps::backend(number) else {
        return if number == connection::GONE { Verdict::Reset } else { Verdict::Refuse };
    };
    let Some(address) = connection::address_of(backend, packet.parsed.v6 != 0) else {
        return Verdict::Refuse;
    };
    // The answer must quote the packet as its sender knows it, before translation.
    if backend.flags & LOCAL == 0 && packet.parsed.dont_fragment != 0 && is_too_big(skb, packet, network) {
        let verdict = too_big::answer(skb, u32::from_ne_bytes(vni.0), network.mtu);
        return if verdict == Verdict::Pass { dropped(skb, vni, Reason::TooBig) } else { verdict };
    }
    let hairpin = address == packet.parsed.key.source;
    packet.decided.to = address;
    packet.decided.number = number;
    let kind = if hairpin { ConnectionKind::Hairpin } else { ConnectionKind::Back };
    replies::expect_replies(packet, number, kind as u32, 0, u32::from(hairpin));
    connection::finish(packet, CLIENT_FINISHED);
    if !hairpin {
        remember_backend(packet);
    }
    if !translate(skb, packet, DESTINATION, 0) || !translate_client(skb, packet, SOURCE) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    if hairpin {
        return Verdict::ToItself;
    }
    if skb.store(0, &derived_mac(address, network.prefix6).0).is_err() {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    Verdict::Translated
}

/// Caches the decision to send to the backend of the current packet.
#[inline(never)]
fn remember_backend(packet: &mut Packet) {
    let (vni, address) = (packet.vni(), packet.decided.to);
    let (Some(network), Some(backend)) = (maps::network(vni), maps::backend(packet.decided.number)) else {
        return;
    };
    let reason = if backend.flags & LOCAL == 0 { Reason::ForwardedRemote } else { Reason::ForwardedLocal };
    let becomes = Becomes { end: DESTINATION, port: [0; 2], counted: vni, reason };
    if backend.flags & LOCAL != 0 {
        if let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address }) {
            flows::to_endpoint(packet, becomes, endpoint.ifindex, endpoint.mac);
        }
    } else if network.flags & ENCRYPTED == 0
        && let Some(node) = backend.node.to_v4()
    {
        (packet.decided.node, packet.decided.tunnel_vni) = (u32::from_ne_bytes(node), vni.number());
        flows::to_node(packet, becomes, network.mtu, derived_mac(address, network.prefix6));
    }
}

/// Returns whether a packet, or a segment of a super-packet, does not fit the tunnel.
#[inline(always)]
pub(super) fn is_too_big(skb: Skb, packet: &Packet, network: &Network) -> bool {
    segment_length(skb, packet) > network.mtu
}

/// Returns the length of the current packet; see [`segment::length`].
#[inline(never)]
pub(super) fn segment_length(skb: Skb, packet: &Packet) -> u32 {
    segment::length(skb, || (packet.parsed.key.protocol, packet.parsed.upper))
}

/// Handles a container whose chosen backend is itself. The packet gets another source, since hosts
/// do not accept packets from their own address.
#[inline(never)]
pub(super) fn to_itself(skb: Skb, packet: &mut Packet) -> Verdict {
    let [v0, v1, v2] = packet.decided.reply_vni;
    let (vni, own) = (Vni([0, v0, v1, v2]), packet.parsed.key.source);
    packet.decided.to = replies::hairpin_source(packet);
    if !translate(skb, packet, SOURCE, 0) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    deliver(skb, vni, own)
}

/// Handles a backend's reply whose client is on this node, or outside.
#[inline(never)]
pub(super) fn reply(skb: Skb, packet: &mut Packet) -> Verdict {
    let vni = packet.vni();
    let (own, client) = (packet.parsed.key.source, packet.parsed.key.destination);
    if !translate(skb, packet, SOURCE, u16::from_ne_bytes(packet.scratch.found.port))
        || !translate_client(skb, packet, DESTINATION)
    {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    if packet.scratch.found.kind != ConnectionKind::Hairpin as u8 {
        remember_reply(packet, vni, client);
        return deliver(skb, vni, client);
    }
    packet.decided.to = own;
    if !translate(skb, packet, DESTINATION, 0) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    deliver(skb, vni, own)
}

#[inline(always)]
fn remember_reply(packet: &mut Packet, vni: Vni, client: Address) {
    if let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address: client }) {
        let port = packet.scratch.found.port;
        let becomes = Becomes { end: SOURCE, port, counted: vni, reason: Reason::ForwardedLocal };
        flows::to_endpoint(packet, becomes, endpoint.ifindex, endpoint.mac);
    }
}

/// Delivers a packet to an endpoint on this node.
#[inline(always)]
fn deliver(skb: Skb, vni: Vni, address: Address) -> Verdict {
    let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address }) else {
        return dropped(skb, vni, Reason::NoEndpoint);
    };
    count(skb, vni, Reason::ForwardedLocal);
    match skb.deliver(endpoint.ifindex, endpoint.mac) {
        Ok(verdict) => verdict,
        Err(_) => dropped(skb, vni, Reason::TranslationFailed),
    }
}
