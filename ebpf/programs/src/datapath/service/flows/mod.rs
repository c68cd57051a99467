//! Fast path for balanced IPv4 flows, like [`crate::datapath::sent`]. Caches how the slow path
//! processed a packet, for further packets with the same addresses and ports.
//!
//! An entry is valid until user space changes an entry of any map, until a program changes the
//! meaning of the flow's tuple ([`crate::datapath::maps::renew`]), and for [`UNTIL`] at most. Then
//! a packet takes the slow path, which looks up the flow in `CONNECTIONS`, so that its entries
//! there count as used. Packets that begin or end a TCP connection, and unusual packets, always
//! take the slow path.

mod early;
mod flow;
mod remember;

use aya_ebpf::helpers::generated::bpf_jiffies64;
use mesh_ebpf::ip;
use mesh_ebpf::transport::{FIN, RST, SYN};
use mesh_ebpf::vxlan::{OUTER, TEMPLATE};
use mesh_ebpf_types::{PUBLISHED_BIT, Reason, Vni};

pub(in crate::datapath) use early::early;
pub(super) use flow::NEITHER;
pub(in crate::datapath) use remember::{
    Becomes, begin, begin_received, begin_sent, is_cacheable, leaves, note, to_endpoint, to_node, unbalanced,
};

use flow::{
    FRAGMENT, Flow, FlowKey, INNER_IP, LEAVES, NEXT_HOP_UNTIL, PLAIN_IPV4, READ, READ_TUNNELLED, TO_NODE,
    TOS, UNBALANCED,
};

use crate::datapath::count::{count_number, dropped};
use crate::datapath::maps;
use crate::datapath::skb::{Refused, Skb};
use crate::datapath::start::Start;
use crate::datapath::verdict::Verdict;

/// Returns the cache entry for a packet's flow, if it is valid.
#[inline(always)]
fn known(key: &FlowKey) -> Option<&'static mut Flow> {
    let slot = maps::flow_slot(key.addresses, key.ports);
    // SAFETY: the entry belongs to this CPU, and programs do not interrupt each other on one CPU.
    let flow = unsafe { &mut *flow::cache_entry(slot)? };
    // SAFETY: takes no arguments, returns the time.
    let now = unsafe { bpf_jiffies64() };
    let holds = flow.key == *key
        && flow.generation == maps::generation()
        && flow.epoch == maps::epoch(slot)
        && flow.until > now;
    if holds { Some(flow) } else { None }
}

/// Returns whether a packet neither begins nor ends a connection, and is not unusual. Its frame
/// starts at `base`.
#[inline(always)]
fn is_ordinary<const N: usize>(frame: Start<N>, base: usize, length: u32, gso: bool) -> bool {
    let total = u32::from(u16::from_be(frame.half(base + 16)));
    let in_flow = match frame.byte(base + 23) {
        ip::TCP => frame.byte(base + 47) & (SYN | FIN | RST) == 0,
        ip::UDP => true,
        _ => false,
    };
    in_flow
        && frame.word(base + 12) & !TOS == PLAIN_IPV4
        && frame.half(base + 20) & FRAGMENT == 0
        && (gso || (total >= 28 && total + base as u32 + 14 <= length))
}

/// Returns whether a packet's hop limit is too low. Its frame starts at `base`.
#[inline(always)]
fn is_exhausted<const N: usize>(flow: &Flow, frame: Start<N>, base: usize) -> bool {
    u32::from(frame.byte(base + 22)) <= flow.hops
}

/// Returns the length of the IP packet; of a super-packet, that of its largest segment.
#[inline(always)]
fn packet_length(frame: Start<READ>, length: u32, payload: u32) -> u32 {
    match (payload, frame.byte(23)) {
        (0, _) => length - 14,
        (_, ip::TCP) => payload + 20 + u32::from(frame.byte(46) >> 4) * 4,
        _ => payload + 28,
    }
}

/// Handles a packet from an endpoint. Returns [`Verdict::SlowPath`] if the flow is not cached, and
/// [`Verdict::Unchanged`] if it is known not to belong to a service. The packet is unchanged in
/// both cases.
#[inline(never)]
pub(in crate::datapath) fn sent(skb: Skb) -> Verdict {
    from_endpoint(skb).unwrap_or(Verdict::SlowPath)
}

#[inline(always)]
fn from_endpoint(skb: Skb) -> Option<Verdict> {
    let frame = skb.start::<READ>()?;
    if skb.has_vlan() || frame.byte(0) & 1 != 0 {
        return None;
    }
    untunnelled(skb, frame, [frame.word(6), frame.half(10).into()])
}

/// Handles a packet to a published port that arrived at the data-path device. Returns
/// [`Verdict::SlowPath`], with the packet unchanged, if the flow is not cached.
#[inline(never)]
pub(in crate::datapath) fn arrived(skb: Skb) -> Verdict {
    from_outside(skb).unwrap_or(Verdict::SlowPath)
}

#[inline(always)]
fn from_outside(skb: Skb) -> Option<Verdict> {
    untunnelled(skb, skb.start::<READ>()?, [0; 2])
}

/// Handles a packet without outer headers; `mac` is as in [`FlowKey`].
#[inline(always)]
fn untunnelled(skb: Skb, frame: Start<READ>, mac: [u32; 2]) -> Option<Verdict> {
    let (length, payload) = (skb.length(), skb.gso_size());
    if !is_ordinary(frame, 0, length, payload != 0) {
        return None;
    }
    let flow = known(&FlowKey::of(frame, 0, skb.ifindex(), 0, mac))?;
    if is_exhausted(flow, frame, 0) {
        return None;
    }
    if flow.outcome == UNBALANCED {
        return Some(Verdict::Unchanged);
    }
    if flow.outcome == TO_NODE {
        return send(skb, flow, frame, length, payload);
    }
    fill(flow, frame, 0);
    Some(pass_on(skb, flow, length))
}

/// Handles a packet from another node, in outer headers as Mesh writes them. Returns as [`sent`]
/// does.
#[inline(never)]
pub(in crate::datapath) fn received(skb: Skb) -> Verdict {
    from_node(skb).unwrap_or(Verdict::SlowPath)
}

#[inline(always)]
fn from_node(skb: Skb) -> Option<Verdict> {
    let frame = skb.start::<READ_TUNNELLED>()?;
    let (length, gso) = (skb.length(), skb.is_gso());
    if !is_ordinary(frame, OUTER, length, gso) {
        return None;
    }
    let [v0, v1, v2, _] = frame.word(46).to_ne_bytes();
    let of_mesh = Vni([0, v0, v1, v2]).number() & PUBLISHED_BIT != 0;
    let mac = if of_mesh { [0; 2] } else { [frame.word(50), frame.half(54).into()] };
    let flow = known(&FlowKey::of(frame, OUTER, frame.word(26), frame.word(46), mac))?;
    if is_exhausted(flow, frame, OUTER) {
        return None;
    }
    if flow.outcome == UNBALANCED {
        return Some(Verdict::Unchanged);
    }
    // See `underlay`: packets that leave again must not keep the kernel's tunnel metadata, nor may
    // datagrams.
    if gso && (flow.outcome == LEAVES || frame.byte(OUTER + 23) != ip::TCP) {
        return None;
    }
    fill(flow, frame, OUTER);
    if skb.shrink_outer(false).is_err() {
        return None;
    }
    Some(pass_on(skb, flow, length - 50))
}

/// Copies the packet's own fields, up to its ports, into the template.
#[inline(always)]
fn fill<const N: usize>(flow: &mut Flow, frame: Start<N>, base: usize) {
    for offset in [14, 16, 18, 20, 22] {
        let half = frame.half(base + offset).to_ne_bytes();
        flow.template.frame[OUTER + offset..OUTER + offset + 2].copy_from_slice(&half);
    }
    let [hops, ..] = flow.hops.to_le_bytes();
    flow.template.frame[INNER_IP + 8] = flow.template.frame[INNER_IP + 8].wrapping_sub(hops);
    let sum = u32::from(!frame.half(base + 24)) + flow.difference;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    flow.template.frame[INNER_IP + 10..INNER_IP + 12].copy_from_slice(&sum.to_ne_bytes());
}

/// Updates the transport checksum of a packet whose frame is at `base`.
#[inline(always)]
fn update_checksum(skb: Skb, flow: &Flow, base: u32) -> Result<(), Refused> {
    let udp = flow.key.protocol == u32::from(ip::UDP);
    let checksum = base + if udp { 34 + 6 } else { 34 + 16 };
    skb.update_l4_checksum(checksum, flow.from, flow.to, 4, true, udp)?;
    if flow.from_port == flow.to_port {
        return Ok(());
    }
    skb.update_l4_checksum(checksum, flow.from_port, flow.to_port, 2, false, udp)
}

/// Sends a packet to another node. Returns `None`, with the packet unchanged, if it does not fit or
/// the kernel refuses.
#[inline(always)]
fn send(skb: Skb, flow: &mut Flow, frame: Start<READ>, length: u32, payload: u32) -> Option<Verdict> {
    if packet_length(frame, length, payload) > flow.mtu {
        return None;
    }
    let (segments, tos) = (skb.segments(), frame.byte(15));
    fill(flow, frame, 0);
    let hash = match skb.known_hash() {
        0 => flow.hash,
        known => known,
    };
    flow.template.fit(hash, tos, length);
    // SAFETY: takes no arguments, returns the time.
    let now = unsafe { bpf_jiffies64() };
    if flow.next_hop_until <= now {
        flow.next_hop = skb.next_hop(flow.to_ifindex, flow.outer[0], flow.outer[1]);
        flow.next_hop_until = now + NEXT_HOP_UNTIL;
    }
    if skb.grow_outer().is_err() {
        return None;
    }
    let frame = &flow.template.frame;
    let mended =
        if flow.end == NEITHER { Ok(()) } else { update_checksum(skb, flow, const { OUTER as u32 }) };
    let written = mended.and_then(|()| skb.store(0, frame));
    if written.is_err() {
        return Some(dropped(skb, flow.vni, Reason::EncapsulationFailed));
    }
    count_number(flow.vni, flow.reason, segments, length);
    Some(match flow.next_hop {
        0 => skb.route(flow.to_ifindex),
        next_hop => skb.route_via(flow.to_ifindex, next_hop),
    })
}

/// Delivers a packet, whose template is filled, to an endpoint or to an outside client.
#[inline(always)]
fn pass_on(skb: Skb, flow: &Flow, length: u32) -> Verdict {
    let written = if flow.end == NEITHER {
        Ok(())
    } else {
        let start = flow.template.frame.last_chunk::<{ TEMPLATE - OUTER }>();
        update_checksum(skb, flow, 0).and_then(|()| start.map_or(Err(Refused), |start| skb.store(0, start)))
    };
    if written.is_err() {
        return dropped(skb, flow.vni, Reason::TranslationFailed);
    }
    count_number(flow.vni, flow.reason, skb.segments(), length);
    if flow.outcome == LEAVES {
        return skb.route(flow.to_ifindex);
    }
    skb.deliver_as_is(flow.to_ifindex).unwrap_or_else(|_| dropped(skb, flow.vni, Reason::TranslationFailed))
}
