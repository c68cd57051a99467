//! All that a container sends.

use mesh_ebpf::ethernet::{self, Ethernet};
use mesh_ebpf::ip::{self, Packet};
use mesh_ebpf::ndp;
use mesh_ebpf_types::{
    ALLOW_FORWARDING, Address, BlockKind, Config, EndpointKey, INTERNAL, Interface, Network, NextHop, Reason,
    Vni, next_hop,
};

use super::count::{count, dropped};
use super::skb::Skb;
use super::{Verdict, encapsulate, maps, neighbour};

/// What one packet's way is decided from.
pub(super) struct Sending<'a> {
    pub(super) skb: Skb,
    pub(super) vni: Vni,
    pub(super) config: &'a Config,
    pub(super) network: &'a Network,
    pub(super) ethernet: Ethernet,
    pub(super) packet: Packet,
}

#[inline(always)]
pub(super) fn endpoint(skb: Skb) -> Verdict {
    let (Some(interface), Some(config)) = (maps::interface(skb.ifindex()), maps::config()) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    let vni = interface.vni;
    match classify(skb, interface, config) {
        Ok(verdict) => verdict,
        Err(reason) => dropped(skb, vni, reason),
    }
}

#[inline(always)]
fn classify(skb: Skb, interface: &Interface, config: &Config) -> Result<Verdict, Reason> {
    let vni = interface.vni;
    let network = maps::network(vni).ok_or(Reason::UnknownNetwork)?;
    let head: [u8; 34] = skb.load(0).map_err(|_| Reason::Malformed)?;
    let (header, rest) = head.split_first_chunk::<14>().ok_or(Reason::Malformed)?;
    let ethernet = Ethernet::parse(header);
    if ethernet.source != interface.mac {
        return Err(Reason::SpoofedMac);
    }
    if skb.has_vlan() {
        return Err(Reason::UnsupportedProtocol);
    }
    let available = skb.length() - 14;
    let packet = match ethernet.ethertype {
        ethernet::IPV4 => {
            let bytes = rest.first_chunk().ok_or(Reason::Malformed)?;
            Packet::parse_v4(bytes, available, skb.is_gso()).map_err(|_| Reason::Malformed)?
        }
        ethernet::IPV6 => {
            let bytes = skb.load(14).map_err(|_| Reason::Malformed)?;
            let packet = Packet::parse_v6(&bytes, available, skb.is_gso()).map_err(|_| Reason::Malformed)?;
            if let Some(verdict) = discovery(skb, &packet)? {
                return Ok(verdict);
            }
            packet
        }
        ethernet::ARP => return Ok(neighbour::answer_arp(skb)),
        _ if ethernet.destination.is_group() => return Err(Reason::Multicast),
        _ => return Err(Reason::UnsupportedProtocol),
    };
    if ethernet.destination.is_group() || packet.is_multicast() {
        return Err(Reason::Multicast);
    }
    let own = if packet.v6 { interface.ipv6 } else { Address::from_v4(interface.ipv4) };
    if packet.source != own && interface.flags & ALLOW_FORWARDING == 0 {
        return Err(Reason::SpoofedIp);
    }
    forward(&Sending { skb, vni, config, network, ethernet, packet })
}

/// Neighbour discovery is answered here or dropped, extension headers or not: containers must not be told by others
/// where their neighbours are. Only messages with hop limit 255 are taken for discovery by a receiver.
#[inline(always)]
fn discovery(skb: Skb, packet: &Packet) -> Result<Option<Verdict>, Reason> {
    if packet.hop_limit != 255 {
        return Ok(None);
    }
    let upper = upper_layer(skb, packet.next).ok_or(Reason::Malformed)?;
    if upper.protocol != ip::ICMPV6 {
        return Ok(None);
    }
    let [icmp_type] = skb.load(upper.offset).map_err(|_| Reason::Malformed)?;
    if !ndp::is_discovery(icmp_type) {
        return Ok(None);
    }
    if packet.next != ip::ICMPV6 {
        return Err(Reason::UnsupportedProtocol);
    }
    Ok(Some(neighbour::answer_solicitation(skb)))
}

/// Where an IPv6 packet's upper layer is.
pub(super) struct UpperLayer {
    /// Its protocol. 59, "no next header", stands for what has none: a later fragment.
    pub(super) protocol: u8,
    /// Where its header starts in the frame.
    pub(super) offset: u32,
}

/// Finds the upper layer of an IPv6 packet. `None` if there are too many extension headers, or they are truncated.
#[inline(always)]
pub(super) fn upper_layer(skb: Skb, first: u8) -> Option<UpperLayer> {
    if matches!(first, ip::TCP | ip::UDP | ip::ICMPV6) {
        return Some(UpperLayer { protocol: first, offset: 54 });
    }
    match follow_extensions(skb, first) {
        0 => None,
        found => Some(UpperLayer { protocol: (found & 0xff) as u8, offset: found >> 8 }),
    }
}

/// Returns the offset of the upper layer's header, above 8 bits of its protocol; 0 if it cannot be found.
#[inline(never)]
fn follow_extensions(skb: Skb, first: u8) -> u32 {
    let (mut protocol, mut offset) = (first, 54);
    for _ in 0..=ip::MAX_EXTENSIONS {
        // An upper layer may have under four bytes; an extension header may not.
        let (bytes, whole) = skb.load(offset).map_or(([0; 4], false), |bytes| (bytes, true));
        match ip::step(protocol, bytes) {
            ip::Next::Upper => return offset << 8 | u32::from(protocol),
            _ if !whole => return 0,
            ip::Next::LaterFragment => return offset << 8 | 59,
            ip::Next::Header { next, skip } => {
                protocol = next;
                offset += skip;
            }
        }
    }
    0
}

/// Where a next hop is.
enum Place {
    Local { ifindex: u32, mac: mesh_ebpf_types::Mac },
    Remote(Address),
    Gateway,
    Nobody,
    Outside,
}

#[inline(always)]
fn locate(vni: Vni, address: Address) -> Place {
    let key = EndpointKey { vni, address };
    if let Some(endpoint) = maps::endpoint(&key) {
        return Place::Local { ifindex: endpoint.ifindex, mac: endpoint.mac };
    }
    let Some(block) = maps::block(&key) else { return Place::Outside };
    if block.kind == BlockKind::Remote as u32 {
        Place::Remote(block.tunnel)
    } else if block.kind == BlockKind::Gateway as u32 {
        Place::Gateway
    } else {
        Place::Nobody
    }
}

#[inline(always)]
fn forward(sending: &Sending<'_>) -> Result<Verdict, Reason> {
    let Sending { skb, vni, network, packet, .. } = *sending;
    let destination = packet.destination;
    let hop = match next_hop(sending.ethernet.destination, network.prefix6) {
        NextHop::Address(address) => address,
        NextHop::Destination => destination,
    };
    let mut place = locate(vni, hop);
    let gateway = matches!(place, Place::Gateway | Place::Outside);
    if gateway && hop != destination {
        // Through the gateway, or through an address that is nobody's neighbour: the destination itself decides.
        place = locate(vni, destination);
    }
    match place {
        Place::Local { ifindex, mac } => {
            count(skb, vni, Reason::ForwardedLocal);
            skb.deliver(ifindex, mac).map_err(|_| Reason::Malformed)
        }
        Place::Remote(tunnel) => encapsulate::encapsulate(sending, tunnel),
        Place::Nobody => Err(Reason::NoEndpoint),
        Place::Gateway => to_host(sending),
        Place::Outside => {
            if network.flags & INTERNAL != 0 {
                return Err(Reason::Internal);
            }
            if packet.v6 && Packet::is_link_local(destination) {
                return Err(Reason::NoEndpoint);
            }
            if maps::network_of(destination).is_some() {
                return Err(Reason::Isolated);
            }
            to_host(sending)
        }
    }
}

#[inline(always)]
fn to_host(sending: &Sending<'_>) -> Result<Verdict, Reason> {
    let Sending { skb, vni, config, .. } = *sending;
    if config.host_ifindex == 0 {
        return Err(Reason::NotConfigured);
    }
    skb.store(0, &config.host_mac.0).map_err(|_| Reason::Malformed)?;
    count(skb, vni, Reason::ToHost);
    Ok(skb.send(config.host_ifindex))
}
