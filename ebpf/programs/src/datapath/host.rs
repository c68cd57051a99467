//! What the host sends to endpoints: its own packets, and replies to masqueraded ones.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{EndpointKey, Reason, Vni, is_host_published};

use super::count::{count, dropped};
use super::service::{published, run_published};
use super::skb::Skb;
use super::{DROP, PASS, Verdict, host_access, maps, receive};

/// [`deliver`]: to a published port.
const FROM_HOST: Verdict = 0x400;

#[inline(always)]
pub(super) fn host(skb: Skb) -> Verdict {
    let verdict = deliver(skb);
    if verdict != FROM_HOST {
        if verdict != DROP {
            host_access::note(skb);
        }
        return verdict;
    }
    match run_published(skb, published::from_host(skb)) {
        PASS => dropped(skb, Vni::NONE, Reason::NoBackend),
        verdict => verdict,
    }
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
        return FROM_HOST;
    }
    let Some(vni) = maps::network_of(headers.destination()) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    // Isolation holds through the host too, whatever its routes and its firewall do.
    if maps::network_of(headers.source()).is_some_and(|source| source != vni) {
        return dropped(skb, vni, Reason::Isolated);
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
