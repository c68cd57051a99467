//! Replies of backends on other nodes that arrive for clients here.

use mesh_ebpf_types::{ConnectionKind, Reason, Vni};

use super::flows::{self, Becomes};
use super::packet::Packet;
use super::translate::{DESTINATION, SOURCE, translate, translate_client};
use super::{packet, replies};
use crate::datapath::count::dropped;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// What [`replies::back`] returns of a VIP's flow.
const BACK: u32 = ConnectionKind::Back as u32 + 1;

/// Verdict for a frame of a network, decapsulated, counted and with the MAC of the endpoint that it
/// is for, whose source is a backend's address: it may be a reply to what a client here sent to a
/// VIP. `ifindex` is of the endpoint's device. In outer headers that this mesh made, `node` was the
/// sender and `mac` the frame's destination; `node` is 0 where it came otherwise.
#[inline(always)]
pub(in crate::datapath) fn from_backend(
    packet: &mut Packet,
    vni: Vni,
    ifindex: u32,
    node: u32,
    mac: [u32; 2],
) -> Verdict {
    packet.decided.node = node;
    packet.decided.tunnel_mac = mac;
    packet.decided.tunnel_vni = u32::from_ne_bytes(vni.0);
    packet.decided.ifindex = ifindex;
    Verdict::Inbound
}

/// Translates such a frame if it is a reply, and delivers it.
#[inline(never)]
pub(super) fn deliver(skb: Skb, packet: &mut Packet) -> Verdict {
    let vni = packet.decided.tunnel_vni;
    if !translate_back(skb, packet, vni) {
        return dropped(skb, Vni(vni.to_ne_bytes()), Reason::TranslationFailed);
    }
    skb.deliver_as_is(packet.decided.ifindex)
        .unwrap_or_else(|_| dropped(skb, Vni(vni.to_ne_bytes()), Reason::DecapsulationFailed))
}

#[inline(always)]
fn translate_back(skb: Skb, packet: &mut Packet, vni: u32) -> bool {
    if packet::read(skb, packet, vni) == packet::OTHER {
        return true;
    }
    packet::remember_fragment(packet);
    let counted = Vni(vni.to_ne_bytes());
    flows::begin_received(packet, packet.decided.node, counted, packet.decided.tunnel_mac);
    match replies::back(packet) {
        BACK => {}
        found => {
            if found == 0 {
                flows::unbalanced(packet);
            }
            return true;
        }
    }
    let becomes = Becomes { end: SOURCE, port: packet.scratch.found.port, counted, reason: Reason::Received };
    flows::to_endpoint(packet, becomes, packet.decided.ifindex, packet.parsed.destination_mac);
    translate(skb, packet, SOURCE, u16::from_ne_bytes(packet.scratch.found.port))
        && translate_client(skb, packet, DESTINATION)
}
