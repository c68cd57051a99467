//! Hop limits. Between a client and the backend of a published port, the cluster acts as one
//! router. Each packet loses one hop: at the client's node in the forward direction, at the
//! backend's node in the reverse one. So forwarding loops end.

use mesh_ebpf::ip;
use mesh_ebpf_types::is_host_published;

use super::packet::Packet;
use crate::datapath::maps;
use crate::datapath::skb::Skb;

/// Offset of the hop limit in a frame.
const V4: u32 = 14 + 8;
const V6: u32 = 14 + 7;

/// Returns whether the current packet to a published port is routed: yes unless this host sent it.
#[inline(always)]
pub(super) fn is_routed(packet: &Packet) -> bool {
    !is_host_published(packet.parsed.key.destination)
}

/// Returns whether the current reply is routed: yes unless this host is its client.
#[inline(always)]
pub(super) fn is_reply_routed(packet: &Packet) -> bool {
    !maps::is_host_address(packet.client())
}

/// Returns whether the hop limit of the current packet is used up.
#[inline(always)]
pub(super) fn are_exhausted(packet: &Packet) -> bool {
    packet.parsed.hop_limit <= 1
}

/// Decrements the hop limit of the current packet. Returns `false` if the kernel refuses.
#[inline(never)]
pub(super) fn lower(skb: Skb, packet: &mut Packet) -> bool {
    packet.decided.hops = 1;
    if packet.parsed.v6 != 0 {
        let [limit, ..] = packet.parsed.hop_limit.wrapping_sub(1).to_le_bytes();
        return skb.store_summed(V6, &[limit]).is_ok();
    }
    let Ok(word) = skb.load::<4>(V4) else { return false };
    // The header's checksum stays right, and so does a checksum that the network card computed.
    skb.store(V4, &ip::lower_ttl(word)).is_ok()
}
