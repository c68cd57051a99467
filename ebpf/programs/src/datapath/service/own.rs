//! Recognises packets to a published port that do not belong to the service: answers to a flow that
//! the host, or a machine behind its NAT, began from that port, and packets for a socket of the
//! host.
//!
//! The `egress` program records such flows in `HOST_FLOWS` as they leave ([`note`]). When user
//! space publishes a port, it adds the flows that conntrack knows. All of this is on the slow path;
//! recording a flow invalidates the cached flows of its tuple.

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
/// How long a UDP flow of the host lasts after its last packet, in nanoseconds: longer than in the
/// kernel's NAT.
const DATAGRAMS: u64 = 180_000_000_000;
/// How long after a TCP flow's last packet its tuple cannot be reused, in nanoseconds.
const SEGMENTS: u64 = 60_000_000_000;

/// The owner of a packet to a published port.
pub(super) enum Owner {
    Service,
    Host,
    /// None: its answer would become a tunnel packet.
    Nobody,
}

/// Returns the owner of the current packet, which has been read and is to one of the host's
/// addresses.
#[inline(always)]
pub(super) fn owner(skb: Skb, packet: &Packet) -> Owner {
    match find(skb, packet) {
        0 => Owner::Service,
        1 => Owner::Host,
        _ => Owner::Nobody,
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

/// Returns whether the current packet has ports, and is to a published one.
#[inline(always)]
fn is_published(packet: &Packet) -> bool {
    let [_, _, p0, p1] = packet.parsed.key.ports;
    matches!(packet.parsed.class, FLOW | ERROR)
        && maps::published(packet.parsed.key.destination, [p0, p1], packet.parsed.key.protocol).is_some()
}

/// Returns whether a socket of the host has the published port of the current packet.
#[inline(never)]
pub(super) fn has_socket(skb: Skb, packet: &Packet) -> bool {
    is_published(packet) && is_socket(skb, packet)
}

/// Returns whether the current packet answers a recorded flow.
#[inline(never)]
fn is_noted(packet: &Packet) -> bool {
    let Some(flow) = HOST_FLOWS.get_ptr_mut(&packet.parsed.key) else { return false };
    // SAFETY: entries of preallocated maps always remain memory of the map. If this one was reused
    // for another flow, one packet is misdelivered.
    let HostFlow { time, ended, .. } = unsafe { *flow };
    // SAFETY: takes no arguments, returns the time.
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

/// Returns whether the current packet is for a socket of the host.
#[inline(never)]
fn is_socket(skb: Skb, packet: &Packet) -> bool {
    let [s0, s1, d0, d1] = packet.parsed.key.ports;
    let ports = u32::from_ne_bytes([s0, s1, d0, d1]);
    if packet.parsed.v6 == 0 {
        let ([.., source], [.., destination]) =
            (packet.parsed.key.source.words(), packet.parsed.key.destination.words());
        return has_matching_socket(skb, packet, &mut [source, destination, ports]);
    }
    let ([a, b, c, d], [e, f, g, h]) =
        (packet.parsed.key.source.words(), packet.parsed.key.destination.words());
    has_matching_socket(skb, packet, &mut [a, b, c, d, e, f, g, h, ports])
}

#[inline(always)]
fn has_matching_socket<const N: usize>(skb: Skb, packet: &Packet, tuple: &mut [u32; N]) -> bool {
    match packet.parsed.key.protocol {
        ip::UDP => skb.has_udp_socket(tuple),
        // A new connection may replace one that is over.
        ip::TCP => match skb.tcp_socket(tuple) {
            0 => false,
            state => state != TIME_WAIT || packet.parsed.starts == 0,
        },
        _ => false,
    }
}

/// Records the flow of the current packet, which leaves and is not Mesh's own, if its source port
/// is published.
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
    // SAFETY: takes no arguments, returns the time.
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
    // The cached flow of the tuple belongs to the service.
    maps::renew(&packet.scratch.other);
}

/// Returns whether the current reply of a published port would go to a node's tunnel port.
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
