//! Answers to packets that cannot be delivered: resets and ICMP errors.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::PerCpuArray;
use mesh_ebpf::headers::Buffer;
use mesh_ebpf::rate::Rate;
use mesh_ebpf::refusal::{self, QUOTE_V4, QUOTE_V6, TCP_HEADER, Unreachable};
use mesh_ebpf::{checksum, ip};
use mesh_ebpf_types::{Reason, Vni};

use super::packet::{self, FLOW, Packet};
use crate::datapath::count::{count, dropped};
use crate::datapath::maps::{self, map};
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// Answers with a reset or "port unreachable", through the device where the packet arrived. `gone`
/// means that the flow had a backend.
#[inline(never)]
pub(super) fn refuse(skb: Skb, packet: &Packet, gone: bool) -> Verdict {
    let vni = packet.vni();
    let answered = packet.parsed.class == FLOW
        && packet.parsed.first_fragment == 0
        && match packet.parsed.key.protocol {
            ip::TCP => reset(skb, packet),
            ip::UDP if !gone => unreachable(skb, packet, Unreachable::Port as u32),
            _ => false,
        };
    if !answered {
        return dropped(skb, vni, Reason::NoBackend);
    }
    count(skb, vni, Reason::RefusalAnswered);
    skb.mark();
    skb.send(skb.ifindex())
}

/// "Time exceeded" per CPU: as many as the kernel sends in all (`icmp_msgs_burst`,
/// `icmp_msgs_per_sec`).
const EXPIRED: Rate = Rate { burst: 50, pause: 1_000_000 };

// Until when the answers of this CPU count.
map!(ANSWERED_EXPIRED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0));

/// Drops a packet that may not be routed any further, and tells its sender, unless there are too
/// many: the source address may be forged.
#[inline(never)]
pub(super) fn expired(skb: Skb, packet: &Packet) -> Verdict {
    let [v0, v1, v2] = packet.decided.reply_vni;
    let verdict = dropped(skb, Vni([0, v0, v1, v2]), Reason::HopLimit);
    let told = packet.parsed.class == FLOW
        && packet.parsed.first_fragment == 0
        && may_answer()
        && unreachable(skb, packet, Unreachable::HopLimit as u32);
    if !told {
        return verdict;
    }
    skb.mark();
    skb.send(skb.ifindex())
}

/// Whether one more packet may be answered with "time exceeded".
#[inline(never)]
fn may_answer() -> bool {
    let Some(until) = ANSWERED_EXPIRED.get_ptr_mut(0) else { return false };
    // SAFETY: the entry is this CPU's own, and programs do not interrupt each other on one CPU; the
    // helper takes nothing and returns the time.
    unsafe { EXPIRED.allows(&mut *until, bpf_ktime_get_ns()) }
}

/// Drops what an endpoint may not send: to the outside from an internal network
/// ([`Reason::Internal`]), or to a host ([`Reason::HostAccess`]). `why` is the reason, as its
/// number. Programs are told, so that they do not wait for a time-out: to the outside, as their own
/// kernel would without the default route; to a host, as a host would whose port is closed, also
/// of connections that were open while the port was published.
#[inline(never)]
pub(in crate::datapath) fn unreachable_for(skb: Skb, packet: &mut Packet, why: u32) -> Verdict {
    let Some(interface) = maps::interface(skb.ifindex()) else { return Verdict::Drop };
    let vni = u32::from_ne_bytes(interface.vni.0);
    let why = if why == Reason::Internal as u32 { Reason::Internal } else { Reason::HostAccess };
    let verdict = dropped(skb, interface.vni, why);
    if packet::read(skb, packet, vni) != FLOW {
        return verdict;
    }
    if packet.parsed.first_fragment != 0 {
        return verdict;
    }
    let to_host = why == Reason::HostAccess;
    let told = match packet.parsed.key.protocol {
        ip::TCP if to_host => reset(skb, packet),
        ip::TCP => packet.parsed.starts != 0 && unreachable(skb, packet, Unreachable::Network as u32),
        ip::UDP if to_host => unreachable(skb, packet, Unreachable::Port as u32),
        ip::UDP | ip::ICMP | ip::ICMPV6 => unreachable(skb, packet, Unreachable::Network as u32),
        _ => false,
    };
    if told { skb.send(skb.ifindex()) } else { verdict }
}

/// Turns a segment into the reset that answers it.
#[inline(never)]
fn reset(skb: Skb, packet: &Packet) -> bool {
    let Ok(segment) = skb.load::<TCP_HEADER>(packet.parsed.upper) else { return false };
    let header = u32::from(segment[12] >> 4) * 4;
    let Some(payload) = skb.length().checked_sub(packet.parsed.upper + header) else { return false };
    let Some(mut answer) = refusal::reset(segment, payload) else { return false };
    let length = const { TCP_HEADER as u32 };
    // If the sender left its checksum incomplete, keep it incomplete: a later stage completes it.
    let before = pseudo_sum(packet, skb.length() - packet.parsed.upper, ip::TCP);
    let partial = refusal::is_partial([segment[16], segment[17]], before);
    let pseudo = pseudo_sum(packet, length, ip::TCP);
    let sum = if partial { pseudo } else { checksum::add(pseudo, &answer) };
    let [c0, c1] = checksum::finish(sum);
    (answer[16], answer[17]) = if partial { (!c0, !c1) } else { (c0, c1) };
    let start = if packet.parsed.v6 == 0 { 34 } else { 54 };
    if skb.resize(start + length).is_err() || skb.store(start, &answer).is_err() {
        return false;
    }
    network_header(skb, packet, ip::TCP, length)
}

/// Turns a packet into the ICMP error that answers it. `why` is an [`Unreachable`], as its number.
#[inline(never)]
fn unreachable(skb: Skb, packet: &Packet, why: u32) -> bool {
    if packet.parsed.v6 == 0 { unreachable_v4(skb, packet, why) } else { unreachable_v6(skb, packet, why) }
}

#[inline(always)]
const fn reason(why: u32) -> Unreachable {
    if why == Unreachable::Network as u32 {
        Unreachable::Network
    } else if why == Unreachable::HopLimit as u32 {
        Unreachable::HopLimit
    } else {
        Unreachable::Port
    }
}

#[inline(never)]
fn unreachable_v4(skb: Skb, packet: &Packet, why: u32) -> bool {
    let mut quote = Buffer::<QUOTE_V4>::new();
    if skb.read(14, &mut quote.bytes).is_err() {
        return false;
    }
    let icmp = refusal::unreachable(reason(why), false, checksum::add(0, &quote.bytes), 0);
    let length = const { 8 + QUOTE_V4 as u32 };
    skb.resize(34 + length).is_ok()
        && skb.store(42, &quote.bytes).is_ok()
        && skb.store(34, &icmp).is_ok()
        && network_header(skb, packet, ip::ICMP, length)
}

#[inline(never)]
fn unreachable_v6(skb: Skb, packet: &Packet, why: u32) -> bool {
    let mut quote = Buffer::<QUOTE_V6>::new();
    if skb.read(14, &mut quote.bytes).is_err() {
        return false;
    }
    let length = const { 8 + QUOTE_V6 as u32 };
    let pseudo = pseudo_sum(packet, length, ip::ICMPV6);
    let icmp = refusal::unreachable(reason(why), true, checksum::add(0, &quote.bytes), pseudo);
    skb.resize(54 + length).is_ok()
        && skb.store(62, &quote.bytes).is_ok()
        && skb.store(54, &icmp).is_ok()
        && network_header(skb, packet, ip::ICMPV6, length)
}

/// Returns the sum of a pseudo header with the packet's addresses.
#[inline(never)]
fn pseudo_sum(packet: &Packet, length: u32, protocol: u8) -> u32 {
    let (mut source, mut destination) = (packet.parsed.source, packet.parsed.destination);
    if packet.parsed.v6 == 0 {
        let [.., s] = source.words();
        let [.., d] = destination.words();
        let sum = refusal::pseudo_header(&s.to_ne_bytes(), protocol, length);
        return checksum::add(sum, &d.to_ne_bytes());
    }
    let sum =
        checksum::from_native(Skb::sum(&mut source.0)) + checksum::from_native(Skb::sum(&mut destination.0));
    sum + length + u32::from(protocol)
}

/// Writes the Ethernet and IP headers of an answer of this length in bytes.
#[inline(never)]
fn network_header(skb: Skb, packet: &Packet, protocol: u8, length: u32) -> bool {
    let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) =
        (packet.parsed.source_mac.0, packet.parsed.destination_mac.0);
    if skb.store(0, &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]).is_err() {
        return false;
    }
    if packet.parsed.v6 == 0 {
        let [.., s] = packet.parsed.source.words();
        let [.., d] = packet.parsed.destination.words();
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (s.to_ne_bytes(), d.to_ne_bytes());
        return skb.store(14, &refusal::ipv4([s0, s1, s2, s3, d0, d1, d2, d3], protocol, length)).is_ok();
    }
    let [l0, l1] = (length as u16).to_be_bytes();
    skb.store(14, &[0x60, 0, 0, 0, l0, l1, protocol, 64]).is_ok()
        && skb.store(22, &packet.parsed.destination.0).is_ok()
        && skb.store(38, &packet.parsed.source.0).is_ok()
}
