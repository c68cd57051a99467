//! The packet that an endpoint sends, during processing.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{Config, Network, Vni};

use super::ipv6::upper_layer;
use super::segment;
use super::skb::Skb;

/// The inputs of the decision for one packet.
pub(super) struct Sending<'a> {
    pub(super) skb: Skb,
    /// Generation of the maps, read before any lookup.
    pub(super) generation: u64,
    pub(super) vni: Vni,
    pub(super) config: &'a Config,
    pub(super) network: &'a Network,
    pub(super) headers: &'a Headers,
}

/// Returns the length of the IP packet; see [`segment::length`].
#[inline(always)]
pub(super) fn packet_length(sending: &Sending<'_>) -> u32 {
    let Sending { skb, headers, .. } = *sending;
    segment::length(skb, || {
        let after = (headers.next(), 14 + headers.header_length());
        if !headers.is_v6() {
            return after;
        }
        // The kernel made this super-packet, so its extension headers can all be followed.
        upper_layer(skb, headers.next()).map_or(after, |upper| (upper.protocol, upper.offset))
    })
}
