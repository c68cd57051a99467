//! What the host sends to endpoints: its own packets, and replies to masqueraded ones.

use mesh_ebpf::ethernet::{self, Ethernet};
use mesh_ebpf::ip::Packet;
use mesh_ebpf_types::{EndpointKey, Reason, Vni};

use super::count::{count, dropped};
use super::skb::Skb;
use super::{Verdict, maps};

#[inline(always)]
pub(super) fn host(skb: Skb) -> Verdict {
    let packet = match parse(skb) {
        Ok(packet) => packet,
        Err(reason) => return dropped(skb, Vni::NONE, reason),
    };
    let Some(vni) = maps::network_of(packet.destination) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    // Isolation holds through the host too, whatever its routes and its firewall do.
    if maps::network_of(packet.source).is_some_and(|source| source != vni) {
        return dropped(skb, vni, Reason::Isolated);
    }
    let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address: packet.destination }) else {
        return dropped(skb, vni, Reason::NoEndpoint);
    };
    count(skb, vni, Reason::FromHost);
    match skb.deliver(endpoint.ifindex, endpoint.mac) {
        Ok(verdict) => verdict,
        Err(_) => dropped(skb, vni, Reason::Malformed),
    }
}

#[inline(always)]
fn parse(skb: Skb) -> Result<Packet, Reason> {
    let head: [u8; 34] = skb.load(0).map_err(|_| Reason::Malformed)?;
    let (header, rest) = head.split_first_chunk::<14>().ok_or(Reason::Malformed)?;
    let ethernet = Ethernet::parse(header);
    let available = skb.length() - 14;
    let packet = match ethernet.ethertype {
        ethernet::IPV4 => {
            let bytes = rest.first_chunk().ok_or(Reason::Malformed)?;
            Packet::parse_v4(bytes, available, skb.is_gso())
        }
        ethernet::IPV6 => {
            let bytes = skb.load(14).map_err(|_| Reason::Malformed)?;
            Packet::parse_v6(&bytes, available, skb.is_gso())
        }
        _ => return Err(Reason::UnsupportedProtocol),
    }
    .map_err(|_| Reason::Malformed)?;
    if packet.is_multicast() { Err(Reason::Multicast) } else { Ok(packet) }
}
