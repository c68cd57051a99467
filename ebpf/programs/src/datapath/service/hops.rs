//! Hop limits. Between a client and the backend of a published port the cluster is one router: each
//! packet loses one hop, at the client's node on the way there and at the backend's on the way
//! back. So whatever leads a packet round in a circle, its hop limit ends that.

use mesh_ebpf::ip;
use mesh_ebpf_types::is_host_published;

use super::packet::Packet;
use crate::datapath::maps;
use crate::datapath::skb::Skb;

/// Where the hop limit stands in a frame.
const V4: u32 = 14 + 8;
const V6: u32 = 14 + 7;

/// Whether the packet at hand, to a published port, is routed: it is if this host did not send it.
#[inline(always)]
pub(super) fn is_routed(packet: &Packet) -> bool {
    !is_host_published(packet.parsed.key.destination)
}

/// Whether the reply at hand is routed: it is if this host is not its client.
#[inline(always)]
pub(super) fn is_reply_routed(packet: &Packet) -> bool {
    !maps::is_host_address(packet.client())
}

/// Whether the packet at hand may not be routed any further.
#[inline(always)]
pub(super) fn are_spent(packet: &Packet) -> bool {
    packet.parsed.hop_limit <= 1
}

/// Takes one hop from the packet at hand. `false` where the kernel refuses.
#[inline(never)]
pub(super) fn lower(skb: Skb, packet: &mut Packet) -> bool {
    packet.decided.hops = 1;
    if packet.parsed.v6 != 0 {
        let [limit, ..] = packet.parsed.hop_limit.wrapping_sub(1).to_le_bytes();
        return skb.store_summed(V6, &[limit]).is_ok();
    }
    let Ok(word) = skb.load::<4>(V4) else { return false };
    // The header's sum stays as it is: so does what a network card summed up.
    skb.store(V4, &ip::lower_ttl(word)).is_ok()
}
