//! Packets to published ports that arrive at the host's interfaces other than the data-path device.

use mesh_ebpf::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use mesh_ebpf::ip;
use mesh_ebpf_types::Address;

use super::service::packet::Packet;
use super::service::{flows, published, run_after_fast_path, run_published};
use super::skb::Skb;
use super::verdict::Verdict;
use super::{guard, maps};

/// IPv4 without options, and ports.
const READ: usize = 24;

/// Handles an interface whose packets have Ethernet headers.
#[inline(always)]
pub(super) fn ethernet(skb: Skb) -> Verdict {
    let is_ip = matches!(skb.ethertype(), ETHERTYPE_IPV4 | ETHERTYPE_IPV6);
    if skb.has_vlan() || !skb.is_for_this_host() || !is_ip {
        return guard::ethernet(skb);
    }
    let verdict = known(skb);
    if verdict != Verdict::SlowPath || guard::ethernet(skb) != Verdict::Pass {
        return if verdict == Verdict::SlowPath { Verdict::Drop } else { verdict };
    }
    arrived(skb)
}

/// Handles an interface whose packets begin with the IP header. Packets that may be for a published
/// port get an Ethernet header of zeroes, so that the other parts find the usual layout. The stack
/// accepts a packet that is passed on with that header: it starts at the network header in either
/// case.
#[inline(always)]
pub(super) fn layer3(skb: Skb) -> Verdict {
    let verdict = guard::layer3(skb);
    if verdict != Verdict::Pass || !is_for_host(skb) || is_irrelevant(skb) {
        return verdict;
    }
    let ethertype = skb.ethertype().to_be_bytes();
    if skb.add_ethernet().is_err() || skb.store(12, &ethertype).is_err() {
        return Verdict::Pass;
    }
    match known(skb) {
        Verdict::SlowPath => arrived(skb),
        verdict => verdict,
    }
}

/// Handles a packet on the slow path.
#[inline(always)]
fn arrived(skb: Skb) -> Verdict {
    // SAFETY: no reference to it exists yet.
    let Some(packet) = (unsafe { Packet::take() }) else { return Verdict::Pass };
    let verdict = published::arrived(skb, packet);
    run_published(skb, packet, verdict)
}

/// Handles a packet of a known flow; returns [`Verdict::SlowPath`] for all others.
#[inline(always)]
fn known(skb: Skb) -> Verdict {
    if skb.ethertype() != ETHERTYPE_IPV4 {
        return Verdict::SlowPath;
    }
    match flows::arrived(skb) {
        Verdict::SlowPath => Verdict::SlowPath,
        verdict => run_after_fast_path(skb, verdict),
    }
}

/// Returns whether an IP packet's destination is one of the host's addresses.
#[inline(never)]
fn is_for_host(skb: Skb) -> bool {
    let mut destination = Address::NONE;
    match skb.ethertype() {
        ETHERTYPE_IPV4 => match skb.load(16) {
            Ok(address) => destination = Address::from_v4(address),
            Err(_) => return false,
        },
        ETHERTYPE_IPV6 if skb.read(24, &mut destination.0).is_ok() => {}
        _ => return false,
    }
    maps::is_host_address(destination)
}

/// The cheap check of [`published::arrived`] for a packet that begins with its IP header.
#[inline(always)]
fn is_irrelevant(skb: Skb) -> bool {
    let Some(packet) = skb.start::<READ>() else { return false };
    let protocol = packet.byte(9);
    if packet.byte(0) != 0x45
        || packet.half(6) & published::FRAGMENT != 0
        || !matches!(protocol, ip::TCP | ip::UDP | ip::SCTP)
    {
        return false;
    }
    let destination = Address::from_v4(packet.word(16).to_ne_bytes());
    maps::published(destination, packet.half(22).to_ne_bytes(), protocol).is_none()
}
