//! What endpoints send: to VIPs, to published ports of their own host, and replies of backends.

use mesh_ebpf_types::{
    ALLOW_FORWARDING, Address, CLIENT_FINISHED, ConnectionKind, ENCRYPTED, EndpointKey, INTERNAL, Interface,
    LOCAL, Network, Reason, Vni, derived_mac,
};

use super::flows::{self, Becomes};
use super::packet::{self, LOST, OTHER};
use super::translate::{DESTINATION, SOURCE, translate, translate_client};
use super::{
    ASIDE, PUBLISHED_REPLY, REFUSE, REPLY, RESET, SET_ASIDE, TO_ITSELF, TO_PUBLISHED, TO_VIP, aside,
    connection, own, replies,
};
use crate::datapath::count::{count, dropped};
use crate::datapath::maps;
use crate::datapath::skb::Skb;
use crate::datapath::{GO_ON, PASS, TRANSLATED, Verdict, too_big};

/// What [`replies::back`] returns of a published port's flow.
const PUBLISHED_KIND: u32 = ConnectionKind::Published as u32 + 1;

/// Balances what an endpoint sends. [`GO_ON`], and nothing changed, where that is not for services;
/// [`TRANSLATED`] where it goes on to a backend.
#[inline(never)]
pub(in crate::datapath) fn balance(skb: Skb) -> Verdict {
    let Some(interface) = maps::interface(skb.ifindex()) else { return GO_ON };
    if skb.has_vlan() || packet::read(skb, u32::from_ne_bytes(interface.vni.0)) == OTHER || !is_own(interface)
    {
        return GO_ON;
    }
    flows::begin_sent(skb.ifindex());
    decide(skb)
}

/// Whether the packet says truly who sends it; others are dropped later.
#[inline(always)]
fn is_own(interface: &Interface) -> bool {
    let Some(packet) = maps::packet() else { return false };
    let own = if packet.v6 == 0 { Address::from_v4(interface.ipv4) } else { interface.ipv6 };
    packet.source_mac == interface.mac
        && !packet.destination_mac.is_group()
        && (packet.source == own || interface.flags & ALLOW_FORWARDING != 0)
}

#[inline(never)]
fn decide(skb: Skb) -> Verdict {
    let Some(packet) = maps::packet() else { return GO_ON };
    let vni = packet.vni();
    let mut from_backend = false;
    let leads_out = |network: &Network| network.flags & INTERNAL == 0;
    if packet.class == LOST || packet.first_fragment != 0 {
        if goes_aside() {
            return ASIDE;
        }
        if maps::is_host_address(packet.key.destination)
            && maps::network(vni).is_some_and(leads_out)
            && aside::goes_aside(skb)
        {
            return SET_ASIDE;
        }
    }
    if maps::is_backend(vni, packet.key.source) {
        packet::remember_fragment();
        match replies::back() {
            0 => from_backend = true,
            PUBLISHED_KIND => return PUBLISHED_REPLY,
            _ => return REPLY,
        }
    }
    if let Some(service) = maps::service(vni, packet.key.destination) {
        packet.table = [service.first, service.size, service.flags];
        packet::remember_fragment();
        return TO_VIP;
    }
    if packet.starts != 0 && maps::is_backend(vni, packet.key.destination) {
        replies::forget_replies();
        return GO_ON;
    }
    if maps::is_host_address(packet.key.destination) && maps::network(vni).is_some_and(leads_out) {
        if own::has_socket(skb) {
            packet::remember_unserved();
        } else if packet.class != LOST {
            packet::remember_fragment();
            return TO_PUBLISHED;
        }
    }
    if from_backend {
        flows::unbalanced();
    }
    GO_ON
}

/// Whether the fragment at hand goes to the host's kernel: the first one has to be known to tell
/// where it goes, and a later one came before it. Datagrams to the outside go there in any case.
#[inline(never)]
fn goes_aside() -> bool {
    let Some(packet) = maps::packet() else { return false };
    if packet.class != LOST {
        // Those to the host's addresses are `aside`'s.
        return packet::is_aside() && !maps::is_host_address(packet.key.destination);
    }
    let (vni, destination) = (packet.vni(), packet.key.destination);
    let concerned = maps::service(vni, destination).is_some()
        || maps::is_backend(vni, packet.key.source) && maps::network_of(destination) == Some(vni);
    if concerned {
        packet::set_aside();
    }
    concerned
}

#[inline(never)]
pub(super) fn to_vip(skb: Skb) -> Verdict {
    let Some(packet) = maps::packet() else { return GO_ON };
    let vni = packet.vni();
    let Some(network) = maps::network(vni) else { return GO_ON };
    let number = connection::choose();
    let Some(backend) = maps::backend(number) else {
        return if number == connection::GONE { RESET } else { REFUSE };
    };
    let Some(address) = connection::address_of(backend, packet.v6 != 0) else {
        return REFUSE;
    };
    // The answer is to quote the packet as its sender knows it.
    if backend.flags & LOCAL == 0 && packet.dont_fragment != 0 && is_too_big(skb, network) {
        let verdict = too_big::answer(skb, u32::from_ne_bytes(vni.0), network.mtu);
        return if verdict == PASS { dropped(skb, vni, Reason::TooBig) } else { verdict };
    }
    let hairpin = address == packet.key.source;
    packet.to = address;
    packet.number = number;
    let kind = if hairpin { ConnectionKind::Hairpin } else { ConnectionKind::Back };
    replies::expect_replies(number, kind as u32, 0, u32::from(hairpin));
    connection::finish(CLIENT_FINISHED);
    if !hairpin {
        remember_way();
    }
    if !translate(skb, DESTINATION, 0) || !translate_client(skb, SOURCE) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    if hairpin {
        return TO_ITSELF;
    }
    if skb.store(0, &derived_mac(address, network.prefix6).0).is_err() {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    TRANSLATED
}

/// Has the way to the backend of the packet at hand remembered.
#[inline(never)]
fn remember_way() {
    let Some(packet) = maps::packet() else { return };
    let (vni, address) = (packet.vni(), packet.to);
    let (Some(network), Some(backend)) = (maps::network(vni), maps::backend(packet.number)) else { return };
    let reason = if backend.flags & LOCAL == 0 { Reason::ForwardedRemote } else { Reason::ForwardedLocal };
    let becomes = Becomes { end: DESTINATION, port: [0; 2], counted: vni, reason };
    if backend.flags & LOCAL != 0 {
        if let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address }) {
            flows::to_endpoint(becomes, endpoint.ifindex, endpoint.mac);
        }
    } else if network.flags & ENCRYPTED == 0
        && let Some(node) = backend.node.to_v4()
    {
        (packet.node, packet.tunnel_vni) = (u32::from_ne_bytes(node), vni.number());
        flows::to_node(becomes, network.mtu, derived_mac(address, network.prefix6));
    }
}

/// Whether a packet, or a segment of a super-packet, does not fit the tunnel.
#[inline(always)]
pub(super) fn is_too_big(skb: Skb, network: &Network) -> bool {
    segment_length(skb) > network.mtu
}

/// Length of the IP packet; of the largest segment, if it is a super-packet; 0 if its segments
/// cannot be told.
#[inline(never)]
pub(super) fn segment_length(skb: Skb) -> u32 {
    /// See `encapsulate`.
    const GSO_BY_FRAGS: u32 = 0xffff;
    let Some(packet) = maps::packet() else { return 0 };
    let header = match skb.gso_size() {
        0 => return skb.length() - 14,
        GSO_BY_FRAGS => return 0,
        payload => payload + packet.upper - 14,
    };
    if packet.key.protocol == mesh_ebpf::ip::TCP {
        let [offset] = skb.load::<1>(packet.upper + 12).unwrap_or([0x50]);
        header + u32::from(offset >> 4) * 4
    } else {
        header + 8
    }
}

/// The backend that a container was given is itself: it gets the packet from elsewhere, since no
/// host takes a packet from its own address.
#[inline(never)]
pub(super) fn to_itself(skb: Skb) -> Verdict {
    let Some(packet) = maps::packet() else { return GO_ON };
    let [v0, v1, v2] = packet.reply_vni;
    let (vni, own) = (Vni([0, v0, v1, v2]), packet.key.source);
    packet.to = replies::hairpin_source();
    if !translate(skb, SOURCE, 0) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    deliver(skb, vni, own)
}

/// A backend's reply whose client is here, or outside.
#[inline(never)]
pub(super) fn reply(skb: Skb) -> Verdict {
    let Some(packet) = maps::packet() else { return GO_ON };
    let vni = packet.vni();
    let (own, client) = (packet.key.source, packet.key.destination);
    if !translate(skb, SOURCE, u16::from_ne_bytes(packet.found.port)) || !translate_client(skb, DESTINATION) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    if packet.found.kind != ConnectionKind::Hairpin as u8 {
        remember_reply(vni, client);
        return deliver(skb, vni, client);
    }
    packet.to = own;
    if !translate(skb, DESTINATION, 0) {
        return dropped(skb, vni, Reason::TranslationFailed);
    }
    deliver(skb, vni, own)
}

#[inline(always)]
fn remember_reply(vni: Vni, client: Address) {
    let Some(packet) = maps::packet() else { return };
    if let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address: client }) {
        let port = packet.found.port;
        let becomes = Becomes { end: SOURCE, port, counted: vni, reason: Reason::ForwardedLocal };
        flows::to_endpoint(becomes, endpoint.ifindex, endpoint.mac);
    }
}

/// Gives a packet to an endpoint on this node.
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
