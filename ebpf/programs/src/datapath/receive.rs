//! Frames from another node, or from the host.

use mesh_ebpf::headers::{Carries, Headers, V4, V6_REST};
use mesh_ebpf_types::{Endpoint, EndpointKey, Network, NextHop, Reason, Vni, next_hop};

use super::maps;
use super::skb::Skb;

/// Reads the headers of the IP packet in the frame at `offset`.
#[inline(always)]
pub(super) fn read(skb: Skb, offset: u32, headers: &mut Headers) -> Result<(), Reason> {
    skb.read_at::<V4>(offset, &mut headers.bytes, 0).map_err(|_| Reason::Malformed)?;
    let available = skb.length() - offset - 14;
    match headers.carries() {
        Carries::V4 => headers.check_v4(available, skb.is_gso()),
        Carries::V6 => {
            skb.read_at::<V6_REST>(offset + V4 as u32, &mut headers.bytes, V4)
                .map_err(|_| Reason::Malformed)?;
            headers.check_v6(available, skb.is_gso())
        }
        Carries::Arp | Carries::Other => return Err(Reason::UnsupportedProtocol),
    }
    .map_err(|_| Reason::Malformed)
}

/// Returns the local endpoint that the frame's destination MAC names.
#[inline(always)]
pub(super) fn receiver(headers: &Headers, vni: Vni, network: &Network) -> Result<&'static Endpoint, Reason> {
    let address = match next_hop(headers.destination_mac(), network.prefix6) {
        NextHop::Address(address) => address,
        NextHop::Destination => headers.destination(),
    };
    maps::endpoint(&EndpointKey { vni, address }).ok_or(Reason::NoEndpoint)
}
