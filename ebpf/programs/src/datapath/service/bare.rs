//! Reads a packet that leaves through a device without Ethernet headers: only the fields that
//! identify its flow.

use mesh_ebpf::ip;

use super::packet::FLOW;
use super::packet::Packet;
use crate::datapath::skb::Skb;

/// Reads a packet that begins with its IP header. Returns `false` if it has no ports, or has IPv6
/// extension headers before them.
#[inline(never)]
pub(in crate::datapath) fn read(skb: Skb, packet: &mut Packet) -> bool {
    packet.scratch.memo.forget();
    packet.parsed.key.vni = [0; 3];
    packet.parsed.class = FLOW;
    packet.parsed.tcp_flags = 0;
    let Ok([first]) = skb.load::<1>(0) else { return false };
    let upper = match first >> 4 {
        4 => v4(skb, packet),
        6 => v6(skb, packet),
        _ => 0,
    };
    let Ok(ports) = skb.load::<4>(upper) else { return false };
    packet.parsed.key.ports = ports;
    if packet.parsed.key.protocol == ip::TCP {
        let Ok([flags]) = skb.load::<1>(upper + 13) else { return false };
        packet.parsed.tcp_flags = flags.into();
    }
    upper != 0 && matches!(packet.parsed.key.protocol, ip::TCP | ip::UDP | ip::SCTP)
}

/// Reads an IPv4 header, and returns the offset of the next header; 0 if there is none.
#[inline(always)]
fn v4(skb: Skb, packet: &mut Packet) -> u32 {
    let Ok(header) = skb.load::<20>(0) else { return 0 };
    let [first, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    packet.parsed.v6 = 0;
    packet.parsed.key.protocol = protocol;
    packet.parsed.key.source = mesh_ebpf_types::Address::from_v4([s0, s1, s2, s3]);
    packet.parsed.key.destination = mesh_ebpf_types::Address::from_v4([d0, d1, d2, d3]);
    let later = f0 & 0x1f != 0 || f1 != 0;
    if later { 0 } else { u32::from(first & 0x0f) * 4 }
}

/// As [`v4`], for IPv6.
#[inline(always)]
fn v6(skb: Skb, packet: &mut Packet) -> u32 {
    let Ok([protocol]) = skb.load::<1>(6) else { return 0 };
    packet.parsed.v6 = 1;
    packet.parsed.key.protocol = protocol;
    let read = skb
        .read(8, &mut packet.parsed.key.source.0)
        .and_then(|()| skb.read(24, &mut packet.parsed.key.destination.0));
    if read.is_ok() { 40 } else { 0 }
}
