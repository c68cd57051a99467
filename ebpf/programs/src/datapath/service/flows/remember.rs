//! Caches the results of the slow path for a flow.
//!
//! [`begin`] records a packet's key before any lookup. The part that determines the packet's
//! destination then creates the cache entry.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use mesh_ebpf::transport::{FIN, RST, SYN};
use mesh_ebpf::vxlan::{Encapsulation, OUTER};
use mesh_ebpf::{flow, ip};
use mesh_ebpf_types::{Encapsulation as Mode, Mac, PUBLISHED_BIT, RETURNS_MAC, Reason, Vni};

use super::super::packet::FLOW;
use super::super::translate::SOURCE;
use super::flow::{
    Flow, FlowKey, INNER_IP, LEAVES, NEITHER, TO_ENDPOINT, TO_NODE, UNBALANCED, UNTIL, cache_entry,
};
use crate::datapath::maps;
use crate::datapath::service::packet::Packet;

/// How a packet is rewritten and counted.
#[derive(Clone, Copy)]
pub(in crate::datapath) struct Becomes {
    /// The end whose address becomes [`super::super::packet::Decided::to`]: `SOURCE`, `DESTINATION`
    /// or [`NEITHER`].
    pub(in crate::datapath) end: u32,
    /// New port of that end; 0 if it is unchanged.
    pub(in crate::datapath) port: [u8; 2],
    pub(in crate::datapath) counted: Vni,
    pub(in crate::datapath) reason: Reason,
}

/// Records the key of the current packet, which has just been read. `from`, `vni` and `mac` are as
/// in [`FlowKey`]; `hash` is 0 if unknown.
#[inline(always)]
pub(in crate::datapath) fn begin(packet: &mut Packet, from: u32, vni: u32, mac: [u32; 2], hash: u32) {
    let in_flow = match packet.parsed.key.protocol {
        ip::TCP => packet.parsed.tcp_flags & u32::from(SYN | FIN | RST) == 0,
        ip::UDP => true,
        _ => false,
    };
    if packet.parsed.class != FLOW
        || packet.parsed.v6 != 0
        || packet.parsed.first_fragment != 0
        || packet.parsed.upper != 34
        || !in_flow
    {
        return;
    }
    let [addresses @ .., ports] = tuple(packet);
    packet.scratch.memo.generation = maps::generation();
    packet.scratch.memo.epoch = maps::epoch(maps::flow_slot(addresses, ports));
    packet.scratch.memo.from = from;
    packet.scratch.memo.vni = vni;
    packet.scratch.memo.mac = mac;
    packet.scratch.memo.hash = hash;
}

/// As [`begin`], for a packet from an endpoint.
#[inline(always)]
pub(in crate::datapath) fn begin_sent(packet: &mut Packet, ifindex: u32) {
    let Mac([m0, m1, m2, m3, m4, m5]) = packet.parsed.source_mac;
    begin(packet, ifindex, 0, [u32::from_ne_bytes([m0, m1, m2, m3]), u16::from_ne_bytes([m4, m5]).into()], 0);
}

/// As [`begin`], for a packet from a node; `node` is 0 if unknown.
#[inline(always)]
pub(in crate::datapath) fn begin_received(packet: &mut Packet, node: u32, vni: Vni, mac: [u32; 2]) {
    let [_, v0, v1, v2] = vni.0;
    begin(packet, node, u32::from_ne_bytes([v0, v1, v2, 0]), mac, 0);
}

/// Returns whether the current packet's flow is to be cached.
#[inline(always)]
pub(in crate::datapath) fn is_cacheable(packet: &Packet) -> bool {
    packet.scratch.memo.from != 0
}

/// Caches that the flow goes to an endpoint on this node.
#[inline(always)]
pub(in crate::datapath) fn to_endpoint(packet: &mut Packet, becomes: Becomes, ifindex: u32, mac: Mac) {
    packet.scratch.memo.destination_mac = mac;
    packet.scratch.memo.source_mac = packet.parsed.source_mac;
    remember(packet, becomes, TO_ENDPOINT, ifindex);
}

/// Caches that the flow leaves through a device, as replies to an outside client.
///
/// [`note`] must have recorded how its packets are rewritten.
#[inline(always)]
pub(in crate::datapath) fn leaves(packet: &mut Packet, ifindex: u32) {
    packet.scratch.memo.destination_mac = packet.parsed.destination_mac;
    packet.scratch.memo.source_mac = packet.parsed.source_mac;
    set_outcome(packet, LEAVES, ifindex);
}

/// Caches that the flow goes to the node, and with the VNI, in [`super::super::packet::Packet`],
/// through a tunnel with this MTU in bytes. `mac` is the inner frame's destination, for a frame of
/// a network.
#[inline(always)]
pub(in crate::datapath) fn to_node(packet: &mut Packet, becomes: Becomes, mtu: u32, mac: Mac) {
    let Some(config) = maps::config() else { return };
    if config.encapsulation != Mode::Direct as u8 {
        return;
    }
    let of_network = packet.decided.tunnel_vni & PUBLISHED_BIT == 0;
    packet.scratch.memo.mtu = mtu;
    packet.scratch.memo.destination_mac = mac;
    packet.scratch.memo.source_mac = match (of_network, packet.decided.returns) {
        (true, _) => packet.parsed.source_mac,
        (false, 0) => Mac([0; 6]),
        (false, _) => RETURNS_MAC,
    };
    remember(packet, becomes, TO_NODE, config.underlay_ifindex);
}

/// Caches that the flow comes from a backend, but does not reply to a balanced flow.
#[inline(always)]
pub(in crate::datapath) fn unbalanced(packet: &mut Packet) {
    let reason = Reason::Received;
    remember(packet, Becomes { end: NEITHER, port: [0; 2], counted: Vni::NONE, reason }, UNBALANCED, 0);
}

#[inline(always)]
fn remember(packet: &mut Packet, becomes: Becomes, outcome: u32, ifindex: u32) {
    if packet.scratch.memo.from == 0 {
        return;
    }
    note(packet, becomes);
    set_outcome(packet, outcome, ifindex);
}

/// Records how the current packet is rewritten, for [`leaves`].
#[inline(always)]
pub(in crate::datapath) fn note(packet: &mut Packet, becomes: Becomes) {
    packet.scratch.memo.end = becomes.end;
    packet.scratch.memo.to_port = u16::from_ne_bytes(becomes.port).into();
    packet.scratch.memo.counted = becomes.counted;
    packet.scratch.memo.reason = becomes.reason as u32;
}

#[inline(always)]
fn set_outcome(packet: &mut Packet, outcome: u32, ifindex: u32) {
    packet.scratch.memo.outcome = outcome;
    packet.scratch.memo.to_ifindex = ifindex;
    commit(packet);
}

/// Returns the addresses and ports of the current packet.
#[inline(always)]
fn tuple(packet: &Packet) -> [u32; 3] {
    let ([.., source], [.., destination]) =
        (packet.parsed.key.source.words(), packet.parsed.key.destination.words());
    [source, destination, u32::from_ne_bytes(packet.parsed.key.ports)]
}

#[inline(never)]
fn commit(packet: &Packet) {
    let Some(config) = maps::config() else { return };
    let [source, destination, ports] = tuple(packet);
    let Some(flow) = cache_entry(maps::flow_slot([source, destination], ports)) else { return };
    // SAFETY: the entry belongs to this CPU, and programs do not interrupt each other on one CPU.
    let flow = unsafe { &mut *flow };
    let memo = &packet.scratch.memo;
    flow.generation = memo.generation;
    flow.epoch = memo.epoch;
    // SAFETY: takes no arguments, returns the time.
    flow.until = unsafe { bpf_jiffies64() } + UNTIL;
    flow.next_hop_until = 0;
    flow.macs_until = 0;
    flow.key = FlowKey {
        from: memo.from,
        vni: memo.vni,
        addresses: [source, destination],
        ports,
        protocol: packet.parsed.key.protocol.into(),
        mac: memo.mac,
    };
    flow.outcome = memo.outcome;
    flow.to_ifindex = memo.to_ifindex;
    flow.mtu = memo.mtu;
    flow.vni = memo.counted;
    flow.reason = memo.reason;
    flow.end = memo.end;
    change(packet, flow);
    let [.., local] = config.local.words();
    flow.outer = [local, packet.decided.node];
    flow.template.set_outer(Encapsulation {
        source: local.to_ne_bytes(),
        destination: packet.decided.node.to_ne_bytes(),
        port: config.vxlan_port,
        vni: Vni::new(packet.decided.tunnel_vni),
        hash: 0,
        traffic_class: 0,
        length: 0,
    });
    let frame = &mut flow.template.frame;
    frame[OUTER..OUTER + 6].copy_from_slice(&memo.destination_mac.0);
    frame[OUTER + 6..OUTER + 12].copy_from_slice(&memo.source_mac.0);
    frame[OUTER + 12] = 0x08;
    frame[OUTER + 13] = 0;
}

/// Computes the changes of the packet, and of its checksum.
#[inline(always)]
fn change(packet: &Packet, flow: &mut Flow) {
    let [mut source, mut destination, ports] = tuple(packet);
    flow.hops = packet.decided.hops;
    // The hop limit is the first byte of a 16-bit word (RFC 1624).
    flow.difference = flow.hops * u32::from(!u16::from_ne_bytes([1, 0]));
    let [s0, s1, d0, d1] = ports.to_ne_bytes();
    let mut halves = [u16::from_ne_bytes([s0, s1]).into(), u16::from_ne_bytes([d0, d1]).into()];
    if flow.end != NEITHER {
        let [.., to] = packet.decided.to.words();
        let (address, port) = if flow.end == SOURCE {
            (&mut source, &mut halves[0])
        } else {
            (&mut destination, &mut halves[1])
        };
        (flow.from, flow.to) = (*address, to);
        flow.from_port = *port;
        flow.to_port = if packet.scratch.memo.to_port == 0 { *port } else { packet.scratch.memo.to_port };
        (*address, *port) = (to, flow.to_port);
        let ([f0, f1, f2, f3], [t0, t1, t2, t3]) = ((!flow.from).to_ne_bytes(), to.to_ne_bytes());
        let half = |a, b| u32::from(u16::from_ne_bytes([a, b]));
        flow.difference += half(f0, f1) + half(f2, f3) + half(t0, t1) + half(t2, t3);
    }
    let ([s0, s1, ..], [d0, d1, ..]) = (halves[0].to_le_bytes(), halves[1].to_le_bytes());
    let ports = [s0, s1, d0, d1];
    flow.hash = match packet.scratch.memo.hash {
        0 => flow::hash([source, destination], u32::from_ne_bytes(ports), packet.parsed.key.protocol),
        known => known,
    };
    let frame = &mut flow.template.frame;
    frame[INNER_IP + 12..INNER_IP + 16].copy_from_slice(&source.to_ne_bytes());
    frame[INNER_IP + 16..INNER_IP + 20].copy_from_slice(&destination.to_ne_bytes());
    frame[INNER_IP + 20..INNER_IP + 24].copy_from_slice(&ports);
}
