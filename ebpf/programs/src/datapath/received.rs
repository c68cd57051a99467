//! Ways that IPv4 packets in VXLAN went lately, as in [`super::sent`]: what [`super::underlay`]
//! found out.

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

/// The outer headers, and Ethernet and IPv4 inside.
const READ: usize = OUTER + ETHERNET + 20;
/// IPv4, without options, as it stands in a frame together with the type of service.
const PLAIN_IPV4: u32 = u32::from_ne_bytes([0x08, 0, 0x45, 0]);
const TOS: u32 = u32::from_ne_bytes([0, 0, 0, 0xff]);
const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);
const VXLAN: u32 = u32::from_ne_bytes([0x08, 0, 0, 0]);
const UDP: u16 = u16::from_ne_bytes([64, ip::UDP]);
/// In a VNI's first byte: [`mesh_ebpf_types::PUBLISHED_BIT`].
const OF_MESH: u8 = 0x80;
const PROTOCOL: u16 = u16::from_ne_bytes([0, 0xff]);

/// All of a packet that chooses its way. Words as they lie in the frame.
#[derive(PartialEq, Eq)]
pub(super) struct ReceivedKey {
    /// The node that sent it.
    pub(super) node: u32,
    /// The VNI, and a zero after it.
    pub(super) vni: u32,
    /// The inner source: a backend's packets may have to be translated.
    pub(super) source: u32,
    /// The inner destination.
    pub(super) destination: u32,
    /// The inner destination MAC's first four bytes.
    pub(super) mac: u32,
    /// Its last two.
    pub(super) mac_end: u16,
}

/// A way. All zero fits no packet: nobody sends from 0.0.0.0.
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

// Not pinned: worth nothing to another program.
map!(RECEIVED: PerCpuArray<Received> = PerCpuArray::with_max_entries(maps::WAYS, 0));

/// The place of a packet's way.
#[inline(always)]
fn place(key: &ReceivedKey) -> Option<*mut Received> {
    RECEIVED.get_ptr_mut(maps::way_slot([key.vni ^ key.source, key.destination, key.mac_end.into()]))
}

/// Delivers a packet the way that another went. [`Verdict::SlowPath`], and nothing changed, where
/// none did. The packet is IPv4 to this host, and has no VLAN tag.
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
    // SAFETY: the entry is this CPU's own, and programs do not interrupt each other on one CPU.
    let way = unsafe { &*place(&key)? };
    if way.generation != maps::generation() || way.key != key {
        return None;
    }
    if gso && (frame.byte(73) != ip::TCP || way.flags & ALLOW_FORWARDING != 0) {
        return None;
    }
    let mut from_backend = way.from_backend;
    if from_backend {
        match flows::received(skb) {
            Verdict::SlowPath => {}
            Verdict::Unchanged => from_backend = false,
            verdict => return Some(verdict),
        }
    }
    let frame = skb.start::<READ>()?;
    let [d0, d1, d2, d3, d4, d5] = way.mac;
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
            way.ifindex,
            key.node,
            [key.mac, key.mac_end.into()],
        ));
    }
    Some(match skb.deliver_as_is(way.ifindex) {
        Ok(verdict) => verdict,
        Err(_) => dropped(skb, vni, Reason::DecapsulationFailed),
    })
}

/// What [`Outer::parse`] calls plain.
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

/// Remembers that a packet went to an endpoint.
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
    let Some(way) = place(&key) else { return };
    // SAFETY: as in `deliver`; nothing else refers to the entry now.
    let way = unsafe { &mut *way };
    way.generation = generation;
    way.key = key;
    way.ifindex = endpoint.ifindex;
    way.flags = endpoint.flags;
    way.mac = endpoint.mac.0;
    way.from_backend = from_backend;
}
