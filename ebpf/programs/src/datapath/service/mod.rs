//! Services: VIPs and published ports.
//!
//! A packet is read once into [`packet::Packet`], a part of a map, since the stack has no room for
//! it. Then
//!
//! | module | does |
//! | --- | --- |
//! | [`outbound`] | what endpoints send to VIPs and published ports, and replies of backends |
//! | [`inbound`] | replies of backends that arrive for clients here |
//! | [`published`] | packets to published ports, on the receiving and on the backend's node |
//! | [`own`] | which packets to published ports are not the service's, but the host's own |
//! | [`flows`] | what passed lately: the fast path of all of these |
//! | [`aside`] | fragments to the host's addresses that the kernel puts in order |
//! | [`allowance`] | how many flows a network may have |
//! | [`hops`] | how far packets may still go |
//! | [`exit`] | by which device a reply leaves |
//! | [`connection`] | which backend a flow has, and whether it is over |
//! | [`replies`] | what replies become, and which are whose |
//!
//! A flow has two entries where both directions are translated. Each packet of the first direction
//! refreshes both, so neither outlives the other by much. Two CPUs that handle one flow at once may
//! each lose a note of the other (that it was answered, that it is over): the next packet writes it
//! again.
//!
//! The stack of all functions that are called within each other is 512 bytes, and there may be
//! eight of them. So the parts do not call each other: each returns the [`Verdict`] that names the
//! next one, and [`run`] calls it.

mod allowance;
pub(super) mod aside;
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

/// Calls the parts that a verdict names, one after the other, until one returns a verdict of the
/// kernel's. A part returns only names of later ones in the order of [`Verdict`], so one pass over
/// them suffices: the verifier looks at each part once, and no loop has to be bounded.
#[inline(always)]
pub(super) fn run(skb: Skb, packet: &mut Packet, mut verdict: Verdict) -> Verdict {
    if verdict == Verdict::ToVip {
        verdict = outbound::to_vip(skb, packet);
    }
    if verdict == Verdict::Reply {
        verdict = outbound::reply(skb, packet);
    }
    let aside = verdict == Verdict::SetAside;
    let verdict = run_published(skb, packet, verdict);
    if aside && verdict == Verdict::Pass {
        return Verdict::Reassemble;
    }
    if verdict == Verdict::ToItself { outbound::to_itself(skb, packet) } else { verdict }
}

/// As [`run_published`], for a verdict of the fast path, which mostly is the kernel's.
#[inline(always)]
pub(super) fn go_on(skb: Skb, verdict: Verdict) -> Verdict {
    if !verdict.is_part() {
        return verdict;
    }
    // SAFETY: the part that returned the verdict has released it.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    run_published(skb, packet, verdict)
}

/// As [`run`], where no endpoint sent the packet.
#[inline(always)]
pub(super) fn run_published(skb: Skb, packet: &mut Packet, mut verdict: Verdict) -> Verdict {
    if verdict == Verdict::Inbound {
        verdict = inbound::deliver(skb, packet);
    }
    if verdict == Verdict::SetAside {
        return aside::set_aside(skb, packet);
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
