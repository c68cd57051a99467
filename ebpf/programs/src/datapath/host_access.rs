//! A network's policy on packets from endpoints to the hosts.
//!
//! Packets that answer one of the host's own flows always pass. So `HOST_CALLS` records which side
//! began a flow: [`note`] does so for packets from the host, this module for packets from
//! endpoints. For TCP, the host's sockets are looked up as well: a connection may be older than the
//! records, or idle for so long that its record is gone.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_ebpf::ip;
use mesh_ebpf::transport::{ACK, SYN};
use mesh_ebpf_types::{
    Address, BY_ENDPOINT, BY_HOST, BlockKind, HOST_ALL, HOST_DNS, HOST_LEG_IFINDEX, HostCall, METADATA,
    is_host_published,
};

use super::maps::{self, HOST_CALLS};
use super::route::{Fate, Route};
use super::service::connection::opposite_key;
use super::service::packet::{self, ERROR, FLOW, LATER, LOST, OTHER, Packet};
use super::skb::Skb;
use super::unresolved;

/// Result of [`destination_kind`]: not known to be a socket of a host.
const OUTSIDE: u32 = 0;
/// Result of [`destination_kind`]: the gateway address of the endpoint's own network.
const GATEWAY: u32 = 1;
/// Result of [`destination_kind`]: another address of this host.
const OWN: u32 = 2;
/// Result of [`destination_kind`]: an address of another node.
const NODE: u32 = 3;
/// As [`OUTSIDE`], and the kernel has to resolve the next hop.
const UNRESOLVED: u32 = 4;

/// How long a flow without connections lasts after its last packet, in nanoseconds: as long as the
/// kernel tracks it.
const DATAGRAMS: u64 = 180_000_000_000;
const DNS: [u8; 2] = 53_u16.to_be_bytes();
/// States of TCP sockets: `TCP_SYN_RECV`, `TCP_LISTEN`, `TCP_NEW_SYN_RECV`.
const ACCEPTING: [u32; 3] = [3, 10, 12];

/// The services that give a cloud's machines their credentials.
const METADATA_V4: [[u8; 4]; 2] = [[100, 100, 100, 200], [168, 63, 129, 16]];
const METADATA_V6: [Address; 2] = [
    Address([0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54]),
    Address([0xfd, 0x20, 0, 0xce, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54]),
];
/// The well-known prefix of NAT64 (RFC 6052): the last four bytes are an IPv4 address.
const NAT64: [u32; 3] = [u32::from_ne_bytes([0, 0x64, 0xff, 0x9b]), 0, 0];

/// What [`judge`] finds out about a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The network's policy refuses it.
    Refused = 0,
    /// It passes.
    Allowed = 1,
    /// Its next hop is not known, and the endpoint has sent too many such packets.
    TooMany = 2,
}

impl Judgement {
    #[inline(always)]
    const fn of(allowed: bool) -> Self {
        if allowed { Self::Allowed } else { Self::Refused }
    }
}

/// Whether the network's policy lets a packet to the host, or through it to the outside, pass.
#[inline(never)]
pub(super) fn judge(skb: Skb, packet: &mut Packet) -> Judgement {
    let Some(interface) = maps::interface(skb.ifindex()) else { return Judgement::Refused };
    let Some(network) = maps::network(interface.vni) else { return Judgement::Refused };
    packet.parsed.key.protocol = 0;
    if packet::read(skb, packet, u32::from_ne_bytes(interface.vni.0)) == OTHER {
        packet.parsed.key.ports = [0; 4];
    }
    decide(skb, packet, network.flags)
}

#[inline(never)]
fn decide(skb: Skb, packet: &mut Packet, flags: u32) -> Judgement {
    if is_metadata(packet) {
        return Judgement::of(flags & METADATA != 0 && !is_host_published(packet.parsed.destination));
    }
    let destination_kind = destination_kind(skb, packet);
    if destination_kind == UNRESOLVED {
        return if unresolved::is_allowed(skb.ifindex()) { Judgement::Allowed } else { Judgement::TooMany };
    }
    Judgement::of(
        destination_kind == OUTSIDE
            || is_to_tunnel(packet)
            || may_reach(skb, packet, destination_kind, flags),
    )
}

/// Whether a network with these flags lets the packet reach a host.
#[inline(always)]
fn may_reach(skb: Skb, packet: &mut Packet, destination_kind: u32, flags: u32) -> bool {
    if flags & HOST_ALL != 0 {
        if destination_kind != NODE && packet.parsed.class == FLOW {
            packet.scratch.other = packet.parsed.key;
            note_as(packet, BY_ENDPOINT);
        }
        return true;
    }
    // Later fragments have no ports, and are useless without the first.
    if matches!(packet.parsed.class, LATER | LOST) {
        return true;
    }
    if flags & HOST_DNS != 0 && is_harmless(packet, destination_kind) {
        return true;
    }
    if destination_kind == NODE { is_for_published(packet) } else { is_answer(skb, packet) }
}

/// Classifies the packet's destination.
#[inline(never)]
fn destination_kind(skb: Skb, packet: &Packet) -> u32 {
    let block = maps::block(&maps::BlockLookup::new(packet.vni(), packet.parsed.destination));
    if block.is_some_and(|block| block.kind == BlockKind::Gateway as u32) {
        return GATEWAY;
    }
    let loopback = packet.parsed.destination.to_v4().is_some_and(|[first, ..]| first == 127);
    if loopback || maps::is_host_address(packet.parsed.destination) {
        return OWN;
    }
    if maps::is_node(packet.parsed.destination) {
        return NODE;
    }
    // What begins nothing reaches no socket at an address that became the host's a moment ago.
    let begins_nothing =
        packet.parsed.class == FLOW && packet.parsed.key.protocol == ip::TCP && packet.parsed.starts == 0;
    if begins_nothing && unresolved::is_known(packet) {
        return OUTSIDE;
    }
    match fate(skb, packet) {
        Fate::Stays if begins_nothing => OUTSIDE,
        Fate::Stays => OWN,
        Fate::Unresolved => UNRESOLVED,
        Fate::Leaves => {
            unresolved::note_known(packet);
            OUTSIDE
        }
    }
}

/// What the kernel does with the packet. It keeps some for addresses that the programs do not know:
/// broadcast, new ones.
#[inline(never)]
fn fate(skb: Skb, packet: &Packet) -> Fate {
    let (source, destination) = (packet.parsed.source.words(), packet.parsed.destination.words());
    let protocol = packet.parsed.key.protocol;
    let mut route = Route::between(packet.parsed.v6 != 0, HOST_LEG_IFINDEX, protocol, source, destination);
    skb.fate(&mut route)
}

#[inline(never)]
fn is_metadata(packet: &Packet) -> bool {
    let [a, b, c, last] = packet.parsed.destination.words();
    if packet.parsed.v6 == 0 || [a, b, c] == NAT64 {
        let v4 = last.to_ne_bytes();
        return v4[0] == 169 && v4[1] == 254 || METADATA_V4.contains(&v4);
    }
    let [one, other] = METADATA_V6;
    packet.parsed.destination == one || packet.parsed.destination == other
}

/// Returns whether it is for a port that services publish on every node, or an error about such a
/// flow.
#[inline(never)]
fn is_for_published(packet: &Packet) -> bool {
    let [.., p0, p1] = packet.parsed.key.ports;
    packet.parsed.class == ERROR
        || packet.parsed.class == FLOW
            && maps::published(packet.parsed.key.destination, [p0, p1], packet.parsed.key.protocol).is_some()
}

/// Returns whether [`super::outside::to_host`] or [`super::egress`] drops it for another reason.
#[inline(never)]
fn is_to_tunnel(packet: &Packet) -> bool {
    let Some(config) = maps::config() else { return false };
    let [.., p0, p1] = packet.parsed.key.ports;
    packet.parsed.class == FLOW
        && packet.parsed.key.protocol == ip::UDP
        && ([p0, p1] == config.vxlan_port
            || maps::is_tunnel(&packet.parsed.key.destination, u16::from_ne_bytes([p0, p1])))
}

/// Returns whether it is a query to the name server, or an echo request.
#[inline(never)]
fn is_harmless(packet: &Packet, destination_kind: u32) -> bool {
    let [s0, s1, p0, p1] = packet.parsed.key.ports;
    packet.parsed.class == FLOW
        && match packet.parsed.key.protocol {
            ip::UDP | ip::TCP => destination_kind == GATEWAY && [p0, p1] == DNS,
            ip::ICMP | ip::ICMPV6 => is_echo_request([s0, s1], [p0, p1]),
            _ => false,
        }
}

/// Returns whether an echo is a request: its identifier is the source; in a reply it is the
/// destination.
#[inline(always)]
fn is_echo_request(source: [u8; 2], destination: [u8; 2]) -> bool {
    source != [0; 2] || destination == [0; 2]
}

/// Returns whether it answers a flow that the host began.
#[inline(never)]
fn is_answer(skb: Skb, packet: &Packet) -> bool {
    let tcp = packet.parsed.key.protocol == ip::TCP;
    if !matches!(packet.parsed.class, FLOW | ERROR) || tcp && packet.parsed.starts != 0 {
        return false;
    }
    // SAFETY: copied at once. If the entry is reused for another flow meanwhile, one packet is
    // misjudged.
    if let Some(HostCall { time, opener, .. }) = unsafe { HOST_CALLS.get(&packet.parsed.key) }.copied() {
        return opener == BY_HOST && (tcp || age(time) <= DATAGRAMS);
    }
    tcp && is_hosts_connection(skb, packet)
}

#[inline(always)]
fn age(time: u64) -> u64 {
    // SAFETY: takes no arguments, returns the time.
    unsafe { bpf_ktime_get_ns() }.saturating_sub(time)
}

/// Returns whether a socket of the host has the connection, at a port without a listener:
/// connections that endpoints began have the port of their listener.
#[inline(never)]
fn is_hosts_connection(skb: Skb, packet: &Packet) -> bool {
    let [s0, s1, d0, d1] = packet.parsed.key.ports;
    let (whole, listener) = (u32::from_ne_bytes([s0, s1, d0, d1]), u32::from_ne_bytes([0, 0, d0, d1]));
    let state = tcp_state(skb, packet, whole);
    state != 0 && !ACCEPTING.contains(&state) && tcp_state(skb, packet, listener) == 0
}

/// Returns the state of the host's socket for a TCP segment with these ports; 0 if there is none.
#[inline(never)]
fn tcp_state(skb: Skb, packet: &Packet, ports: u32) -> u32 {
    let ([a, b, c, source], [e, f, g, destination]) =
        (packet.parsed.key.source.words(), packet.parsed.key.destination.words());
    if packet.parsed.v6 == 0 {
        return skb.tcp_socket(&mut [source, destination, ports]);
    }
    skb.tcp_socket(&mut [a, b, c, source, e, f, g, destination, ports])
}

/// Records that the host began the flow of a packet from the host to an endpoint, if it did.
#[inline(always)]
pub(super) fn note(skb: Skb) {
    // SAFETY: no reference to it exists.
    if !is_segment(skb)
        && let Some(packet) = unsafe { Packet::take() }
    {
        note_call(skb, packet);
    }
}

/// Returns whether it is an IPv4 TCP segment that begins no connection: most packets to endpoints.
#[inline(always)]
fn is_segment(skb: Skb) -> bool {
    skb.start::<48>().is_some_and(|frame| {
        frame.half(12) == u16::from_ne_bytes([0x08, 0])
            && frame.byte(14) == 0x45
            && frame.byte(23) == ip::TCP
            && frame.byte(47) & (SYN | ACK) != SYN
    })
}

#[inline(never)]
fn note_call(skb: Skb, packet: &mut Packet) {
    if packet::read(skb, packet, 0) != FLOW {
        return;
    }
    let Some(vni) = maps::network_of(packet.parsed.destination) else { return };
    if !maps::is_host_address(packet.parsed.source) && maps::network_of(packet.parsed.source) != Some(vni) {
        return;
    }
    let [s0, s1, p0, p1] = packet.parsed.key.ports;
    let begins = match packet.parsed.key.protocol {
        ip::TCP => packet.parsed.starts != 0,
        // Exclude answers of the name server.
        ip::UDP => [s0, s1] != DNS,
        ip::ICMP | ip::ICMPV6 => is_echo_request([s0, s1], [p0, p1]),
        _ => true,
    };
    if begins {
        let [_, v0, v1, v2] = vni.0;
        opposite_key(packet, [v0, v1, v2]);
        note_as(packet, BY_HOST);
    }
}

/// Records the sender of the current packet as the opener of the flow
/// [`super::service::packet::Scratch::other`], unless the other side is. A TCP connection is opened
/// by a SYN.
#[inline(never)]
fn note_as(packet: &Packet, opener: u32) {
    let tcp = packet.parsed.key.protocol == ip::TCP;
    if tcp && packet.parsed.starts == 0 {
        return;
    }
    // SAFETY: takes no arguments, returns the time.
    let time = unsafe { bpf_ktime_get_ns() };
    if let Some(call) = HOST_CALLS.get_ptr_mut(&packet.scratch.other) {
        // SAFETY: entries of preallocated maps always remain memory of the map, as in
        // `own::is_noted`.
        let call = unsafe { &mut *call };
        if tcp || call.opener == opener || time.saturating_sub(call.time) > DATAGRAMS {
            call.time = time;
            call.opener = opener;
        }
        return;
    }
    let _ = HOST_CALLS.insert(&packet.scratch.other, &HostCall { time, opener, padding: 0 }, 0);
}
