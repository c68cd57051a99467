//! What the host sends to endpoints: its own packets, and replies to masqueraded ones.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{EndpointKey, Reason, Vni, derived_mac, is_host_published};

use super::count::{count, dropped};
use super::service::packet::Packet;
use super::service::{aside, packet, run_published};
use super::skb::Skb;
use super::verdict::Verdict;
use super::{host_access, maps, receive};

#[inline(always)]
pub(super) fn host(skb: Skb) -> Verdict {
    let verdict = deliver(skb);
    if !matches!(verdict, Verdict::FromHost | Verdict::Reassembled | Verdict::ReassembledForHost) {
        if verdict != Verdict::Drop {
            host_access::note(skb);
        }
        return verdict;
    }
    // SAFETY: no reference to it exists yet.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    // The verifier forgets what is kept there: so it looks at what follows once, not for each
    // verdict.
    packet.decided.number = verdict as u32;
    let class = packet::read(skb, packet, 0);
    if packet.decided.number == Verdict::Reassembled as u32 {
        return send_again(skb, packet);
    }
    if packet.decided.number == Verdict::ReassembledForHost as u32 {
        return aside::come_back(skb, packet);
    }
    if class == packet::OTHER {
        return dropped(skb, Vni::NONE, Reason::UnsupportedProtocol);
    }
    match run_published(skb, packet, Verdict::ToPublished) {
        Verdict::Pass => dropped(skb, Vni::NONE, Reason::NoBackend),
        verdict => verdict,
    }
}

/// Gives a fragment that went to the kernel to the sender's program once more. Of all that an
/// endpoint sends only those come here; where the kernel does not put them in order, they are
/// dropped.
#[inline(never)]
fn send_again(skb: Skb, packet: &mut Packet) -> Verdict {
    let vni = maps::network_of(packet.parsed.source).unwrap_or(Vni::NONE);
    let sender = EndpointKey { vni, address: packet.parsed.source };
    let (Some(endpoint), Some(network)) = (maps::endpoint(&sender), maps::network(vni)) else {
        return dropped(skb, vni, Reason::NoEndpoint);
    };
    packet::in_network(packet, vni);
    if packet.parsed.class == packet::LOST && packet::is_aside(packet) {
        return dropped(skb, vni, Reason::FragmentWithoutFirst);
    }
    packet::come_back(packet);
    let [t0, t1, t2, t3, t4, t5] = derived_mac(packet.parsed.destination, network.prefix6).0;
    let [f0, f1, f2, f3, f4, f5] = endpoint.mac.0;
    if skb.store(0, &[t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5]).is_err() {
        return dropped(skb, vni, Reason::Malformed);
    }
    skb.receive_at(endpoint.ifindex)
}

#[inline(never)]
fn deliver(skb: Skb) -> Verdict {
    let mut headers = Headers::new();
    if let Err(reason) = receive::read(skb, 0, &mut headers) {
        return dropped(skb, Vni::NONE, reason);
    }
    if headers.is_multicast() {
        return dropped(skb, Vni::NONE, Reason::Multicast);
    }
    if is_host_published(headers.destination()) {
        return if skb.is_marked() { Verdict::ReassembledForHost } else { Verdict::FromHost };
    }
    let Some(vni) = maps::network_of(headers.destination()) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    // Isolation holds through the host too, whatever its routes and its firewall do.
    if let Some(source) = maps::network_of(headers.source()) {
        if source != vni {
            return dropped(skb, vni, Reason::Isolated);
        }
        let sender = EndpointKey { vni, address: headers.source() };
        if maps::endpoint(&sender).is_some() {
            return Verdict::Reassembled;
        }
    }
    let Some(endpoint) = maps::endpoint(&EndpointKey { vni, address: headers.destination() }) else {
        return dropped(skb, vni, Reason::NoEndpoint);
    };
    count(skb, vni, Reason::FromHost);
    match skb.deliver(endpoint.ifindex, endpoint.mac) {
        Ok(verdict) => verdict,
        Err(_) => dropped(skb, vni, Reason::Malformed),
    }
}
