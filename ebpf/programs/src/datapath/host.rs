//! What the host sends to endpoints: its own packets, and replies to masqueraded ones.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{EndpointKey, Reason, Vni, derived_mac, is_host_published};

use super::count::{count, dropped};
use super::service::{TO_PUBLISHED, aside, packet, run_published};
use super::skb::Skb;
use super::{DROP, PASS, Verdict, host_access, maps, receive};

/// [`deliver`]: to a published port.
const FROM_HOST: Verdict = 0x400;
/// [`deliver`]: a fragment of an endpoint here, which the kernel has put in order.
const IN_ORDER: Verdict = 0x401;
/// [`deliver`]: likewise, to one of the host's addresses.
const CAME_BACK: Verdict = 0x402;

#[inline(always)]
pub(super) fn host(skb: Skb) -> Verdict {
    let verdict = deliver(skb);
    if !matches!(verdict, FROM_HOST | IN_ORDER | CAME_BACK) {
        if verdict != DROP {
            host_access::note(skb);
        }
        return verdict;
    }
    let Some(packet) = maps::packet() else { return PASS };
    // The verifier forgets what is kept there: so it looks at what follows once, not for each
    // verdict.
    packet.number = verdict.cast_unsigned();
    let class = packet::read(skb, 0);
    match packet.number.cast_signed() {
        IN_ORDER => return send_again(skb),
        CAME_BACK => return aside::come_back(skb),
        _ if class == packet::OTHER => return dropped(skb, Vni::NONE, Reason::UnsupportedProtocol),
        _ => {}
    }
    match run_published(skb, TO_PUBLISHED) {
        PASS => dropped(skb, Vni::NONE, Reason::NoBackend),
        verdict => verdict,
    }
}

/// Gives a fragment that went to the kernel to the sender's program once more. Of all that an
/// endpoint sends only those come here; where the kernel does not put them in order, they are
/// dropped.
#[inline(never)]
fn send_again(skb: Skb) -> Verdict {
    let Some(packet) = maps::packet() else { return PASS };
    let vni = maps::network_of(packet.source).unwrap_or(Vni::NONE);
    let sender = EndpointKey { vni, address: packet.source };
    let (Some(endpoint), Some(network)) = (maps::endpoint(&sender), maps::network(vni)) else {
        return dropped(skb, vni, Reason::NoEndpoint);
    };
    packet::in_network(vni);
    if packet.class == packet::LOST && packet::is_aside() {
        return dropped(skb, vni, Reason::FragmentWithoutFirst);
    }
    packet::come_back();
    let [t0, t1, t2, t3, t4, t5] = derived_mac(packet.destination, network.prefix6).0;
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
        return if skb.is_marked() { CAME_BACK } else { FROM_HOST };
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
            return IN_ORDER;
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
