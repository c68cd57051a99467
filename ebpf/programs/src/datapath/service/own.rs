//! Which packets to a published port are not the service's: what answers a flow that the host, or
//! something behind its NAT, began from that port, and what a socket of the host is for.
//!
//! Such flows are noted in `HOST_FLOWS` as they leave ([`note`], by `egress`), and user space adds
//! those that the kernel tracks when it publishes a port. All of this is the slow path's; what the
//! fast path knows of a tuple ends when a flow is noted.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_ebpf::ip;
use mesh_ebpf::transport::{FIN, RST, SYN};
use mesh_ebpf_types::{Address, HostFlow};

use super::connection::opposite_key;
use super::packet::{ERROR, FLOW, LATER, Packet};
use crate::datapath::maps::{self, CONNECTIONS, HOST_FLOWS};
use crate::datapath::skb::Skb;

/// `TCP_TIME_WAIT`.
const TIME_WAIT: u32 = 6;
/// How long after its last packet a UDP flow of the host's is taken for one, in nanoseconds: longer
/// than the kernel's NAT does.
const DATAGRAMS: u64 = 180_000_000_000;
/// How long after a TCP flow's last packet nothing else may begin with its tuple.
const SEGMENTS: u64 = 60_000_000_000;

/// Whose a packet to a published port is.
pub(super) enum Whose {
    Service,
    Hosts,
    /// Answered, it would become a tunnel's packet.
    Nobodys,
}

/// Whose the packet at hand is, which was read and is for one of the host's addresses.
#[inline(always)]
pub(super) fn whose(skb: Skb, packet: &Packet) -> Whose {
    match find(skb, packet) {
        0 => Whose::Service,
        1 => Whose::Hosts,
        _ => Whose::Nobodys,
    }
}

#[inline(never)]
fn find(skb: Skb, packet: &Packet) -> u32 {
    if !is_published(packet) {
        return 0;
    }
    let [s0, s1, ..] = packet.parsed.key.ports;
    if packet.parsed.key.protocol == ip::UDP
        && maps::is_tunnel(&packet.parsed.key.source, u16::from_ne_bytes([s0, s1]))
    {
        return 2;
    }
    u32::from(is_noted(packet) || CONNECTIONS.get_ptr(&packet.parsed.key).is_none() && is_socket(skb, packet))
}

/// Whether the packet at hand has ports, and is for one that is published.
#[inline(always)]
fn is_published(packet: &Packet) -> bool {
    let [_, _, p0, p1] = packet.parsed.key.ports;
    matches!(packet.parsed.class, FLOW | ERROR)
        && maps::published(packet.parsed.key.destination, [p0, p1], packet.parsed.key.protocol).is_some()
}

/// Whether a socket of the host has the published port that the packet at hand is for.
#[inline(never)]
pub(super) fn has_socket(skb: Skb, packet: &Packet) -> bool {
    is_published(packet) && is_socket(skb, packet)
}

/// Whether the packet at hand answers a flow that was noted.
#[inline(never)]
fn is_noted(packet: &Packet) -> bool {
    let Some(flow) = HOST_FLOWS.get_ptr_mut(&packet.parsed.key) else { return false };
    // SAFETY: entries of preallocated maps always are memory of the map. This one may have become
    // another flow's by now: then one packet goes astray.
    let HostFlow { time, ended, .. } = unsafe { *flow };
    // SAFETY: takes nothing, returns the time.
    let age = unsafe { bpf_ktime_get_ns() }.saturating_sub(time);
    let over = match packet.parsed.key.protocol {
        _ if packet.parsed.class == ERROR => false,
        ip::UDP => age > DATAGRAMS,
        _ => packet.parsed.starts != 0 && (ended != 0 || age > SEGMENTS),
    };
    if over {
        let _ = HOST_FLOWS.remove(&packet.parsed.key);
    }
    !over
}

/// Whether a socket of the host is for the packet at hand.
#[inline(never)]
fn is_socket(skb: Skb, packet: &Packet) -> bool {
    let [s0, s1, d0, d1] = packet.parsed.key.ports;
    let ports = u32::from_ne_bytes([s0, s1, d0, d1]);
    if packet.parsed.v6 == 0 {
        let ([.., source], [.., destination]) =
            (packet.parsed.key.source.words(), packet.parsed.key.destination.words());
        return asks(skb, packet, &mut [source, destination, ports]);
    }
    let ([a, b, c, d], [e, f, g, h]) =
        (packet.parsed.key.source.words(), packet.parsed.key.destination.words());
    asks(skb, packet, &mut [a, b, c, d, e, f, g, h, ports])
}

#[inline(always)]
fn asks<const N: usize>(skb: Skb, packet: &Packet, tuple: &mut [u32; N]) -> bool {
    match packet.parsed.key.protocol {
        ip::UDP => skb.has_udp_socket(tuple),
        // A new connection may take the place of one that is over.
        ip::TCP => match skb.tcp_socket(tuple) {
            0 => false,
            state => state != TIME_WAIT || packet.parsed.starts == 0,
        },
        _ => false,
    }
}

/// Notes the flow of the packet at hand, which leaves and is not Mesh's own, if its port is
/// published.
#[inline(never)]
pub(in crate::datapath) fn note(packet: &mut Packet) {
    let [p0, p1, ..] = packet.parsed.key.ports;
    if maps::published(packet.parsed.key.source, [p0, p1], packet.parsed.key.protocol).is_none()
        || !maps::is_host_address(packet.parsed.key.source)
    {
        return;
    }
    opposite_key(packet, [0; 3]);
    let flags = if packet.parsed.key.protocol == ip::TCP { packet.parsed.tcp_flags } else { 0 };
    let ended = u32::from(flags & u32::from(FIN | RST) != 0);
    // SAFETY: takes nothing, returns the time.
    let time = unsafe { bpf_ktime_get_ns() };
    if let Some(flow) = HOST_FLOWS.get_ptr_mut(&packet.scratch.other) {
        // SAFETY: as in `is_noted`.
        let flow = unsafe { &mut *flow };
        flow.time = time;
        flow.ended = if flags & u32::from(SYN) == 0 { flow.ended | ended } else { 0 };
        return;
    }
    if flags & u32::from(RST) != 0 {
        return;
    }
    let _ = HOST_FLOWS.insert(&packet.scratch.other, &HostFlow { time, ended, padding: 0 }, 0);
    // What the fast path remembers of the tuple is the service's.
    maps::renew(&packet.scratch.other);
}

/// Whether the reply at hand, of a published port, would go to a tunnel's port of a node.
#[inline(never)]
pub(super) fn is_reply_to_tunnel(packet: &Packet) -> bool {
    let [_, _, d0, d1] = packet.parsed.key.ports;
    let port = match u16::from_ne_bytes(packet.decided.client_port) {
        0 => u16::from_ne_bytes([d0, d1]),
        own => own,
    };
    let client: Address = packet.parsed.key.destination;
    packet.parsed.key.protocol == ip::UDP
        && matches!(packet.parsed.class, FLOW | LATER)
        && maps::is_tunnel(&client, port)
}
