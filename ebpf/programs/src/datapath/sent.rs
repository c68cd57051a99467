//! Ways that IPv4 packets of endpoints went lately: what [`super::endpoint`] found out holds for
//! the next packet with the same addresses, until user space changes an entry of a map.
//!
//! Each CPU has a table of its own, so that neither locks nor hashing in the kernel are needed.
//! Whatever is out of the ordinary, or not in the table, takes the slow path.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::maps::PerCpuArray;
use mesh_ebpf::headers::{Buffer, ETHERNET};
use mesh_ebpf::transport::{ACK, SYN};
use mesh_ebpf::vxlan::{Encapsulation, OUTER};
use mesh_ebpf::{flow, ip};
use mesh_ebpf_types::{Address, Mac, Reason, Vni};

use super::count::{count_as, dropped};
use super::engine;
use super::maps;
use super::maps::map;
use super::service::packet::Packet;
use super::skb::Skb;
use super::start::Start;
use super::verdict::Verdict;

/// How long a next hop is used before the kernel's routes are asked again: 25 to 250 ms, by the
/// kernel's clock rate.
const JIFFIES: u64 = 25;
/// Ethernet, IPv4 and the ports.
const READ: usize = ETHERNET + 20 + 4;
/// Up to a TCP header's length.
const READ_TCP: usize = ETHERNET + 20 + 13;
/// Up to a TCP header's flags.
const READ_FLAGS: usize = ETHERNET + 20 + 14;
/// [`Sent::service`]: the source is a backend's address.
const FROM_BACKEND: u32 = 1;
/// [`Sent::service`]: the destination is.
const TO_BACKEND: u32 = 2;
/// IPv4, without options, as it stands in a frame together with the type of service.
const PLAIN_IPV4: u32 = u32::from_ne_bytes([0x08, 0, 0x45, 0]);
const TOS: u32 = u32::from_ne_bytes([0, 0, 0, 0xff]);
const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);

/// Together with the device that it comes from, all of a packet that chooses its way. Words as they
/// lie in the frame.
#[derive(PartialEq, Eq)]
pub(super) struct SentKey {
    /// Destination and source.
    pub(super) macs: [u32; 3],
    /// Source and destination.
    pub(super) addresses: [u32; 2],
}

impl SentKey {
    #[inline(always)]
    fn of(frame: Start<READ>) -> Self {
        Self {
            macs: [frame.word(0), frame.word(4), frame.word(8)],
            addresses: [frame.word(26), frame.word(30)],
        }
    }
}

/// A way: to a local endpoint, or to another node. All zero fits no packet, interface indexes begin
/// at 1.
#[repr(C)]
pub(super) struct Sent {
    generation: u64,
    /// When the next hop is to be asked for again, in jiffies.
    until: u64,
    ifindex: u32,
    key: SentKey,
    vni: Vni,
    /// Bits: [`FROM_BACKEND`], [`TO_BACKEND`].
    service: u32,
    /// Of the network.
    mtu: u32,
    /// Where the packet leaves.
    to_ifindex: u32,
    /// The node among the WireGuard engine's peers, for a packet that goes there; 0 for all others.
    peer: u32,
    /// This node and the other one, for the outer header; the latter 0 where the endpoint is local.
    outer: [u32; 2],
    /// 0 where the kernel is to find it.
    next_hop: u32,
    /// The local endpoint's.
    mac: [u32; 2],
    port: [u8; 2],
}

// Not pinned: worth nothing to another program.
map!(SENT: PerCpuArray<Sent> = PerCpuArray::with_max_entries(maps::WAYS, 0));

/// The place of a packet's way.
#[inline(always)]
fn place(key: &SentKey) -> Option<*mut Sent> {
    SENT.get_ptr_mut(maps::way_slot([key.addresses[0], key.addresses[1], key.macs[0]]))
}

/// Sends a packet the way that another went. [`Verdict::SlowPath`], and nothing changed, where none
/// did, or where the packet may have to do with a service and has not been `balanced` yet.
#[inline(never)]
pub(super) fn send(skb: Skb, balanced: Option<&mut Packet>) -> Verdict {
    sent(skb, balanced).unwrap_or(Verdict::SlowPath)
}

#[inline(always)]
fn sent(skb: Skb, balanced: Option<&mut Packet>) -> Option<Verdict> {
    let frame = skb.start::<READ>()?;
    if frame.word(12) & !TOS != PLAIN_IPV4 || skb.has_vlan() {
        return None;
    }
    let (length, payload) = (skb.length(), skb.gso_size());
    let total = u32::from(u16::from_be(frame.half(16)));
    if payload == 0 && (total < 20 || total + 14 > length) {
        return None;
    }
    let key = SentKey::of(frame);
    // SAFETY: the entry is this CPU's own, and programs do not interrupt each other on one CPU.
    let way = unsafe { &*place(&key)? };
    if way.generation != maps::generation() || way.ifindex != skb.ifindex() || way.key != key {
        return None;
    }
    if balanced.is_none() && way.service != 0 && concerns_service(skb, frame, way.service) {
        return None;
    }
    if way.outer[1] == 0 && way.peer == 0 {
        return Some(deliver(skb, way, &key));
    }
    let size = if payload == 0 { length - 14 } else { payload + headers_length(skb, frame)? };
    if way.peer != 0 {
        if size > way.mtu {
            return None;
        }
        count_as(way.vni, Reason::ForwardedRemote, skb.segments(), length);
        return Some(
            engine::hand_over(skb, balanced, way.vni, way.peer as u16, way.to_ifindex)
                .unwrap_or(Verdict::Drop),
        );
    }
    // SAFETY: takes nothing, returns the time.
    if size > way.mtu || way.until <= unsafe { bpf_jiffies64() } {
        return None;
    }
    let outer = Encapsulation {
        source: way.outer[0].to_ne_bytes(),
        destination: way.outer[1].to_ne_bytes(),
        port: way.port,
        vni: way.vni,
        hash: hash(skb, frame, key.addresses),
        traffic_class: frame.byte(15),
        length,
    };
    let segments = skb.segments();
    if skb.grow_outer().is_err() {
        return None;
    }
    let mut whole = Buffer::<{ OUTER + ETHERNET }>::new();
    outer.write(&mut whole.bytes);
    for (word, offset) in key.macs.into_iter().zip([50, 54, 58]) {
        whole.set_word(offset, word.to_ne_bytes());
    }
    whole.bytes[62] = 0x08;
    if skb.store(0, &whole.bytes).is_err() {
        return Some(dropped(skb, way.vni, Reason::EncapsulationFailed));
    }
    count_as(way.vni, Reason::ForwardedRemote, segments, length);
    Some(match way.next_hop {
        0 => skb.route(way.to_ifindex),
        next_hop => skb.route_via(way.to_ifindex, next_hop),
    })
}

/// Whether balancing has to look at a packet between addresses of which one is a backend's: at all
/// that comes from there, and at what begins a connection there, since it ends whatever a VIP's
/// connection between the same ports left.
#[inline(always)]
fn concerns_service(skb: Skb, frame: Start<READ>, service: u32) -> bool {
    service & FROM_BACKEND != 0
        || frame.byte(23) == ip::TCP
            && skb.start::<READ_FLAGS>().is_none_or(|frame| frame.byte(READ_FLAGS - 1) & (SYN | ACK) == SYN)
}

#[inline(always)]
fn deliver(skb: Skb, way: &Sent, key: &SentKey) -> Verdict {
    let [m0, m1, ..] = key.macs;
    let low = u32::from_le_bytes([0xff, 0xff, 0, 0]);
    count_as(way.vni, Reason::ForwardedLocal, skb.segments(), skb.length());
    if m0 != way.mac[0] || m1 & low != way.mac[1] {
        let ([a, b, c, d], [e, f, ..]) = (way.mac[0].to_le_bytes(), way.mac[1].to_le_bytes());
        if skb.store(0, &[a, b, c, d, e, f]).is_err() {
            return Verdict::Drop;
        }
    }
    skb.deliver_as_is(way.to_ifindex).unwrap_or(Verdict::Drop)
}

/// Lengths of the IP and the TCP or UDP header of a super-packet.
#[inline(always)]
fn headers_length(skb: Skb, frame: Start<READ>) -> Option<u32> {
    if frame.byte(23) == ip::TCP {
        Some(20 + u32::from(skb.start::<READ_TCP>()?.byte(READ_TCP - 1) >> 4) * 4)
    } else {
        Some(28)
    }
}

/// The flow's hash: the socket's, if it has made one, else of addresses, protocol and ports.
#[inline(always)]
fn hash(skb: Skb, frame: Start<READ>, addresses: [u32; 2]) -> u32 {
    match skb.known_hash() {
        0 => {
            let protocol = frame.byte(23);
            let whole = frame.half(20) & FRAGMENT == 0;
            let ports = if whole && matches!(protocol, ip::TCP | ip::UDP) { frame.word(34) } else { 0 };
            flow::hash(addresses, ports, protocol)
        }
        known => known,
    }
}

/// The hash of a packet that takes the slow path: the same as on the fast path, where that could
/// take it.
#[inline(never)]
pub(super) fn hash_of(skb: Skb) -> u32 {
    match skb.start::<READ>() {
        Some(frame) if frame.word(12) & !TOS == PLAIN_IPV4 => {
            hash(skb, frame, [frame.word(26), frame.word(30)])
        }
        _ => skb.hash(),
    }
}

/// A MAC as [`remember_local`] takes it.
pub(super) const fn packed(Mac([a, b, c, d, e, f]): Mac) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// Remembers that packets like this one go to a local endpoint. Calls, not inlined, and looking up
/// for themselves what the caller knows: the caller's stack is full, and the verifier's work would
/// multiply.
#[inline(never)]
pub(super) fn remember_local(skb: Skb, generation: u64, ifindex: u32, mac: u64) {
    let Some(way) = remember(skb, generation) else { return };
    // SAFETY: as in `send`; nothing else refers to the entry now.
    let way = unsafe { &mut *way };
    way.to_ifindex = ifindex;
    way.outer = [0; 2];
    way.mac = [mac as u32, (mac >> 32) as u32];
}

/// Remembers that packets like this one go to another node.
#[inline(never)]
pub(super) fn remember_remote(skb: Skb, generation: u64, node: u32) {
    let Some(config) = maps::config() else { return };
    let Some(local) = config.local.to_v4().map(u32::from_ne_bytes) else { return };
    let next_hop = skb.next_hop(config.underlay_ifindex, local, node);
    let Some(way) = remember(skb, generation) else { return };
    // SAFETY: as in `send`; nothing else refers to the entry now.
    let way = unsafe { &mut *way };
    way.to_ifindex = config.underlay_ifindex;
    way.outer = [local, node];
    way.next_hop = next_hop;
    way.port = config.vxlan_port;
    // SAFETY: takes nothing, returns the time.
    way.until = unsafe { bpf_jiffies64() } + JIFFIES;
}

/// Remembers that packets like this one go to another node through WireGuard.
#[inline(never)]
pub(super) fn remember_encrypted(skb: Skb, generation: u64, peer: u32) {
    let Some(config) = maps::config() else { return };
    let Some(way) = remember(skb, generation) else { return };
    // SAFETY: as in `send`; nothing else refers to the entry now.
    let way = unsafe { &mut *way };
    way.to_ifindex = config.wireguard_ifindex;
    way.outer = [0; 2];
    way.peer = peer;
}

#[inline(always)]
fn remember(skb: Skb, generation: u64) -> Option<*mut Sent> {
    let frame = skb.start::<READ>()?;
    if frame.word(12) & !TOS != PLAIN_IPV4 {
        return None;
    }
    let interface = maps::interface(skb.ifindex())?;
    let network = maps::network(interface.vni)?;
    let key = SentKey::of(frame);
    let place = place(&key)?;
    // SAFETY: as in `send`; nothing else refers to the entry now.
    let way = unsafe { &mut *place };
    way.generation = generation;
    way.ifindex = skb.ifindex();
    way.key = key;
    way.vni = interface.vni;
    way.mtu = network.mtu;
    way.service = 0;
    let [source, destination] = way.key.addresses.map(|word| Address::from_v4(word.to_ne_bytes()));
    if maps::is_backend(interface.vni, source) {
        way.service |= FROM_BACKEND;
    }
    if maps::is_backend(interface.vni, destination) {
        way.service |= TO_BACKEND;
    }
    way.peer = 0;
    Some(place)
}
