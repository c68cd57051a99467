//! Services: VIPs and published ports.
//!
//! A packet is read once into [`packet::Packet`], which is map memory, since the stack has no room
//! for it. Then these modules process it:
//!
//! | module | purpose |
//! | --- | --- |
//! | [`outbound`] | packets from endpoints to VIPs and published ports, and replies of backends |
//! | [`inbound`] | replies of backends that arrive for clients on this node |
//! | [`published`] | packets to published ports, on the receiving and on the backend's node |
//! | [`own`] | packets to published ports that belong to the host's own flows and sockets |
//! | [`flows`] | the fast path: cached flows |
//! | [`reassembly`] | fragments to the host's addresses that the kernel reassembles |
//! | [`allowance`] | the limit on a network's flows |
//! | [`hops`] | hop limits |
//! | [`exit`] | the device through which a reply leaves |
//! | [`connection`] | the backend of a flow, and whether the flow is over |
//! | [`replies`] | the translation of replies, and the flows to which they belong |
//!
//! A flow has two entries if both directions are translated. Each packet of the first direction
//! refreshes both, so they expire at almost the same time. If two CPUs process one flow at once,
//! one update of its state (answered, over) may be lost; the next packet repeats it.
//!
//! All nested functions share a stack of 512 bytes, and may be nested eight deep. So the parts do
//! not call each other: each returns the [`Verdict`] that names the next part, and [`run`] calls
//! it.

mod allowance;
pub(super) mod bare;
pub(super) mod connection;
mod exit;
pub(super) mod flows;
mod hops;
pub(super) mod inbound;
mod memo;
pub(super) mod outbound;
pub(super) mod own;
pub(super) mod packet;
pub(super) mod published;
pub(super) mod reassembly;
pub(super) mod refuse;
pub(super) mod replies;
mod translate;
pub(super) mod tunnel;

use mesh_ebpf_types::{Reason, Vni};

use self::packet::Packet;
use super::count::dropped;
use super::skb::Skb;
use super::verdict::Verdict;
use super::wireguard_kernel;

/// Calls the parts that a verdict names until one returns a verdict of the kernel. Each part
/// returns only names of later parts in the order of [`Verdict`], so one iteration over them
/// suffices. The verifier checks each part once, without a bounded loop.
#[inline(always)]
pub(super) fn run(skb: Skb, packet: &mut Packet, mut verdict: Verdict) -> Verdict {
    if verdict == Verdict::ToVip {
        verdict = outbound::to_vip(skb, packet);
    }
    if verdict == Verdict::Reply {
        verdict = outbound::reply(skb, packet);
    }
    let reassembly = verdict == Verdict::SendToReassembly;
    let verdict = run_published(skb, packet, verdict);
    if reassembly && verdict == Verdict::Pass {
        return Verdict::Reassemble;
    }
    if verdict == Verdict::ToItself { outbound::to_itself(skb, packet) } else { verdict }
}

/// As [`run_published`], for a verdict of the fast path, which is usually final.
#[inline(always)]
pub(super) fn run_after_fast_path(skb: Skb, verdict: Verdict) -> Verdict {
    if !verdict.is_part() {
        return verdict;
    }
    // SAFETY: the part that returned the verdict has released it.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    run_published(skb, packet, verdict)
}

/// As [`run`], for a packet that no endpoint sent.
#[inline(always)]
pub(super) fn run_published(skb: Skb, packet: &mut Packet, mut verdict: Verdict) -> Verdict {
    if verdict == Verdict::Inbound {
        verdict = inbound::deliver(skb, packet);
    }
    if verdict == Verdict::SendToReassembly {
        return reassembly::send_to_reassembly(skb, packet);
    }
    if verdict == Verdict::Tunnelled {
        verdict = published::tunnelled(skb, packet);
    }
    if verdict == Verdict::ToPublished {
        verdict = published::receive(packet);
    }
    if verdict == Verdict::LateFragment {
        return dropped(skb, Vni::NONE, Reason::FragmentWithoutFirst);
    }
    if verdict == Verdict::ToBackend {
        verdict = published::to_backend(skb, packet);
    }
    if verdict == Verdict::ToEndpoint {
        verdict = published::to_endpoint(skb, packet);
    }
    if verdict == Verdict::PublishedReply {
        verdict = published::reply(skb, packet);
    }
    if verdict == Verdict::ReplyArrived {
        verdict = published::reply_arrived(skb, packet);
    }
    if verdict == Verdict::FromOwnAddress {
        verdict = published::from_own(skb, packet);
    }
    if verdict == Verdict::Tunnel {
        verdict = tunnel::send(skb, packet);
    }
    if verdict == Verdict::KernelWireguard {
        verdict = wireguard_kernel::send(skb, packet);
    }
    if verdict == Verdict::Leave {
        verdict = published::leave(skb, packet);
    }
    if verdict == Verdict::ToOutside {
        verdict = exit::to_outside(skb, packet);
    }
    match verdict {
        Verdict::Refuse => refuse::refuse(skb, packet, false),
        Verdict::Reset => refuse::refuse(skb, packet, true),
        Verdict::HopLimitReached => refuse::expired(skb, packet),
        verdict => verdict,
    }
}
