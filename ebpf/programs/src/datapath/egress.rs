//! Packets that leave through a device of the host, after the host's own NAT.
//!
//! Mesh's own packets have a mark and are ignored. Other packets that would be mistaken for tunnel
//! packets are dropped. Flows of the host that begin at a published port are recorded: their
//! replies do not belong to the service.

use mesh_ebpf::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use mesh_ebpf::ip;
use mesh_ebpf_types::{Address, Reason, Vni};

use super::count::dropped;
use super::maps;
use super::service::packet::{self, FLOW, Packet};
use super::service::{bare, own};
use super::skb::Skb;
use super::start::Start;
use super::verdict::Verdict;

/// IPv4 without options, or IPv6, and ports.
const READ_V4: usize = 24;
const READ_V6: usize = 44;
/// The same after an Ethernet header.
const READ_FRAME_V4: usize = READ_V4 + 14;
const READ_FRAME_V6: usize = READ_V6 + 14;
const LATER_FRAGMENT: u16 = u16::from_ne_bytes([0x1f, 0xff]);

#[inline(always)]
pub(super) fn egress(skb: Skb) -> Verdict {
    if skb.is_marked() || skb.has_vlan() || !is_of_interest(skb) {
        return Verdict::Pass;
    }
    // SAFETY: no reference to it exists yet.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    if packet::read(skb, packet, 0) != FLOW {
        return Verdict::Pass;
    }
    decide(skb, packet)
}

/// As [`egress`], for a device whose packets begin with the IP header.
#[inline(always)]
pub(super) fn layer3(skb: Skb) -> Verdict {
    if skb.is_marked() || !is_packet_of_interest(skb) {
        return Verdict::Pass;
    }
    // SAFETY: no reference to it exists yet.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    if !bare::read(skb, packet) {
        return Verdict::Pass;
    }
    decide(skb, packet)
}

/// Returns whether the packet needs processing. A cheap check excludes most of the host's packets.
#[inline(never)]
fn is_of_interest(skb: Skb) -> bool {
    match skb.ethertype() {
        ETHERTYPE_IPV4 => skb.start::<READ_FRAME_V4>().is_none_or(|frame| is_of_interest_v4(frame, 14)),
        ETHERTYPE_IPV6 => skb.start::<READ_FRAME_V6>().is_none_or(|frame| is_of_interest_v6(frame, 14)),
        _ => false,
    }
}

/// As [`is_of_interest`], for a packet without an Ethernet header.
#[inline(never)]
fn is_packet_of_interest(skb: Skb) -> bool {
    match skb.ethertype() {
        ETHERTYPE_IPV4 => skb.start::<READ_V4>().is_none_or(|packet| is_of_interest_v4(packet, 0)),
        ETHERTYPE_IPV6 => skb.start::<READ_V6>().is_none_or(|packet| is_of_interest_v6(packet, 0)),
        _ => false,
    }
}

#[inline(always)]
fn is_of_interest_v4<const N: usize>(start: Start<N>, at: usize) -> bool {
    let protocol = start.byte(at + 9);
    if start.half(at + 6) & LATER_FRAGMENT != 0 || !has_ports(protocol) {
        return false;
    }
    let [source, destination] =
        [at + 12, at + 16].map(|offset| Address::from_v4(start.word(offset).to_ne_bytes()));
    start.byte(at) != 0x45 || is_interesting(&source, &destination, start.half(at + 20), protocol)
}

#[inline(always)]
fn is_of_interest_v6<const N: usize>(start: Start<N>, at: usize) -> bool {
    let protocol = start.byte(at + 6);
    if !has_ports(protocol) {
        // The header after an extension header has not been read.
        return protocol != ip::ICMPV6;
    }
    let address = |offset: usize| {
        let [a, b, c, d] = [0, 4, 8, 12].map(|step: usize| start.word(offset + step));
        Address::from_words([a, b, c, d])
    };
    is_interesting(&address(at + 8), &address(at + 24), start.half(at + 40), protocol)
}

#[inline(always)]
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, ip::TCP | ip::UDP | ip::SCTP)
}

#[inline(always)]
fn is_interesting(source: &Address, destination: &Address, port: u16, protocol: u8) -> bool {
    protocol == ip::UDP && maps::is_node(*destination)
        || maps::published(*source, port.to_ne_bytes(), protocol).is_some()
}

#[inline(never)]
fn decide(skb: Skb, packet: &mut Packet) -> Verdict {
    let [_, _, p0, p1] = packet.parsed.key.ports;
    if packet.parsed.key.protocol == ip::UDP
        && maps::is_tunnel(&packet.parsed.key.destination, u16::from_ne_bytes([p0, p1]))
        && is_foreign(skb, packet)
    {
        return dropped(skb, Vni::NONE, Reason::ForeignTunnel);
    }
    own::note(packet);
    Verdict::Pass
}

/// Returns whether a packet to a node's tunnel port, which Mesh did not send, could be mistaken for
/// a tunnel packet. Packets whose source is not a node's address are excluded: the receiver drops
/// them. A node behind this host is allowed, since the host routes for it.
#[inline(always)]
fn is_foreign(skb: Skb, packet: &Packet) -> bool {
    let (source, from) = (packet.parsed.key.source, skb.ingress_ifindex());
    if maps::is_host_address(source) {
        return true;
    }
    if !maps::is_member(source) {
        return false;
    }
    let ([.., here], [.., there]) = (packet.parsed.key.destination.words(), source.words());
    from == 0 || packet.parsed.v6 != 0 || skb.next_hop(from, here, there) == 0
}
