//! Frames that the WireGuard engine decrypted. Each was encrypted with the key of the node in its
//! source MAC.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{
    BlockKind, ENCRYPTED, FrameTag, Network, PUBLISHED_BIT, Reason, Vni, WIREGUARD_KERNEL_IFINDEX,
    derived_mac,
};

use super::count::{count, dropped};
use super::service::packet::Packet;
use super::service::{inbound, published, run_published, tunnel};
use super::skb::Skb;
use super::verdict::Verdict;
use super::{maps, receive, wireguard_kernel};

#[inline(always)]
pub(super) fn wireguard(skb: Skb) -> Verdict {
    if skb.ifindex() == WIREGUARD_KERNEL_IFINDEX {
        let verdict = wireguard_kernel::receive(skb);
        if verdict != Verdict::Pass {
            return verdict;
        }
    }
    // SAFETY: no reference to it exists yet.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    let verdict = decide(skb, packet);
    run_published(skb, packet, verdict)
}

#[inline(never)]
fn decide(skb: Skb, packet: &mut Packet) -> Verdict {
    let mut headers = Headers::new();
    if let Err(reason) = receive::read(skb, 0, &mut headers) {
        return dropped(skb, Vni::NONE, reason);
    }
    let Some(tag) = FrameTag::from_mac(headers.source_mac()) else {
        return dropped(skb, Vni::NONE, Reason::SpoofedMac);
    };
    let number = tag.vni.number();
    if number & PUBLISHED_BIT != 0 {
        return published::of_mesh(packet, number, tunnel::of_peer(tag.peer), true, headers.source_mac());
    }
    // Packets of unencrypted networks are not accepted here.
    let Some(network) = maps::network(tag.vni).filter(|network| network.flags & ENCRYPTED != 0) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    match deliver(skb, packet, tag, network, &headers) {
        Ok(verdict) => verdict,
        Err(reason) => dropped(skb, tag.vni, reason),
    }
}

#[inline(always)]
fn deliver(
    skb: Skb,
    packet: &mut Packet,
    tag: FrameTag,
    network: &Network,
    headers: &Headers,
) -> Result<Verdict, Reason> {
    if !may_send_from(tag, headers) {
        return Err(Reason::SpoofedPeer);
    }
    let endpoint = receive::receiver(headers, tag.vni, network)?;
    count(skb, tag.vni, Reason::Received);
    let (to, from) = (endpoint.mac.0, derived_mac(headers.source(), network.prefix6).0);
    let [t0, t1, t2, t3, t4, t5] = to;
    let [f0, f1, f2, f3, f4, f5] = from;
    skb.store(0, &[t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5])
        .map_err(|_| Reason::DecapsulationFailed)?;
    if maps::is_backend(tag.vni, headers.source()) {
        return Ok(inbound::from_backend(packet, tag.vni, endpoint.ifindex, 0, [0; 2]));
    }
    skb.deliver_as_is(endpoint.ifindex).map_err(|_| Reason::DecapsulationFailed)
}

/// Returns whether a node may send a packet with this source: one of its own addresses, or one
/// outside the network, from a container that routes.
#[inline(always)]
fn may_send_from(tag: FrameTag, headers: &Headers) -> bool {
    match maps::block(&maps::BlockLookup::new(tag.vni, headers.source())) {
        Some(block) => block.kind == BlockKind::Remote as u32 && block.peer == tag.peer && tag.peer != 0,
        None => maps::network_of(headers.source()).is_none(),
    }
}
