//! By which device a reply leaves to its client outside: the one that the client's packets arrive
//! at, if a route of the kernel's leads out of it to the client. Otherwise, as a reply of the
//! kernel's own would.
//!
//! Without the route, a neighbour on any of the host's interfaces could speak in a stranger's name,
//! and would be answered.

use super::packet::Packet;
use super::{connection, flows};
use crate::datapath::maps;
use crate::datapath::route::Route;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// Sends a reply to its client outside. [`super::packet::Scratch::other`] is the key of the
/// opposite direction.
#[inline(never)]
pub(super) fn to_outside(skb: Skb, packet: &mut Packet) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Drop };
    let arrived_at = connection::arrived_at(packet);
    let ifindex = match leads(skb, packet, arrived_at) {
        0 => way(skb, packet, config.underlay_ifindex),
        ifindex => ifindex,
    };
    if flows::wanted(packet) {
        flows::leaves(packet, ifindex);
    }
    skb.route(ifindex)
}

/// The device itself, if the kernel routes the reply at hand out of it, else 0.
#[inline(never)]
fn leads(skb: Skb, packet: &Packet, ifindex: u32) -> u32 {
    if ifindex == 0 {
        return 0;
    }
    let mut route = question(packet, ifindex);
    if skb.leads(&mut route) { ifindex } else { 0 }
}

/// The device that the kernel forwards the reply at hand to, if it arrived at `from`; `from` itself
/// where it tells none.
#[inline(never)]
fn way(skb: Skb, packet: &Packet, from: u32) -> u32 {
    let mut route = question(packet, from);
    skb.way(&mut route)
}

/// What the kernel's routes are asked of the reply at hand.
#[inline(always)]
fn question(packet: &Packet, ifindex: u32) -> Route {
    let (source, destination) = (packet.scratch.other.destination.words(), packet.client().words());
    Route::between(packet.parsed.v6 != 0, ifindex, packet.parsed.key.protocol, source, destination)
}
