//! Fragments to the host's addresses that arrive before their first fragment.
//!
//! Only the first fragment has ports, so an earlier one does not show whether it is for a published
//! port. All fragments of such a packet go to the host's kernel, readdressed to the stand-in of the
//! host's address. The kernel reassembles them for connection tracking, and forwards them in order
//! to `mesh0`. There the `host` program restores them, and returns them to the program of the
//! device where they arrived.

use mesh_ebpf::ip;
use mesh_ebpf_types::{EndpointKey, Mac, Reason, Vni, host_published};

use super::packet::{self, LATER, LOST, Packet};
use super::translate::{DESTINATION, translate};
use crate::datapath::count::dropped;
use crate::datapath::maps::{self, FRAGMENTS};
use crate::datapath::route::Route;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// In place of the network in keys of `FRAGMENTS`: the value is the device where such a packet
/// arrived.
const DEVICE: [u8; 3] = [0xff; 3];
/// In place of the network, too: the values are the two parts of the frame's destination MAC.
const MAC_START: [u8; 3] = [0xff, 0xff, 0xfe];
const MAC_END: [u8; 3] = [0xff, 0xff, 0xfd];

/// Returns whether the current fragment, to one of the host's addresses, must go to the kernel.
/// Marks its packet if its first fragment is missing. Packets from other nodes are excluded: nodes
/// send each other fragments only for their tunnels.
#[inline(never)]
pub(super) fn needs_reassembly(skb: Skb, packet: &mut Packet) -> bool {
    if packet.parsed.class != LOST && packet.parsed.first_fragment == 0
        || !matches!(packet.parsed.key.protocol, ip::TCP | ip::UDP | ip::SCTP)
    {
        return false;
    }
    if packet.parsed.class != LOST {
        return packet::is_in_reassembly(packet) && has_route(skb, packet);
    }
    if maps::is_member(packet.parsed.key.source) {
        return false;
    }
    packet::note_reassembly(packet);
    has_route(skb, packet)
}

/// Returns whether the kernel forwards to the stand-in of the destination. The stand-in becomes
/// [`packet::Decided::to`].
#[inline(never)]
fn has_route(skb: Skb, packet: &mut Packet) -> bool {
    let Some(number @ 1..) = maps::number_of_host_address(packet.parsed.key.destination) else {
        return false;
    };
    packet.decided.to = host_published(number, packet.parsed.v6 == 0);
    let (source, to) = (packet.parsed.key.source.words(), packet.decided.to.words());
    let mut route =
        Route::between(packet.parsed.v6 != 0, skb.ifindex(), packet.parsed.key.protocol, source, to);
    skb.forwards(&mut route)
}

/// Readdresses a fragment to the stand-in of its destination ([`needs_reassembly`]), so that the
/// kernel forwards it.
#[inline(never)]
pub(super) fn send_to_reassembly(skb: Skb, packet: &mut Packet) -> Verdict {
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

/// Returns a fragment from the kernel to the program that sent it there. It has been read.
#[inline(never)]
pub(in crate::datapath) fn return_to_device(skb: Skb, packet: &mut Packet) -> Verdict {
    let Some(own) = maps::real_address(packet.parsed.key.destination) else {
        return dropped(skb, Vni::NONE, Reason::NotOurAddress);
    };
    packet.decided.to = *own;
    if !translate(skb, packet, DESTINATION, 0) {
        return dropped(skb, Vni::NONE, Reason::TranslationFailed);
    }
    packet.parsed.key.destination = *own;
    // The key of a container's packet includes its network.
    let vni = maps::network_of(packet.parsed.key.source).unwrap_or(Vni::NONE);
    packet::in_network(packet, vni);
    if matches!(packet.parsed.class, LATER | LOST) && packet::is_in_reassembly(packet) {
        return dropped(skb, vni, Reason::FragmentWithoutFirst);
    }
    packet::end_reassembly(packet);
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
    // SAFETY: the value is copied at once. If the entry is reused meanwhile, one fragment is lost.
    unsafe { FRAGMENTS.get(&packet.scratch.other) }.copied().unwrap_or_default()
}

/// Builds the key of such an entry from the current packet. IPv6 fragments leave the kernel with
/// another identification, so it is not part of the key.
#[inline(always)]
fn key(packet: &mut Packet, what: [u8; 3]) {
    packet.scratch.other = packet.parsed.key;
    packet.scratch.other.ports =
        if packet.parsed.v6 == 0 { packet.parsed.identification.to_ne_bytes() } else { [0; 4] };
    packet.scratch.other.vni = what;
}
