//! What an endpoint sends, on its way out.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{Config, Network, Vni};

use super::ipv6::upper_layer;
use super::segment;
use super::skb::Skb;

/// What one packet's way is decided from.
pub(super) struct Sending<'a> {
    pub(super) skb: Skb,
    /// Of the maps, before anything was looked up.
    pub(super) generation: u64,
    pub(super) vni: Vni,
    pub(super) config: &'a Config,
    pub(super) network: &'a Network,
    pub(super) headers: &'a Headers,
}

/// Length of the IP packet, as [`segment::length`] has it.
#[inline(always)]
pub(super) fn packet_length(sending: &Sending<'_>) -> u32 {
    let Sending { skb, headers, .. } = *sending;
    segment::length(skb, || {
        let after = (headers.next(), 14 + headers.header_length());
        if !headers.is_v6() {
            return after;
        }
        // The kernel made the super-packet itself: it has no header that cannot be followed.
        upper_layer(skb, headers.next()).map_or(after, |upper| (upper.protocol, upper.offset))
    })
}
