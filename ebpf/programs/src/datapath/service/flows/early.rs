//! The fast path of packets of published ports that only pass through this node, taken where the
//! driver has them: nothing is allocated for them, and they leave by the device that they came by.
//!
//! What is known of a flow is the tc program's: the driver's program looks it up in the same entry
//! of `FLOWS` and never makes one. It runs for the same packets as `underlay`, before it, on the
//! same CPU, as a part of receiving them: a softirq, like all that runs tc programs, or code that
//! keeps softirqs off. So neither interrupts the other at an entry.
//!
//! Whatever `underlay` has to see is left to it, and is not changed before that is clear. What
//! passes here is on the wire as it would have been, and is counted alike.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use mesh_ebpf::ip;
use mesh_ebpf::vxlan::{OUTER, TEMPLATE};
use mesh_ebpf_types::{Config, Encapsulation, PUBLISHED_BIT, REPLY_BIT, Reason, Vni};

use super::flow::{Flow, FlowKey, LEAVES, NEITHER, NEXT_HOP_UNTIL, READ, READ_TUNNELLED, TO_NODE};
use super::{fill, is_ordinary, is_spent, known};
use crate::datapath::count::{count_early, count_number};
use crate::datapath::maps;
use crate::datapath::received::is_plain_vxlan;
use crate::datapath::start::Start;
use crate::datapath::xdp::{Action, DROP, PASS, SEND_BACK, Xdp};

/// Length of both MACs in a frame.
const MACS: usize = 12;

/// What arrived at the data-path device. [`PASS`], and nothing changed, where the flow is not
/// known.
#[inline(always)]
pub(in crate::datapath) fn early(xdp: Xdp) -> Action {
    passing(xdp).unwrap_or(PASS)
}

#[inline(always)]
fn passing(xdp: Xdp) -> Option<Action> {
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
    if flow.way != TO_NODE || flow.end != NEITHER || length - 14 > flow.mtu || is_spent(flow, frame, 0) {
        return None;
    }
    let (destination, tos) = (destination_mac(frame), frame.byte(15));
    let [here, there] = flow.outer;
    leads_back(xdp, flow, destination, ip::UDP, [here, there])?;
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

/// A backend's reply that leaves to its client here.
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
    if flow.way != LEAVES || flow.end != NEITHER {
        return None;
    }
    let (destination, protocol, addresses) =
        (destination_mac(frame), frame.byte(OUTER + 23), flow.key.addresses);
    leads_back(xdp, flow, destination, protocol, addresses)?;
    xdp.extend(const { -(OUTER as i32) }).ok()?;
    let Some(inner) = xdp.start::<MACS>() else {
        count_number(flow.vni, Reason::DecapsulationFailed as u32, 1, length);
        return Some(DROP);
    };
    inner.store(flow.template.frame.first_chunk::<MACS>()?);
    Some(counted(flow, length, length - 50))
}

/// `length` is the frame's as it came, `inner` without outer headers.
#[inline(always)]
fn counted(flow: &Flow, length: u32, inner: u32) -> Action {
    count_number(flow.vni, flow.reason, 1, inner);
    count_early(length);
    SEND_BACK
}

/// Whether the packet is for this host, and leaves by the device that it came by; its new MACs are
/// in the template then.
#[inline(always)]
fn leads_back(
    xdp: Xdp,
    flow: &mut Flow,
    destination: [u16; 3],
    protocol: u8,
    [from, to]: [u32; 2],
) -> Option<()> {
    if flow.to_ifindex != xdp.ifindex() {
        return None;
    }
    // SAFETY: takes nothing, returns the time.
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
