//! What the VXLAN device decapsulated.

use mesh_ebpf_types::{Address, ENCRYPTED, Reason, Vni};

use super::count::{count, dropped};
use super::receive::{Received, receiver};
use super::skb::Skb;
use super::{Verdict, maps};

#[inline(always)]
pub(super) fn overlay(skb: Skb) -> Verdict {
    let Ok((number, source)) = skb.tunnel() else { return dropped(skb, Vni::NONE, Reason::UnknownNetwork) };
    // The underlay program has looked already, unless the packet came in fragments or by another device.
    if !maps::is_member(Address::from_v4(source)) {
        return dropped(skb, Vni::NONE, Reason::NotMember);
    }
    let vni = Vni::new(number);
    let Some(network) = maps::network(vni) else { return dropped(skb, Vni::NONE, Reason::UnknownNetwork) };
    if network.flags & ENCRYPTED != 0 {
        return dropped(skb, vni, Reason::EncryptedInClear);
    }
    let Received { endpoint, .. } = match receiver(skb, 0, vni, network) {
        Ok(received) => received,
        Err(reason) => return dropped(skb, vni, reason),
    };
    count(skb, vni, Reason::Received);
    match skb.deliver(endpoint.ifindex, endpoint.mac) {
        Ok(verdict) => verdict,
        Err(_) => dropped(skb, vni, Reason::DecapsulationFailed),
    }
}
