//! Packets to and from the kernel's WireGuard. Its device carries IP packets, not frames: VXLAN
//! between tunnel addresses. The engine in user space puts the same into WireGuard.
//!
//! No route leads to that device, and it has no address. It gets only redirected packets, selects
//! the peer by the outer destination, and drops packets without a peer. It emits only packets whose
//! source is the tunnel address of the key (of the node's two) that encrypted them.

use mesh_ebpf::headers::{Buffer, ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TO_TRAFFIC_CLASS, traffic_class};
use mesh_ebpf::ip;
use mesh_ebpf::vxlan::{self, OUTER, Outer};
use mesh_ebpf_types::{
    FROM_EVEN_KEY, FROM_ODD_KEY, FrameTag, Reason, Vni, WIREGUARD_KERNEL_IFINDEX, tunnel_address,
    tunnel_sender, tunnel_source,
};

use super::count::dropped;
use super::service::packet::Packet;
use super::skb::{Refused, Skb};
use super::verdict::Verdict;
use super::{maps, sent};

/// Length of the IPv4, UDP and VXLAN headers: the outer headers without Ethernet.
const HEADERS: usize = OUTER - ETHERNET;
/// Length difference of IPv6 and IPv4 headers.
const V6_EXTRA: usize = 20;

/// Encapsulates a frame for a node ([`super::engine::pass_to_engine`]) in VXLAN between the tunnel
/// addresses, and passes it to the kernel's WireGuard.
#[inline(never)]
pub(super) fn send(skb: Skb, packet: &Packet) -> Verdict {
    let vni = Vni(packet.decided.tunnel_vni.to_ne_bytes());
    match wrapped(skb, vni, packet.decided.node as u16) {
        Ok(verdict) => verdict,
        Err(Refused) => dropped(skb, vni, Reason::EncapsulationFailed),
    }
}

#[inline(always)]
fn wrapped(skb: Skb, vni: Vni, peer: u16) -> Result<Verdict, Refused> {
    let config = maps::config().ok_or(Refused)?;
    let inner = skb.load::<TO_TRAFFIC_CLASS>(0)?;
    let [d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, e0, e1, ..] = inner;
    let (own, keys) = (config.wireguard_peer, config.flags & (FROM_EVEN_KEY | FROM_ODD_KEY));
    let outer = vxlan::Encapsulation {
        source: tunnel_source(own, keys & FROM_ODD_KEY != 0),
        destination: tunnel_address(peer),
        port: config.vxlan_port,
        vni,
        hash: sent::hash_of(skb),
        traffic_class: traffic_class(&inner),
        length: skb.length(),
    };
    if let Err(refused) = skb.grow_outer() {
        // The packet counts as encapsulated since it was received (sent by a container that
        // routes). Plain room suffices then, except for a super-packet, and for IPv6, which the
        // kernel would still treat as IPv6.
        if skb.is_gso() || u16::from_be_bytes([e0, e1]) == ETHERTYPE_IPV6 {
            return Err(refused);
        }
        skb.make_room(const { OUTER as i32 })?;
    }
    let mut frame = Buffer::<{ OUTER + ETHERNET }>::new();
    outer.write(&mut frame.bytes);
    // The inner source MAC is not sent.
    let inner = [d0, d1, d2, d3, d4, d5, 0, 0, 0, 0, 0, 0, e0, e1];
    frame.bytes[OUTER..].copy_from_slice(&inner);
    skb.store(0, &frame.bytes)?;
    if keys == FROM_EVEN_KEY | FROM_ODD_KEY {
        skb.send_copy(WIREGUARD_KERNEL_IFINDEX);
        vxlan::Encapsulation { source: tunnel_source(own, false), ..outer }.write(&mut frame.bytes);
        skb.store(0, &frame.bytes)?;
    }
    // The outer Ethernet header, which has no addresses, is removed on the way into the device.
    Ok(skb.send(WIREGUARD_KERNEL_IFINDEX))
}

/// Converts a packet from the kernel's WireGuard into a frame as the engine in user space emits it:
/// with network and node in its source MAC. Returns [`Verdict::Pass`], or drops the packet: no
/// other packets are accepted from this device.
#[inline(never)]
pub(super) fn receive(skb: Skb) -> Verdict {
    match unwrap(skb) {
        Ok(()) => Verdict::Pass,
        Err(reason) => dropped(skb, Vni::NONE, reason),
    }
}

#[inline(always)]
fn unwrap(skb: Skb) -> Result<(), Reason> {
    let config = maps::config().ok_or(Reason::NotConfigured)?;
    // Headers and inner Ethernet header, with room for an outer one.
    let mut buffer = Buffer::<{ OUTER + ETHERNET }>::new();
    skb.read_at::<{ HEADERS + ETHERNET }>(0, &mut buffer.bytes, ETHERNET).map_err(|_| Reason::Malformed)?;
    buffer.bytes[12] = 0x08;
    // WireGuard copied the underlay's congestion mark to this header.
    let congested = buffer.bytes[15] & 3 == 3;
    buffer.bytes[15] &= !3;
    let frame = buffer.bytes.first_chunk::<OUTER>().ok_or(Reason::Malformed)?;
    let (own, length) = (tunnel_address(config.wireguard_peer), skb.length() + ETHERNET as u32);
    let outer = Outer::parse(frame, own, config.vxlan_port, length, skb.is_gso())
        .filter(|outer| outer.plain)
        .ok_or(Reason::UnsupportedProtocol)?;
    let peer = tunnel_sender(outer.source).ok_or(Reason::SpoofedPeer)?;
    let refused = |_| Reason::DecapsulationFailed;
    let ethertype = u16::from_be_bytes(buffer.half(OUTER + 12));
    // The device does not aggregate packets by default. If aggregation was enabled, the kernel
    // would treat UDP packets as tunnel packets forever.
    let next = const { HEADERS + ETHERNET } as u32 + if ethertype == ETHERTYPE_IPV6 { 6 } else { 9 };
    if skb.is_gso() && skb.load::<1>(next).map_err(refused)? != [ip::TCP] {
        return Err(Reason::DecapsulationFailed);
    }
    let tag = FrameTag { vni: outer.vni, peer }.mac();
    match ethertype {
        ETHERTYPE_IPV4 => {
            skb.shrink_start::<{ HEADERS + ETHERNET }>().map_err(refused)?;
            skb.add_ethernet().map_err(refused)?;
        }
        ETHERTYPE_IPV6 => ipv6(skb).map_err(refused)?,
        _ => return Err(Reason::UnsupportedProtocol),
    }
    buffer.set_mac(OUTER + 6, tag);
    let ethernet = buffer.bytes.last_chunk::<ETHERNET>().ok_or(Reason::Malformed)?;
    skb.store(0, ethernet).map_err(refused)?;
    // Drop a packet whose sender does not support ECN, instead of marking it (RFC 6040, 4.2).
    if congested && !skb.mark_congestion() { Err(Reason::DecapsulationFailed) } else { Ok(()) }
}

/// Removes the headers before an IPv6 packet. Kernels before 6.3 would take the rest for IPv4
/// unless the protocol is changed, as for translation. So this removes the IPv6 header too, and
/// writes it again.
#[inline(always)]
fn ipv6(skb: Skb) -> Result<(), Refused> {
    let header = skb.load::<40>(const { (HEADERS + ETHERNET) as u32 })?;
    skb.shrink_start::<{ HEADERS + ETHERNET + V6_EXTRA }>()?;
    skb.become_ipv6()?;
    skb.add_ethernet()?;
    skb.store(const { ETHERNET as u32 }, &header)
}
