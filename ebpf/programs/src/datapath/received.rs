//! Fast path for IPv4 packets in VXLAN: caches the decisions of [`super::underlay`], as
//! [`super::sent`] does for sent packets.

use aya_ebpf::maps::PerCpuArray;
use mesh_ebpf::headers::{ETHERNET, Headers};
use mesh_ebpf::ip;
use mesh_ebpf::vxlan::{OUTER, Outer};
use mesh_ebpf_types::{ALLOW_FORWARDING, Config, Encapsulation, Endpoint, Reason, Vni};

use super::count::{count_as, dropped};
use super::maps;
use super::maps::map;
use super::service::packet::Packet;
use super::service::{flows, inbound};
use super::skb::Skb;
use super::start::Start;
use super::verdict::Verdict;

/// The outer headers, and the inner Ethernet and IPv4 headers.
const READ: usize = OUTER + ETHERNET + 20;
/// Ethertype, version and header length of IPv4 without options, as in a frame.
const PLAIN_IPV4: u32 = u32::from_ne_bytes([0x08, 0, 0x45, 0]);
const TOS: u32 = u32::from_ne_bytes([0, 0, 0, 0xff]);
const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);
const VXLAN: u32 = u32::from_ne_bytes([0x08, 0, 0, 0]);
const UDP: u16 = u16::from_ne_bytes([64, ip::UDP]);
/// [`mesh_ebpf_types::PUBLISHED_BIT`] in a VNI's first byte.
const OF_MESH: u8 = 0x80;
const PROTOCOL: u16 = u16::from_ne_bytes([0, 0xff]);

/// All fields of a packet that determine its decision. Words are as in the frame.
#[derive(PartialEq, Eq)]
pub(super) struct ReceivedKey {
    /// The node that sent it.
    pub(super) node: u32,
    /// The VNI, and a zero after it.
    pub(super) vni: u32,
    /// The inner source address: a backend's packets may need translation.
    pub(super) source: u32,
    /// The inner destination address.
    pub(super) destination: u32,
    /// The first four bytes of the inner destination MAC.
    pub(super) mac: u32,
    /// Its last two bytes.
    pub(super) mac_end: u16,
}

/// A cached decision. All zero matches no packet: none has the source 0.0.0.0.
#[repr(C)]
pub(super) struct Received {
    generation: u64,
    key: ReceivedKey,
    /// The endpoint's device.
    ifindex: u32,
    /// The endpoint's flags.
    flags: u16,
    /// The endpoint's MAC.
    mac: [u8; 6],
    /// Whether the source is a backend's address.
    from_backend: bool,
}

// Not pinned: a cache is useless to another program.
map!(RECEIVED: PerCpuArray<Received> = PerCpuArray::with_max_entries(maps::CACHE_SLOTS, 0));

/// Returns the cache entry for a packet.
#[inline(always)]
fn cache_entry(key: &ReceivedKey) -> Option<*mut Received> {
    RECEIVED.get_ptr_mut(maps::cache_slot([key.vni ^ key.source, key.destination, key.mac_end.into()]))
}

/// Delivers a packet by a cached decision. Returns [`Verdict::SlowPath`], with the packet
/// unchanged, if there is none. The packet must be IPv4 to this host, without a VLAN tag.
#[inline(never)]
pub(super) fn deliver(skb: Skb) -> Verdict {
    delivered(skb).unwrap_or(Verdict::SlowPath)
}

#[inline(always)]
fn delivered(skb: Skb) -> Option<Verdict> {
    let config = maps::config()?;
    if config.encapsulation != Encapsulation::Direct as u8 {
        return None;
    }
    let frame = skb.start::<READ>()?;
    let (length, gso) = (skb.length(), skb.is_gso());
    if !is_plain_vxlan(frame, config, length, gso) {
        return None;
    }
    let inner = u32::from(u16::from_be(frame.half(66)));
    if frame.word(62) & !TOS != PLAIN_IPV4 || (!gso && (inner < 20 || inner + 64 > length)) {
        return None;
    }
    if frame.byte(46) & OF_MESH != 0 {
        return Some(flows::received(skb));
    }
    let key = ReceivedKey {
        node: frame.word(26),
        vni: frame.word(46),
        source: frame.word(76),
        destination: frame.word(80),
        mac: frame.word(50),
        mac_end: frame.half(54),
    };
    // SAFETY: the entry belongs to this CPU, and programs do not interrupt each other on one CPU.
    let cached = unsafe { &*cache_entry(&key)? };
    if cached.generation != maps::generation() || cached.key != key {
        return None;
    }
    if gso && (frame.byte(73) != ip::TCP || cached.flags & ALLOW_FORWARDING != 0) {
        return None;
    }
    let mut from_backend = cached.from_backend;
    if from_backend {
        match flows::received(skb) {
            Verdict::SlowPath => {}
            Verdict::Unchanged => from_backend = false,
            verdict => return Some(verdict),
        }
    }
    let frame = skb.start::<READ>()?;
    let [d0, d1, d2, d3, d4, d5] = cached.mac;
    let ([s0, s1, s2, s3], [s4, s5]) = (frame.word(56).to_ne_bytes(), frame.half(60).to_ne_bytes());
    let ethernet = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, 0x08, 0];
    if skb.shrink_outer(false).is_err() {
        return None;
    }
    let [v0, v1, v2, _] = key.vni.to_ne_bytes();
    let vni = Vni([0, v0, v1, v2]);
    if skb.store(0, &ethernet).is_err() {
        return Some(dropped(skb, vni, Reason::DecapsulationFailed));
    }
    count_as(vni, Reason::Received, skb.segments(), length - 50);
    if from_backend {
        // SAFETY: no reference to it exists yet.
        let packet = unsafe { Packet::take() }?;
        return Some(inbound::from_backend(
            packet,
            vni,
            cached.ifindex,
            key.node,
            [key.mac, key.mac_end.into()],
        ));
    }
    Some(match skb.deliver_as_is(cached.ifindex) {
        Ok(verdict) => verdict,
        Err(_) => dropped(skb, vni, Reason::DecapsulationFailed),
    })
}

/// Returns what [`Outer::parse`] calls plain.
#[inline(always)]
pub(super) fn is_plain_vxlan<const N: usize>(
    frame: Start<N>,
    config: &Config,
    length: u32,
    gso: bool,
) -> bool {
    let total = u32::from(u16::from_be(frame.half(16)));
    let udp = u32::from(u16::from_be(frame.half(38)));
    frame.word(12) & !TOS == PLAIN_IPV4
        && frame.byte(15) & 3 != 3
        && frame.half(20) & FRAGMENT == 0
        && frame.half(22) & PROTOCOL == UDP & PROTOCOL
        && config.local.to_v4().is_some_and(|local| u32::from_ne_bytes(local) == frame.word(30))
        && frame.half(36) == u16::from_ne_bytes(config.vxlan_port)
        && (gso || (udp >= 16 && total == udp + 20 && total + 14 <= length))
        && frame.half(40) == 0
        && frame.word(42) == VXLAN
        && frame.byte(49) == 0
}

/// Caches the decision to deliver to an endpoint.
#[inline(always)]
pub(super) fn remember(
    generation: u64,
    outer: &Outer,
    headers: &Headers,
    endpoint: &Endpoint,
    from_backend: bool,
) {
    if u32::from_ne_bytes(headers.word(12)) & !TOS != PLAIN_IPV4 {
        return;
    }
    let [_, v0, v1, v2] = outer.vni.0;
    let key = ReceivedKey {
        node: u32::from_ne_bytes(outer.source),
        vni: u32::from_ne_bytes([v0, v1, v2, 0]),
        source: u32::from_ne_bytes(headers.word(26)),
        destination: u32::from_ne_bytes(headers.word(30)),
        mac: u32::from_ne_bytes(headers.word(0)),
        mac_end: u16::from_ne_bytes(headers.half(4)),
    };
    let Some(cached) = cache_entry(&key) else { return };
    // SAFETY: as in `deliver`; nothing else refers to the entry now.
    let cached = unsafe { &mut *cached };
    cached.generation = generation;
    cached.key = key;
    cached.ifindex = endpoint.ifindex;
    cached.flags = endpoint.flags;
    cached.mac = endpoint.mac.0;
    cached.from_backend = from_backend;
}
