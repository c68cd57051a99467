//! A frame from another node: for whom it is.

use mesh_ebpf::ethernet::{self, Ethernet};
use mesh_ebpf::ip::Packet;
use mesh_ebpf_types::{Endpoint, EndpointKey, Network, NextHop, Reason, Vni, next_hop};

use super::maps;
use super::skb::Skb;

/// A frame and its receiver.
pub(super) struct Received {
    pub(super) endpoint: &'static Endpoint,
    pub(super) ethernet: Ethernet,
    pub(super) packet: Packet,
}

/// Reads the frame that starts at `offset`, and finds the local endpoint that its destination MAC names.
#[inline(always)]
pub(super) fn receiver(skb: Skb, offset: u32, vni: Vni, network: &Network) -> Result<Received, Reason> {
    let head: [u8; 34] = skb.load(offset).map_err(|_| Reason::Malformed)?;
    let (header, rest) = head.split_first_chunk::<14>().ok_or(Reason::Malformed)?;
    let ethernet = Ethernet::parse(header);
    let available = skb.length() - offset - 14;
    let packet = match ethernet.ethertype {
        ethernet::IPV4 => {
            let bytes = rest.first_chunk().ok_or(Reason::Malformed)?;
            Packet::parse_v4(bytes, available, skb.is_gso())
        }
        ethernet::IPV6 => {
            let bytes = skb.load(offset + 14).map_err(|_| Reason::Malformed)?;
            Packet::parse_v6(&bytes, available, skb.is_gso())
        }
        _ => return Err(Reason::UnsupportedProtocol),
    }
    .map_err(|_| Reason::Malformed)?;
    let address = match next_hop(ethernet.destination, network.prefix6) {
        NextHop::Address(address) => address,
        NextHop::Destination => packet.destination,
    };
    let endpoint = maps::endpoint(&EndpointKey { vni, address }).ok_or(Reason::NoEndpoint)?;
    Ok(Received { endpoint, ethernet, packet })
}
