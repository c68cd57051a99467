//! What an endpoint sends, on its way out.

use mesh_ebpf::headers::Headers;
use mesh_ebpf::ip;
use mesh_ebpf_types::{Config, Network, Vni};

use super::ipv6::upper_layer;
use super::skb::{Refused, Skb};

/// The segment size of a super-packet whose segments differ: SCTP's, made of chunks that fit the
/// sender's device.
const GSO_BY_FRAGS: u32 = 0xffff;

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

/// Length of the IP packet; of the largest segment, if it is a super-packet; 0 if its segments
/// cannot be told.
#[inline(always)]
pub(super) fn packet_length(sending: &Sending<'_>) -> u32 {
    let Sending { skb, headers, .. } = *sending;
    let payload = skb.gso_size();
    if payload == 0 {
        return skb.length() - 14;
    }
    if payload == GSO_BY_FRAGS {
        return 0;
    }
    let (protocol, offset) = if headers.is_v6() {
        // The kernel made the super-packet itself: it has no header that cannot be followed.
        let Some(upper) = upper_layer(skb, headers.next()) else { return payload + headers.header_length() };
        (upper.protocol, upper.offset)
    } else {
        (headers.next(), 14 + headers.header_length())
    };
    let header = match protocol {
        ip::TCP => match skb.load::<1>(offset + 12) {
            Ok([data_offset]) => u32::from(data_offset >> 4) * 4,
            Err(Refused) => 20,
        },
        _ => 8,
    };
    payload + offset - 14 + header
}
