//! Replies of backends on other nodes that arrive for clients here.

use mesh_ebpf_types::{ConnectionKind, Reason, Vni};

use super::flows::{self, Becomes};
use super::translate::{DESTINATION, SOURCE, translate, translate_client};
use super::{INBOUND, packet, replies};
use crate::datapath::count::dropped;
use crate::datapath::maps;
use crate::datapath::skb::Skb;
use crate::datapath::{PASS, Verdict};

/// What [`replies::back`] returns of a VIP's flow.
const BACK: u32 = ConnectionKind::Back as u32 + 1;

/// Verdict for a frame of a network, decapsulated, counted and with the MAC of the endpoint that it
/// is for, whose source is a backend's address: it may be a reply to what a client here sent to a
/// VIP. `ifindex` is of the endpoint's device. In outer headers that this mesh made, `node` was the
/// sender and `mac` the frame's destination; `node` is 0 where it came otherwise.
#[inline(always)]
pub(in crate::datapath) fn from_backend(vni: Vni, ifindex: u32, node: u32, mac: [u32; 2]) -> Verdict {
    let Some(packet) = maps::packet() else { return PASS };
    packet.node = node;
    packet.tunnel_mac = mac;
    packet.tunnel_vni = u32::from_ne_bytes(vni.0);
    packet.ifindex = ifindex;
    INBOUND
}

/// Translates such a frame if it is a reply, and delivers it.
#[inline(never)]
pub(super) fn deliver(skb: Skb) -> Verdict {
    let Some(packet) = maps::packet() else { return PASS };
    let vni = packet.tunnel_vni;
    if !translate_back(skb, vni) {
        return dropped(skb, Vni(vni.to_ne_bytes()), Reason::TranslationFailed);
    }
    skb.deliver_as_is(packet.ifindex)
        .unwrap_or_else(|_| dropped(skb, Vni(vni.to_ne_bytes()), Reason::DecapsulationFailed))
}

#[inline(always)]
fn translate_back(skb: Skb, vni: u32) -> bool {
    if packet::read(skb, vni) == packet::OTHER {
        return true;
    }
    packet::remember_fragment();
    let Some(packet) = maps::packet() else { return false };
    let counted = Vni(vni.to_ne_bytes());
    flows::begin_received(packet.node, counted, packet.tunnel_mac);
    match replies::back() {
        BACK => {}
        found => {
            if found == 0 {
                flows::unbalanced();
            }
            return true;
        }
    }
    let becomes = Becomes { end: SOURCE, port: packet.found.port, counted, reason: Reason::Received };
    flows::to_endpoint(becomes, packet.ifindex, packet.destination_mac);
    translate(skb, SOURCE, u16::from_ne_bytes(packet.found.port)) && translate_client(skb, DESTINATION)
}
