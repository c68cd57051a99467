//! All packets that a container sends.

use mesh_ebpf::headers::{Carries, Headers, V4, V6_REST};
use mesh_ebpf::{ip, ndp};
use mesh_ebpf_types::{
    ALLOW_FORWARDING, BlockKind, Config, INTERNAL, Interface, NextHop, Reason, Vni, next_hop,
};

use super::count::{count, dropped};
use super::host_access::Judgement;
use super::ipv6::upper_layer;
use super::sending::Sending;
use super::service::packet::Packet;
use super::skb::Skb;
use super::verdict::Verdict;
use super::{encapsulate, host_access, maps, neighbour, outside, sent, service, wireguard_kernel};

#[inline(always)]
pub(super) fn endpoint(skb: Skb) -> Verdict {
    match process(skb) {
        // SAFETY: the part that returned the verdict has released it.
        Verdict::KernelWireguard => {
            unsafe { Packet::take() }.map_or(Verdict::Drop, |packet| wireguard_kernel::send(skb, packet))
        }
        verdict => verdict,
    }
}

#[inline(always)]
fn process(skb: Skb) -> Verdict {
    let verdict = sent::send(skb, None);
    if verdict != Verdict::SlowPath {
        return verdict;
    }
    let mut balanced = service::flows::sent(skb);
    if !matches!(balanced, Verdict::SlowPath | Verdict::Unchanged) {
        return balanced;
    }
    // SAFETY: no reference to it exists yet.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    if balanced == Verdict::SlowPath {
        let verdict = service::outbound::balance(skb, packet);
        balanced = service::run(skb, packet, verdict);
    }
    let verdict = match balanced {
        Verdict::Pass => forwarded(skb, packet),
        // The packet comes back after reassembly. The host-access policy is applied then.
        Verdict::Reassemble => return outside::to_host(skb),
        Verdict::Unchanged | Verdict::Translated => match sent::send(skb, Some(packet)) {
            Verdict::SlowPath => forwarded(skb, packet),
            verdict => return verdict,
        },
        verdict => return verdict,
    };
    match verdict {
        Verdict::AnswerArp => neighbour::answer_arp(skb),
        Verdict::AnswerSolicitation => neighbour::answer_solicitation(skb),
        Verdict::ToHost => to_host(skb, packet),
        Verdict::InternalNetwork => service::refuse::unreachable_for(skb, packet, Reason::Internal as u32),
        verdict => verdict,
    }
}

#[inline(always)]
fn to_host(skb: Skb, packet: &mut Packet) -> Verdict {
    match host_access::judge(skb, packet) {
        Judgement::Allowed => outside::to_host(skb),
        Judgement::Refused => service::refuse::unreachable_for(skb, packet, Reason::HostAccess as u32),
        Judgement::TooMany => dropped(skb, packet.vni(), Reason::Unresolved),
    }
}

#[inline(never)]
fn forwarded(skb: Skb, packet: &mut Packet) -> Verdict {
    let generation = maps::generation();
    let (Some(interface), Some(config)) = (maps::interface(skb.ifindex()), maps::config()) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    match classify(skb, packet, generation, interface, config) {
        Ok(verdict) => verdict,
        Err(reason) => dropped(skb, interface.vni, reason),
    }
}

#[inline(always)]
fn classify(
    skb: Skb,
    packet: &mut Packet,
    generation: u64,
    interface: &Interface,
    config: &Config,
) -> Result<Verdict, Reason> {
    let network = maps::network(interface.vni).ok_or(Reason::UnknownNetwork)?;
    let mut headers = Headers::new();
    skb.read_at::<V4>(0, &mut headers.bytes, 0).map_err(|_| Reason::Malformed)?;
    if headers.source_mac() != interface.mac {
        return Err(Reason::SpoofedMac);
    }
    if skb.has_vlan() {
        return Err(Reason::UnsupportedProtocol);
    }
    let available = skb.length() - 14;
    match headers.carries() {
        Carries::V4 => headers.check_v4(available, skb.is_gso()).map_err(|_| Reason::Malformed)?,
        Carries::V6 => {
            skb.read_at::<V6_REST>(V4 as u32, &mut headers.bytes, V4).map_err(|_| Reason::Malformed)?;
            headers.check_v6(available, skb.is_gso()).map_err(|_| Reason::Malformed)?;
            if is_discovery(skb, &headers)? {
                return Ok(Verdict::AnswerSolicitation);
            }
        }
        Carries::Arp => return Ok(Verdict::AnswerArp),
        Carries::Other if headers.destination_mac().is_group() => return Err(Reason::Multicast),
        Carries::Other => return Err(Reason::UnsupportedProtocol),
    }
    if headers.destination_mac().is_group() || headers.is_multicast() {
        return Err(Reason::Multicast);
    }
    if interface.flags & ALLOW_FORWARDING == 0 && !headers.is_from(interface.ipv4, interface.ipv6) {
        return Err(Reason::SpoofedIp);
    }
    forward(packet, &Sending { skb, generation, vni: interface.vni, config, network, headers: &headers })
}

/// Returns whether an IPv6 packet is neighbour discovery, which is answered here or dropped:
/// containers must not influence each other's neighbour tables. Receivers accept only discovery
/// messages with hop limit 255; one behind extension headers is dropped.
#[inline(always)]
fn is_discovery(skb: Skb, headers: &Headers) -> Result<bool, Reason> {
    if headers.hop_limit() != 255 {
        return Ok(false);
    }
    let upper = upper_layer(skb, headers.next()).ok_or(Reason::Malformed)?;
    if upper.protocol != ip::ICMPV6 {
        return Ok(false);
    }
    let [icmp_type] = skb.load(upper.offset).map_err(|_| Reason::Malformed)?;
    if !ndp::is_discovery(icmp_type) {
        return Ok(false);
    }
    if headers.next() == ip::ICMPV6 { Ok(true) } else { Err(Reason::UnsupportedProtocol) }
}

#[inline(always)]
fn forward(packet: &mut Packet, sending: &Sending<'_>) -> Result<Verdict, Reason> {
    let Sending { skb, generation, vni, network, headers, .. } = *sending;
    let mut key = maps::BlockLookup::new(
        vni,
        match next_hop(headers.destination_mac(), network.prefix6) {
            NextHop::Address(address) => address,
            NextHop::Destination => headers.destination(),
        },
    );
    let mut endpoint = maps::endpoint(&key.data);
    let mut block = None;
    if endpoint.is_none() {
        block = maps::block(&key);
        let gateway = block.is_none_or(|block| block.kind == BlockKind::Gateway as u32);
        if gateway && key.data.address != headers.destination() {
            // The next hop is the gateway, or a MAC that names no neighbour: route by the
            // destination.
            key.data.address = headers.destination();
            endpoint = maps::endpoint(&key.data);
            block = maps::block(&key);
        }
    }
    if let Some(endpoint) = endpoint {
        sent::remember_local(skb, generation, endpoint.ifindex, sent::packed(endpoint.mac));
        count(skb, vni, Reason::ForwardedLocal);
        return skb.deliver(endpoint.ifindex, endpoint.mac).map_err(|_| Reason::Malformed);
    }
    if let Some(block) = block {
        if block.kind == BlockKind::Remote as u32 {
            return encapsulate::encapsulate(packet, sending, block);
        }
        if block.kind != BlockKind::Gateway as u32 {
            return Err(Reason::NoEndpoint);
        }
    } else {
        if network.flags & INTERNAL != 0 {
            return Ok(Verdict::InternalNetwork);
        }
        if headers.is_to_link_local() {
            return Err(Reason::NoEndpoint);
        }
        if maps::network_of(headers.destination()).is_some() {
            return Err(Reason::Isolated);
        }
    }
    Ok(Verdict::ToHost)
}
