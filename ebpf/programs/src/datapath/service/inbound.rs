//! Replies of backends on other nodes to clients on this node.

use mesh_ebpf_types::{ConnectionKind, Reason, Vni};

use super::flows::{self, Becomes};
use super::packet::Packet;
use super::translate::{DESTINATION, SOURCE, translate, translate_client};
use super::{packet, replies};
use crate::datapath::count::dropped;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// Result of [`replies::back`] for a flow of a VIP.
const BACK: u32 = ConnectionKind::Back as u32 + 1;

/// Returns the verdict for a frame from a backend's address. It may be a reply to a client's packet
/// to a VIP. The frame is decapsulated and counted, and has the MAC of its endpoint. `ifindex` is
/// the endpoint's device. If the frame came in outer headers written by Mesh, `node` is the sender
/// and `mac` the frame's destination; otherwise `node` is 0.
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
