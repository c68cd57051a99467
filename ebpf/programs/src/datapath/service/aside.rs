//! Fragments to the host's addresses whose first one comes late.
//!
//! Only the first fragment has ports: a later one that comes before it does not tell whether it is
//! for a published port. All fragments of such a packet go to the host's kernel, at the address
//! that stands for the host's own. The kernel reassembles them for connection tracking, and
//! forwards them in order to `mesh0`. There `host` gives them to the program of the device that
//! they arrived at once more, as they were.

use mesh_ebpf::ip;
use mesh_ebpf_types::{EndpointKey, Mac, Reason, Vni, host_published};

use super::packet::{self, LATER, LOST, Packet};
use super::translate::{DESTINATION, translate};
use crate::datapath::count::dropped;
use crate::datapath::maps::{self, FRAGMENTS};
use crate::datapath::route::Route;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// What stands in keys of `FRAGMENTS` for a network: the value is the device that such a packet
/// arrived at.
const DEVICE: [u8; 3] = [0xff; 3];
/// Likewise: the two parts of the frame's destination.
const MAC_START: [u8; 3] = [0xff, 0xff, 0xfe];
const MAC_END: [u8; 3] = [0xff, 0xff, 0xfd];

/// Whether the fragment at hand, for one of the host's addresses, goes to the kernel. Notes it of a
/// packet whose first fragment comes late. Other nodes' packets do not: what nodes send each other
/// in fragments is for their tunnels.
#[inline(never)]
pub(super) fn goes_aside(skb: Skb, packet: &mut Packet) -> bool {
    if packet.parsed.class != LOST && packet.parsed.first_fragment == 0
        || !matches!(packet.parsed.key.protocol, ip::TCP | ip::UDP | ip::SCTP)
    {
        return false;
    }
    if packet.parsed.class != LOST {
        return packet::is_aside(packet) && has_way(skb, packet);
    }
    if maps::is_member(packet.parsed.key.source) {
        return false;
    }
    packet::set_aside(packet);
    has_way(skb, packet)
}

/// Whether the kernel forwards to what stands for the address, which becomes
/// [`packet::Decided::to`].
#[inline(never)]
fn has_way(skb: Skb, packet: &mut Packet) -> bool {
    let Some(number @ 1..) = maps::number_of_host_address(packet.parsed.key.destination) else {
        return false;
    };
    packet.decided.to = host_published(number, packet.parsed.v6 == 0);
    let (source, to) = (packet.parsed.key.source.words(), packet.decided.to.words());
    let mut route =
        Route::between(packet.parsed.v6 != 0, skb.ifindex(), packet.parsed.key.protocol, source, to);
    skb.forwards(&mut route)
}

/// Addresses a fragment to what stands for its destination ([`goes_aside`]), for the kernel to
/// forward.
#[inline(never)]
pub(super) fn set_aside(skb: Skb, packet: &mut Packet) -> Verdict {
    let [m0, m1, m2, m3, m4, m5] = packet.parsed.destination_mac.0;
    note(packet, DEVICE, skb.ifindex().to_ne_bytes());
    note(packet, MAC_START, [m0, m1, m2, m3]);
    note(packet, MAC_END, [m4, m5, 0, 0]);
    if !translate(skb, packet, DESTINATION, 0) {
        return dropped(skb, Vni::NONE, Reason::TranslationFailed);
    }
    skb.mark();
    Verdict::Pass
}

/// Gives a fragment that the kernel put in order, and that has been read, to the program that it
/// was set aside by.
#[inline(never)]
pub(in crate::datapath) fn come_back(skb: Skb, packet: &mut Packet) -> Verdict {
    let Some(own) = maps::stood_for(packet.parsed.key.destination) else {
        return dropped(skb, Vni::NONE, Reason::NotOurAddress);
    };
    packet.decided.to = *own;
    if !translate(skb, packet, DESTINATION, 0) {
        return dropped(skb, Vni::NONE, Reason::TranslationFailed);
    }
    packet.parsed.key.destination = *own;
    // A container's network is a part of its packets' keys.
    let vni = maps::network_of(packet.parsed.key.source).unwrap_or(Vni::NONE);
    packet::in_network(packet, vni);
    if matches!(packet.parsed.class, LATER | LOST) && packet::is_aside(packet) {
        return dropped(skb, vni, Reason::FragmentWithoutFirst);
    }
    packet::come_back(packet);
    let ifindex = u32::from_ne_bytes(noted(packet, DEVICE));
    if ifindex == 0 {
        return dropped(skb, vni, Reason::FragmentWithoutFirst);
    }
    let ([m0, m1, m2, m3], [m4, m5, ..]) = (noted(packet, MAC_START), noted(packet, MAC_END));
    let sender = EndpointKey { vni, address: packet.parsed.key.source };
    let from = maps::endpoint(&sender).map_or(Mac([0; 6]), |endpoint| endpoint.mac);
    let [f0, f1, f2, f3, f4, f5] = from.0;
    if skb.store(0, &[m0, m1, m2, m3, m4, m5, f0, f1, f2, f3, f4, f5]).is_err() {
        return dropped(skb, vni, Reason::Malformed);
    }
    skb.unmark();
    skb.receive_at(ifindex)
}

#[inline(never)]
fn note(packet: &mut Packet, what: [u8; 3], value: [u8; 4]) {
    key(packet, what);
    let _ = FRAGMENTS.insert(&packet.scratch.other, &value, 0);
}

#[inline(never)]
fn noted(packet: &mut Packet, what: [u8; 3]) -> [u8; 4] {
    key(packet, what);
    // SAFETY: the value is copied at once; should the entry be reused meanwhile, one fragment is
    // lost.
    unsafe { FRAGMENTS.get(&packet.scratch.other) }.copied().unwrap_or_default()
}

/// Makes the key of such an entry of the packet at hand. The kernel gives fragments of IPv6 another
/// identification.
#[inline(always)]
fn key(packet: &mut Packet, what: [u8; 3]) {
    packet.scratch.other = packet.parsed.key;
    packet.scratch.other.ports =
        if packet.parsed.v6 == 0 { packet.parsed.identification.to_ne_bytes() } else { [0; 4] };
    packet.scratch.other.vni = what;
}
