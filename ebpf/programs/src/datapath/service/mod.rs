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
//! | [`flows`] | what passed lately: the short way of all of these |
//! | [`aside`] | fragments to the host's addresses that the kernel puts in order |
//! | [`allowance`] | how many flows a network may have |
//! | [`hops`] | how far packets may still go |
//! | [`exit`] | by which device a reply leaves |
//! | [`connection`] | which backend a flow has, and whether it is over |
//! | [`replies`] | what replies become, and which are whose |
//!
//! A flow has two entries where both directions are translated: each is looked after with each
//! packet of the first direction, so neither outlives the other by much. Two CPUs that handle one
//! flow at once may lose a note of each other (that it was answered, that it is over): the next
//! packet makes it again.
//!
//! The stack of all functions that are called within each other is 512 bytes, and there may be
//! eight of them. So the parts do not call each other, but tell what comes next ([`run`]).

mod allowance;
pub(super) mod aside;
pub(super) mod bare;
pub(super) mod connection;
mod exit;
pub(super) mod flows;
mod hops;
pub(super) mod inbound;
pub(super) mod outbound;
pub(super) mod own;
pub(super) mod packet;
pub(super) mod published;
pub(super) mod refuse;
pub(super) mod replies;
mod translate;
pub(super) mod tunnel;

use mesh_ebpf_types::{Reason, Vni};

use super::count::dropped;
use super::skb::Skb;
use super::{PASS, TO_KERNEL_WIREGUARD, Verdict, wireguard_kernel};

/// Verdicts of parts that mean: this part comes next. Their order is that of [`run`].
pub(super) const TO_VIP: Verdict = 0x300;
pub(super) const TO_ITSELF: Verdict = 0x301;
pub(super) const TO_PUBLISHED: Verdict = 0x302;
pub(super) const TO_BACKEND: Verdict = 0x303;
pub(super) const TO_ENDPOINT: Verdict = 0x304;
pub(super) const REPLY: Verdict = 0x305;
pub(super) const PUBLISHED_REPLY: Verdict = 0x306;
pub(super) const REPLY_ARRIVED: Verdict = 0x307;
pub(super) const FROM_OWN: Verdict = 0x308;
pub(super) const TUNNEL: Verdict = 0x309;
pub(super) const LEAVE: Verdict = 0x30a;
pub(super) const REFUSE: Verdict = 0x30b;
pub(super) const RESET: Verdict = 0x30c;
pub(super) const INBOUND: Verdict = 0x30d;
pub(super) const TUNNELLED: Verdict = 0x30e;
pub(super) const TO_OUTSIDE: Verdict = 0x30f;
/// A fragment that the host's kernel is to put in order, see [`packet::set_aside`].
pub(super) const ASIDE: Verdict = 0x310;
/// Likewise, for one of the host's addresses, see [`aside`].
pub(super) const SET_ASIDE: Verdict = 0x311;
/// The first fragment of a packet to a published port, after a later one that the kernel did not
/// put in order.
pub(super) const LATE: Verdict = 0x312;
/// The hop limit does not allow that the packet is routed.
pub(super) const EXPIRED: Verdict = 0x313;

/// What follows a part's verdict.
#[inline(always)]
pub(super) fn run(skb: Skb, mut verdict: Verdict) -> Verdict {
    if verdict == TO_VIP {
        verdict = outbound::to_vip(skb);
    }
    if verdict == REPLY {
        verdict = outbound::reply(skb);
    }
    let aside = verdict == SET_ASIDE;
    let verdict = run_published(skb, verdict);
    if aside && verdict == PASS {
        return ASIDE;
    }
    if verdict == TO_ITSELF { outbound::to_itself(skb) } else { verdict }
}

/// As [`run`], where no endpoint sent the packet.
#[inline(always)]
pub(super) fn run_published(skb: Skb, mut verdict: Verdict) -> Verdict {
    if verdict == INBOUND {
        verdict = inbound::deliver(skb);
    }
    if verdict == SET_ASIDE {
        return aside::set_aside(skb);
    }
    if verdict == TUNNELLED {
        verdict = published::tunnelled(skb);
    }
    if verdict == TO_PUBLISHED {
        verdict = published::receive();
    }
    if verdict == LATE {
        return dropped(skb, Vni::NONE, Reason::FragmentWithoutFirst);
    }
    if verdict == TO_BACKEND {
        verdict = published::to_backend(skb);
    }
    if verdict == TO_ENDPOINT {
        verdict = published::to_endpoint(skb);
    }
    if verdict == PUBLISHED_REPLY {
        verdict = published::reply(skb);
    }
    if verdict == REPLY_ARRIVED {
        verdict = published::reply_arrived(skb);
    }
    if verdict == FROM_OWN {
        verdict = published::from_own(skb);
    }
    if verdict == TUNNEL {
        verdict = tunnel::send(skb);
    }
    if verdict == TO_KERNEL_WIREGUARD {
        verdict = wireguard_kernel::send(skb);
    }
    if verdict == LEAVE {
        verdict = published::leave(skb);
    }
    if verdict == TO_OUTSIDE {
        verdict = exit::to_outside(skb);
    }
    match verdict {
        REFUSE => refuse::refuse(skb, false),
        RESET => refuse::refuse(skb, true),
        EXPIRED => refuse::expired(skb),
        verdict => verdict,
    }
}
