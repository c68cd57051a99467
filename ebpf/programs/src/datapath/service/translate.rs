//! Address and port translation.

use mesh_ebpf::ip;
use mesh_ebpf::transport::checksum_offset;
use mesh_ebpf_types::Address;

use super::packet::{ERROR, LATER, LOST, Packet, is_same};
use crate::datapath::skb::Skb;

/// Offset of the source address in an IPv4 header; the destination follows.
const V4_SOURCE: u32 = 12;
/// Offset of the source address in an IPv6 header; the destination follows.
const V6_SOURCE: u32 = 8;

/// The end of a packet that is translated.
pub(super) const SOURCE: u32 = 0;
pub(super) const DESTINATION: u32 = 1;

/// Replaces one end's address by [`super::packet::Decided::to`], and its port by `port` (two bytes
/// as they lie in memory; 0 keeps it). In an ICMP error, also the quoted packet's opposite end.
/// Returns `false` if the kernel refuses.
#[inline(never)]
pub(super) fn translate(skb: Skb, packet: &mut Packet, side: u32, port: u16) -> bool {
    if packet.parsed.class != ERROR {
        return address(skb, packet, side) && own_port(skb, packet, side, port);
    }
    let own_too = if side == SOURCE {
        is_same(&packet.parsed.key.source, &packet.parsed.source)
    } else {
        is_same(&packet.parsed.key.destination, &packet.parsed.destination)
    };
    quoted_address(skb, packet, side)
        && quoted_port(skb, packet, side, port)
        && (!own_too || address(skb, packet, side))
}

/// Replaces the client's port at this end by [`super::packet::Decided::client_port`] if that is not
/// 0. In an ICMP error, changes the quoted packet. Returns `false` if the kernel refuses.
#[inline(never)]
pub(super) fn translate_client(skb: Skb, packet: &Packet, side: u32) -> bool {
    let port = u16::from_ne_bytes(packet.decided.client_port);
    if packet.parsed.class == ERROR {
        quoted_port(skb, packet, side, port)
    } else {
        own_port(skb, packet, side, port)
    }
}

/// Replaces the IP header's address.
#[inline(never)]
fn address(skb: Skb, packet: &mut Packet, side: u32) -> bool {
    let protocol = match (packet.parsed.class, packet.parsed.v6) {
        (ERROR, 0) => ip::ICMP,
        (ERROR, _) => ip::ICMPV6,
        _ => packet.parsed.key.protocol,
    };
    let covered = if matches!(packet.parsed.class, LATER | LOST) { None } else { checksum_offset(protocol) };
    let udp = protocol == ip::UDP;
    let upper = packet.parsed.upper;
    let from = if side == SOURCE { &mut packet.parsed.source } else { &mut packet.parsed.destination };
    let to = &mut packet.decided.to;
    let changed = if packet.parsed.v6 == 0 {
        let (from, to) = (v4_word(from), v4_word(to));
        covered
            .map_or(Ok(()), |offset| skb.update_l4_checksum(upper + offset, from, to, 4, true, udp))
            .and_then(|()| skb.update_l3_checksum(14 + 10, from, to))
            .and_then(|()| skb.store(14 + V4_SOURCE + 4 * side, &to.to_ne_bytes()))
    } else {
        covered
            .map_or(Ok(()), |offset| {
                skb.update_l4_checksum_v6(upper + offset, &mut from.0, &mut to.0, true, udp)
            })
            .and_then(|()| skb.store(14 + V6_SOURCE + 16 * side, &to.0))
    };
    changed.is_ok()
}

#[inline(never)]
fn own_port(skb: Skb, packet: &Packet, side: u32, port: u16) -> bool {
    let old = old_port(packet, side);
    if port == 0 || port == old || packet.parsed.class == LATER {
        return true;
    }
    let protocol = packet.parsed.key.protocol;
    let upper = packet.parsed.upper;
    // SCTP's checksum (CRC32c) cannot be updated incrementally.
    let Some(offset) = checksum_offset(protocol) else { return false };
    skb.update_l4_checksum(upper + offset, old.into(), port.into(), 2, false, protocol == ip::UDP)
        .and_then(|()| skb.store(upper + 2 * side, &port.to_ne_bytes()))
        .is_ok()
}

/// Replaces the quoted packet's address: its source if the error's destination changes. The
/// checksum over it must be updated except for IPv4, where the quoted header's own checksum
/// compensates the change.
#[inline(never)]
fn quoted_address(skb: Skb, packet: &mut Packet, side: u32) -> bool {
    let upper = packet.parsed.upper;
    let quote = upper + 8;
    // The error goes to the sender of the quoted packet.
    let end = 1 - (side & 1);
    let from =
        if side == SOURCE { &mut packet.parsed.key.source } else { &mut packet.parsed.key.destination };
    let to = &mut packet.decided.to;
    let changed = if packet.parsed.v6 == 0 {
        let (from, to) = (v4_word(from), v4_word(to));
        skb.update_l3_checksum(quote + 10, from, to)
            .and_then(|()| skb.store(quote + V4_SOURCE + 4 * end, &to.to_ne_bytes()))
    } else {
        skb.update_l4_checksum_v6(upper + 2, &mut from.0, &mut to.0, false, false)
            .and_then(|()| skb.store(quote + V6_SOURCE + 16 * end, &to.0))
    };
    changed.is_ok()
}

#[inline(never)]
fn quoted_port(skb: Skb, packet: &Packet, side: u32, port: u16) -> bool {
    let old = old_port(packet, side);
    if port == 0 || port == old || !matches!(packet.parsed.key.protocol, ip::TCP | ip::UDP | ip::SCTP) {
        return true;
    }
    let (upper, quoted_upper) = (packet.parsed.upper, packet.parsed.quoted_upper);
    let end = 1 - (side & 1);
    skb.update_l4_checksum(upper + 2, old.into(), port.into(), 2, false, false)
        .and_then(|()| skb.store(quoted_upper + 2 * end, &port.to_ne_bytes()))
        .is_ok()
}

/// Returns the port of this end, as it lies in memory.
#[inline(always)]
fn old_port(packet: &Packet, side: u32) -> u16 {
    let [s0, s1, d0, d1] = packet.parsed.key.ports;
    u16::from_ne_bytes(if side == SOURCE { [s0, s1] } else { [d0, d1] })
}

#[inline(always)]
const fn v4_word(address: &Address) -> u32 {
    let [.., a, b, c, d] = address.0;
    u32::from_ne_bytes([a, b, c, d])
}
