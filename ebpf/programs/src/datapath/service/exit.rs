//! By which device a reply leaves to its client outside: the one that the client's packets arrive
//! at, if a route of the kernel's leads out of it to the client. Otherwise, as a reply of the
//! kernel's own would.
//!
//! Without the route, a neighbour on any of the host's interfaces could speak in a stranger's name,
//! and would be answered.

use super::{connection, flows};
use crate::datapath::maps::{self, packet};
use crate::datapath::route::Route;
use crate::datapath::skb::Skb;
use crate::datapath::{DROP, Verdict};

/// Sends a reply to its client outside. [`super::packet::Packet::other`] is the key of the opposite
/// direction.
#[inline(never)]
pub(super) fn to_outside(skb: Skb) -> Verdict {
    let Some(config) = maps::config() else { return DROP };
    let ifindex = match leads(skb, connection::arrived_at()) {
        0 => way(skb, config.underlay_ifindex),
        ifindex => ifindex,
    };
    if flows::wanted() {
        flows::leaves(ifindex);
    }
    skb.route(ifindex)
}

/// The device itself, if the kernel routes the reply at hand out of it, else 0.
#[inline(never)]
fn leads(skb: Skb, ifindex: u32) -> u32 {
    if ifindex == 0 {
        return 0;
    }
    let mut route = question(ifindex);
    if skb.leads(&mut route) { ifindex } else { 0 }
}

/// The device that the kernel forwards the reply at hand to, if it arrived at `from`; `from` itself
/// where it tells none.
#[inline(never)]
fn way(skb: Skb, from: u32) -> u32 {
    let mut route = question(from);
    skb.way(&mut route)
}

/// What the kernel's routes are asked of the reply at hand.
#[inline(always)]
fn question(ifindex: u32) -> Route {
    let Some(packet) = packet() else { return Route::new(ifindex, 0, 0, 0) };
    let (source, destination) = (packet.other.destination.words(), packet.client().words());
    Route::between(packet.v6 != 0, ifindex, packet.key.protocol, source, destination)
}
