//! Answers neighbour requests in place, for every address of the network's subnets except the
//! sender's own.
//!
//! The functions that build answers are calls, not inlined: their buffers must not be on the stack
//! of every other packet. They repeat lookups of the caller: eBPF has five argument registers, and
//! references would be passed by value.

use mesh_ebpf::{arp, ndp};
use mesh_ebpf_types::{Address, BlockKind, Interface, Network, Reason, Vni, derived_mac};

use super::count::{count, dropped};
use super::maps;
use super::skb::Skb;
use super::verdict::Verdict;

/// Answers an ARP request. Drops other ARP: no receiver needs it.
#[inline(never)]
pub(super) fn answer_arp(skb: Skb) -> Verdict {
    answer(skb, arp_answered)
}

#[inline(always)]
fn arp_answered(skb: Skb, interface: &Interface, network: &Network) -> Result<(), Reason> {
    let mut frame = arp::Request::new();
    skb.read(0, &mut frame.bytes).map_err(|_| Reason::Malformed)?;
    // The sender's own address: an announcement, or conflict detection, which must stay unanswered
    // (RFC 5227).
    if !frame.is_request() || frame.target() == Address::from_v4(interface.ipv4) {
        return Err(Reason::Multicast);
    }
    let target = frame.target();
    maps::block(&maps::BlockLookup::new(interface.vni, target)).ok_or(Reason::NoEndpoint)?;
    frame.answer(derived_mac(target, network.prefix6));
    skb.store(0, &frame.bytes).map_err(|_| Reason::Malformed)
}

/// Answers a neighbour solicitation that directly follows the IPv6 header. Drops other neighbour
/// discovery.
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
    let mut frame = ndp::Solicitation::new();
    // Other discovery may be shorter, for example a router solicitation.
    skb.read_at::<{ ndp::SOLICITATION }>(0, &mut frame.bytes, 0).map_err(|_| Reason::Multicast)?;
    if !frame.is_solicitation() || frame.target() == interface.ipv6 {
        return Err(Reason::Multicast);
    }
    let target = frame.target();
    let block = maps::block(&maps::BlockLookup::new(interface.vni, target)).ok_or(Reason::Multicast)?;
    frame.answer(derived_mac(target, network.prefix6), block.kind == BlockKind::Gateway as u32);
    skb.resize(const { ndp::ANSWER as u32 }).map_err(|_| Reason::Malformed)?;
    skb.store(0, &frame.bytes).map_err(|_| Reason::Malformed)
}
