//! Neighbour requests: answered in place, for every address of the network's subnets but the asker's own.
//!
//! The functions that build answers are calls, not inlined: their buffers are not on the stack of every other packet.
//! They look up for themselves what the caller knows: references would be passed by value, and eBPF has five registers.

use mesh_ebpf::ethernet::Ethernet;
use mesh_ebpf::ip::Packet;
use mesh_ebpf::{arp, ndp};
use mesh_ebpf_types::{BlockKind, EndpointKey, Interface, Network, Reason, Vni, derived_mac};

use super::count::{count, dropped};
use super::skb::Skb;
use super::{Verdict, maps};

/// Answers an ARP request. Other ARP is dropped: there is nobody to hear it.
#[inline(never)]
pub(super) fn answer_arp(skb: Skb) -> Verdict {
    answer(skb, arp_answered)
}

#[inline(always)]
fn arp_answered(skb: Skb, interface: &Interface, network: &Network) -> Result<(), Reason> {
    let frame = skb.load(0).map_err(|_| Reason::Malformed)?;
    let request = arp::Request::parse(&frame).ok_or(Reason::Multicast)?;
    // The asker's own address: an announcement, or the search for a conflict that must stay unanswered (RFC 5227).
    if request.target == interface.ipv4 {
        return Err(Reason::Multicast);
    }
    let address = request.address();
    maps::block(&EndpointKey { vni: interface.vni, address }).ok_or(Reason::NoEndpoint)?;
    let answer = request.answer(derived_mac(address, network.prefix6));
    skb.store(0, &answer).map_err(|_| Reason::Malformed)
}

/// Answers a neighbour solicitation that stands right behind the IPv6 header. Other neighbour discovery is dropped.
#[inline(never)]
pub(super) fn answer_solicitation(skb: Skb) -> Verdict {
    answer(skb, solicitation_answered)
}

#[inline(always)]
fn answer(skb: Skb, make: impl FnOnce(Skb, &Interface, &Network) -> Result<(), Reason>) -> Verdict {
    let Some(interface) = maps::interface(skb.ifindex()) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    let vni = interface.vni;
    let Some(network) = maps::network(vni) else { return dropped(skb, vni, Reason::UnknownNetwork) };
    match make(skb, interface, network) {
        Ok(()) => {
            count(skb, vni, Reason::NeighbourAnswered);
            skb.send(skb.ifindex())
        }
        Err(reason) => dropped(skb, vni, reason),
    }
}

#[inline(always)]
fn solicitation_answered(skb: Skb, interface: &Interface, network: &Network) -> Result<(), Reason> {
    let ethernet = Ethernet::parse(&skb.load(0).map_err(|_| Reason::Malformed)?);
    let header = skb.load(14).map_err(|_| Reason::Malformed)?;
    let packet = Packet::parse_v6(&header, skb.length() - 14, false).map_err(|_| Reason::Malformed)?;
    let bytes = skb.load(54).map_err(|_| Reason::Malformed)?;
    let solicitation = ndp::Solicitation::parse(ethernet.source, packet.source, packet.hop_limit, &bytes)
        .ok_or(Reason::Multicast)?;
    let address = solicitation.target;
    if address == interface.ipv6 {
        return Err(Reason::Multicast);
    }
    let block = maps::block(&EndpointKey { vni: interface.vni, address }).ok_or(Reason::Multicast)?;
    let router = block.kind == BlockKind::Gateway as u32;
    let answer = solicitation.answer(derived_mac(address, network.prefix6), router);
    skb.resize(const { ndp::ANSWER as u32 }).map_err(|_| Reason::Malformed)?;
    skb.store(0, &answer).map_err(|_| Reason::Malformed)
}
