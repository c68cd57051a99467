//! Fast path in the driver (XDP) for packets of published ports that only pass through this node.
//! No socket buffer is allocated, and they leave through the device where they arrived.
//!
//! Flows are cached by the tc program; the XDP program looks them up in the same entries of `FLOWS`
//! and never creates one. It runs before `underlay` for the same packets, on the same CPU, in
//! softirq context or with softirqs off, like all tc programs. So neither interrupts the other
//! while it uses an entry.
//!
//! Packets that `underlay` must see are passed on unchanged. A packet forwarded here looks the same
//! on the wire as one forwarded by `underlay`, and is counted in the same way.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use mesh_ebpf::ip;
use mesh_ebpf::vxlan::{OUTER, TEMPLATE};
use mesh_ebpf_types::{Config, Encapsulation, PUBLISHED_BIT, REPLY_BIT, Reason, Vni};

use super::flow::{Flow, FlowKey, LEAVES, NEITHER, NEXT_HOP_UNTIL, READ, READ_TUNNELLED, TO_NODE};
use super::{fill, is_exhausted, is_ordinary, known};
use crate::datapath::count::{count_early, count_number};
use crate::datapath::maps;
use crate::datapath::received::is_plain_vxlan;
use crate::datapath::start::Start;
use crate::datapath::xdp::{Action, DROP, PASS, SEND_BACK, Xdp};

/// Length of both MACs in a frame.
const MACS: usize = 12;

/// Handles a packet that arrived at the data-path device. Returns [`PASS`], with the packet
/// unchanged, if the flow is not cached.
#[inline(always)]
pub(in crate::datapath) fn early(xdp: Xdp) -> Action {
    forward(xdp).unwrap_or(PASS)
}

#[inline(always)]
fn forward(xdp: Xdp) -> Option<Action> {
    let config = maps::config()?;
    let frame = xdp.start::<READ>()?;
    if frame.byte(23) == ip::UDP && frame.half(36) == u16::from_ne_bytes(config.vxlan_port) {
        return reply(xdp, config);
    }
    let length = xdp.length();
    if !is_ordinary(frame, 0, length, false) {
        return None;
    }
    let flow = known(&FlowKey::of(frame, 0, xdp.ifindex(), 0, [0; 2]))?;
    if flow.outcome != TO_NODE
        || flow.end != NEITHER
        || length - 14 > flow.mtu
        || is_exhausted(flow, frame, 0)
    {
        return None;
    }
    let (destination, tos) = (destination_mac(frame), frame.byte(15));
    let [here, there] = flow.outer;
    leaves_where_it_arrived(xdp, flow, destination, ip::UDP, [here, there])?;
    fill(flow, frame, 0);
    flow.template.fit(flow.hash, tos, length);
    xdp.extend(const { OUTER as i32 }).ok()?;
    let Some(outer) = xdp.start::<TEMPLATE>() else {
        count_number(flow.vni, Reason::EncapsulationFailed as u32, 1, length);
        return Some(DROP);
    };
    outer.store(&flow.template.frame);
    Some(counted(flow, length, length))
}

/// Forwards a backend's reply whose client is reached through this node.
#[inline(always)]
fn reply(xdp: Xdp, config: &Config) -> Option<Action> {
    let frame = xdp.start::<READ_TUNNELLED>()?;
    let length = xdp.length();
    let [v0, v1, v2, _] = frame.word(46).to_ne_bytes();
    let of_replies = PUBLISHED_BIT | REPLY_BIT;
    if Vni([0, v0, v1, v2]).number() & of_replies != of_replies
        || config.encapsulation != Encapsulation::Direct as u8
        || !is_plain_vxlan(frame, config, length, false)
        || !is_ordinary(frame, OUTER, length, false)
    {
        return None;
    }
    let flow = known(&FlowKey::of(frame, OUTER, frame.word(26), frame.word(46), [0; 2]))?;
    if flow.outcome != LEAVES || flow.end != NEITHER {
        return None;
    }
    let (destination, protocol, addresses) =
        (destination_mac(frame), frame.byte(OUTER + 23), flow.key.addresses);
    leaves_where_it_arrived(xdp, flow, destination, protocol, addresses)?;
    xdp.extend(const { -(OUTER as i32) }).ok()?;
    let Some(inner) = xdp.start::<MACS>() else {
        count_number(flow.vni, Reason::DecapsulationFailed as u32, 1, length);
        return Some(DROP);
    };
    inner.store(flow.template.frame.first_chunk::<MACS>()?);
    Some(counted(flow, length, length - 50))
}

/// `length` is that of the received frame, `inner` that without outer headers.
#[inline(always)]
fn counted(flow: &Flow, length: u32, inner: u32) -> Action {
    count_number(flow.vni, flow.reason, 1, inner);
    count_early(length);
    SEND_BACK
}

/// Returns whether the packet is for this host and leaves through the device where it arrived. If
/// so, its new MACs are in the template.
#[inline(always)]
fn leaves_where_it_arrived(
    xdp: Xdp,
    flow: &mut Flow,
    destination: [u16; 3],
    protocol: u8,
    [from, to]: [u32; 2],
) -> Option<()> {
    if flow.to_ifindex != xdp.ifindex() {
        return None;
    }
    // SAFETY: takes no arguments, returns the time.
    let now = unsafe { bpf_jiffies64() };
    if flow.macs_until <= now {
        flow.template.frame[..MACS].copy_from_slice(&xdp.macs(protocol, from, to)?);
        flow.macs_until = now + NEXT_HOP_UNTIL;
    }
    let [.., s0, s1, s2, s3, s4, s5] = *flow.template.frame.first_chunk::<MACS>()?;
    let own = [[s0, s1], [s2, s3], [s4, s5]].map(u16::from_ne_bytes);
    if destination == own { Some(()) } else { None }
}

#[inline(always)]
fn destination_mac<const N: usize>(frame: Start<N>) -> [u16; 3] {
    [frame.half(0), frame.half(2), frame.half(4)]
}
