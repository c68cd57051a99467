//! Packets that the VXLAN device decapsulated.

use mesh_ebpf::headers::Headers;
use mesh_ebpf_types::{
    Address, ENCRYPTED, Mac, Network, PROBE_REPLY_VNI, PROBE_REQUEST_VNI, PUBLISHED_BIT, Reason, Vni,
};

use super::count::{count, dropped};
use super::encapsulate::send_by_device;
use super::service::packet::Packet;
use super::service::{inbound, published, run_published};
use super::skb::Skb;
use super::verdict::Verdict;
use super::{maps, receive};

#[inline(always)]
pub(super) fn overlay(skb: Skb) -> Verdict {
    // SAFETY: no reference to it exists yet.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    let verdict = decide(skb, packet);
    run_published(skb, packet, verdict)
}

#[inline(never)]
fn decide(skb: Skb, packet: &mut Packet) -> Verdict {
    let Ok((number, source)) = skb.tunnel() else { return dropped(skb, Vni::NONE, Reason::UnknownNetwork) };
    // The underlay program has checked this already, unless the packet was fragmented or arrived at
    // another device.
    if !maps::is_member(Address::from_v4(source)) {
        return dropped(skb, Vni::NONE, Reason::NotMember);
    }
    if Vni::new(number) == PROBE_REQUEST_VNI {
        return answer_probe(skb, source);
    }
    if number & PUBLISHED_BIT != 0 {
        let mac = skb.load(6).map_or(Mac([0; 6]), Mac);
        return published::of_mesh(packet, number, u32::from_ne_bytes(source), false, mac);
    }
    let vni = Vni::new(number);
    let Some(network) = maps::network(vni) else { return dropped(skb, Vni::NONE, Reason::UnknownNetwork) };
    if network.flags & ENCRYPTED != 0 {
        return dropped(skb, vni, Reason::EncryptedInClear);
    }
    match deliver(skb, packet, vni, network) {
        Ok(verdict) => verdict,
        Err(reason) => dropped(skb, vni, reason),
    }
}

/// Answers a probe that [`super::underlay`] left to the VXLAN device.
#[inline(always)]
fn answer_probe(skb: Skb, source: [u8; 4]) -> Verdict {
    let Some(config) = maps::config() else { return dropped(skb, Vni::NONE, Reason::NotConfigured) };
    let Some(local) = config.local.to_v4() else { return dropped(skb, Vni::NONE, Reason::NotConfigured) };
    count(skb, Vni::NONE, Reason::ProbeAnswered);
    let (local, node) = (u32::from_be_bytes(local), u32::from_be_bytes(source));
    match send_by_device(skb, PROBE_REPLY_VNI.number(), local, node, config.vxlan_ifindex) {
        Verdict::Pass => dropped(skb, Vni::NONE, Reason::EncapsulationFailed),
        verdict => verdict,
    }
}

#[inline(always)]
fn deliver(skb: Skb, packet: &mut Packet, vni: Vni, network: &Network) -> Result<Verdict, Reason> {
    let mut headers = Headers::new();
    receive::read(skb, 0, &mut headers)?;
    let endpoint = receive::receiver(&headers, vni, network)?;
    count(skb, vni, Reason::Received);
    if maps::is_backend(vni, headers.source()) {
        skb.store(0, &endpoint.mac.0).map_err(|_| Reason::DecapsulationFailed)?;
        return Ok(inbound::from_backend(packet, vni, endpoint.ifindex, 0, [0; 2]));
    }
    skb.deliver(endpoint.ifindex, endpoint.mac).map_err(|_| Reason::DecapsulationFailed)
}
