//! Chooses the device through which a reply leaves to an outside client. This is the device where
//! the client's packets arrive, if the kernel has a route to the client through it. Otherwise it is
//! the device that the kernel would use for its own reply.
//!
//! Without the check of the route, a neighbour on any of the host's interfaces could forge a
//! client's address and receive the replies.

use super::packet::Packet;
use super::{connection, flows};
use crate::datapath::maps;
use crate::datapath::route::Route;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// Sends a reply to an outside client. [`super::packet::Scratch::other`] is the key of the opposite
/// direction.
#[inline(never)]
pub(super) fn to_outside(skb: Skb, packet: &mut Packet) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Drop };
    let arrived_at = connection::arrived_at(packet);
    let ifindex = match if_routed(skb, packet, arrived_at) {
        0 => kernels_choice(skb, packet, config.underlay_ifindex),
        ifindex => ifindex,
    };
    if flows::is_cacheable(packet) {
        flows::leaves(packet, ifindex);
    }
    skb.route(ifindex)
}

/// Returns `ifindex` if the kernel routes the current reply out of this device, else 0.
#[inline(never)]
fn if_routed(skb: Skb, packet: &Packet, ifindex: u32) -> u32 {
    if ifindex == 0 {
        return 0;
    }
    let mut route = query(packet, ifindex);
    if skb.routes_out(&mut route) { ifindex } else { 0 }
}

/// Returns the device to which the kernel would forward the current reply if it arrived at `from`;
/// `from` itself if the kernel does not say.
#[inline(never)]
fn kernels_choice(skb: Skb, packet: &Packet, from: u32) -> u32 {
    let mut route = query(packet, from);
    skb.output_device(&mut route)
}

/// Returns the route query for the current reply.
#[inline(always)]
fn query(packet: &Packet, ifindex: u32) -> Route {
    let (source, destination) = (packet.scratch.other.destination.words(), packet.client().words());
    Route::between(packet.parsed.v6 != 0, ifindex, packet.parsed.key.protocol, source, destination)
}
