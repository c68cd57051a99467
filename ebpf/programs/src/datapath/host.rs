//! Packets from the host to endpoints: its own, and replies to masqueraded ones.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{EndpointKey, Reason, Vni, derived_mac, is_host_published};

use super::count::{count, dropped};
use super::service::packet::Packet;
use super::service::{packet, reassembly, run_published};
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
    // The verifier loses track of a value in the packet's memory. So it verifies the following code
    // once, not for each verdict.
    packet.decided.number = verdict as u32;
    let class = packet::read(skb, packet, 0);
    if packet.decided.number == Verdict::Reassembled as u32 {
        return return_fragment(skb, packet);
    }
    if packet.decided.number == Verdict::ReassembledForHost as u32 {
        return reassembly::return_to_device(skb, packet);
    }
    if class == packet::OTHER {
        return dropped(skb, Vni::NONE, Reason::UnsupportedProtocol);
    }
    match run_published(skb, packet, Verdict::ToPublished) {
        Verdict::Pass => dropped(skb, Vni::NONE, Reason::NoBackend),
        verdict => verdict,
    }
}

/// Returns a reassembled fragment to the program of the device where its sender's packets arrive.
/// Only endpoints' fragments that were sent for reassembly come here. If the kernel does not
/// reassemble them, they are dropped.
#[inline(never)]
fn return_fragment(skb: Skb, packet: &mut Packet) -> Verdict {
    let vni = maps::network_of(packet.parsed.source).unwrap_or(Vni::NONE);
    let sender = EndpointKey { vni, address: packet.parsed.source };
    let (Some(endpoint), Some(network)) = (maps::endpoint(&sender), maps::network(vni)) else {
        return dropped(skb, vni, Reason::NoEndpoint);
    };
    packet::in_network(packet, vni);
    if packet.parsed.class == packet::LOST && packet::is_in_reassembly(packet) {
        return dropped(skb, vni, Reason::FragmentWithoutFirst);
    }
    packet::end_reassembly(packet);
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
    // Keep networks isolated through the host too, regardless of its routes and firewall.
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
