//! Fast path for IPv4 packets of endpoints: caches the decisions of [`super::endpoint`]. A decision
//! is valid for packets with the same addresses, until user space changes an entry of a map.
//!
//! Each CPU has its own cache, so neither locks nor the kernel's hashing are needed. Unusual
//! packets and those without a cached decision take the slow path.

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

/// How long a next hop is used before the kernel's routes are queried again: 25 to 250 ms,
/// depending on the kernel's clock rate.
const JIFFIES: u64 = 25;
/// Ethernet and IPv4 headers, and the ports.
const READ: usize = ETHERNET + 20 + 4;
/// Up to a TCP header's length.
const READ_TCP: usize = ETHERNET + 20 + 13;
/// Up to a TCP header's flags.
const READ_FLAGS: usize = ETHERNET + 20 + 14;
/// [`Sent::service`]: the source is a backend's address.
const FROM_BACKEND: u32 = 1;
/// [`Sent::service`]: the destination is a backend's address.
const TO_BACKEND: u32 = 2;
/// Ethertype, version and header length of IPv4 without options, as in a frame.
const PLAIN_IPV4: u32 = u32::from_ne_bytes([0x08, 0, 0x45, 0]);
const TOS: u32 = u32::from_ne_bytes([0, 0, 0, 0xff]);
const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);

/// All fields of a packet that determine its decision. Words are as in the frame.
#[derive(PartialEq, Eq)]
pub(super) struct SentKey {
    /// Destination and source MAC.
    pub(super) macs: [u32; 3],
    /// Source and destination address.
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

/// A cached decision: to a local endpoint, or to another node. All zero matches no packet:
/// interface indexes begin at 1.
#[repr(C)]
pub(super) struct Sent {
    generation: u64,
    /// When the next hop must be queried again, in jiffies.
    until: u64,
    ifindex: u32,
    key: SentKey,
    vni: Vni,
    /// Bits: [`FROM_BACKEND`], [`TO_BACKEND`].
    service: u32,
    /// MTU of the network.
    mtu: u32,
    /// Interface index of the device where the packet leaves.
    to_ifindex: u32,
    /// The node's number in WireGuard if the packet is encrypted; 0 otherwise.
    peer: u32,
    /// Addresses of this and the other node, for the outer header; the latter is 0 if the endpoint
    /// is local.
    outer: [u32; 2],
    /// 0 if the kernel must find it.
    next_hop: u32,
    /// MAC of the local endpoint.
    mac: [u32; 2],
    port: [u8; 2],
}

// Not pinned: a cache is useless to another program.
map!(SENT: PerCpuArray<Sent> = PerCpuArray::with_max_entries(maps::CACHE_SLOTS, 0));

/// Returns the cache entry for a packet.
#[inline(always)]
fn cache_entry(key: &SentKey) -> Option<*mut Sent> {
    SENT.get_ptr_mut(maps::cache_slot([key.addresses[0], key.addresses[1], key.macs[0]]))
}

/// Sends a packet by a cached decision. Returns [`Verdict::SlowPath`], with the packet unchanged,
/// if there is none, or if the packet may belong to a service and is not yet `balanced`.
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
    // SAFETY: the entry belongs to this CPU, and programs do not interrupt each other on one CPU.
    let cached = unsafe { &*cache_entry(&key)? };
    if cached.generation != maps::generation() || cached.ifindex != skb.ifindex() || cached.key != key {
        return None;
    }
    if balanced.is_none() && cached.service != 0 && concerns_service(skb, frame, cached.service) {
        return None;
    }
    if cached.outer[1] == 0 && cached.peer == 0 {
        return Some(deliver(skb, cached, &key));
    }
    let size = if payload == 0 { length - 14 } else { payload + headers_length(skb, frame)? };
    if cached.peer != 0 {
        if size > cached.mtu {
            return None;
        }
        count_as(cached.vni, Reason::ForwardedRemote, skb.segments(), length);
        return Some(
            engine::pass_to_engine(skb, balanced, cached.vni, cached.peer as u16, cached.to_ifindex)
                .unwrap_or(Verdict::Drop),
        );
    }
    // SAFETY: takes no arguments, returns the time.
    if size > cached.mtu || cached.until <= unsafe { bpf_jiffies64() } {
        return None;
    }
    let outer = Encapsulation {
        source: cached.outer[0].to_ne_bytes(),
        destination: cached.outer[1].to_ne_bytes(),
        port: cached.port,
        vni: cached.vni,
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
        return Some(dropped(skb, cached.vni, Reason::EncapsulationFailed));
    }
    count_as(cached.vni, Reason::ForwardedRemote, segments, length);
    Some(match cached.next_hop {
        0 => skb.route(cached.to_ifindex),
        next_hop => skb.route_via(cached.to_ifindex, next_hop),
    })
}

/// Returns whether balancing must see a packet from or to a backend's address. All packets from a
/// backend qualify. So do those that begin a connection to one: such a packet ends an earlier VIP
/// connection between the same ports.
#[inline(always)]
fn concerns_service(skb: Skb, frame: Start<READ>, service: u32) -> bool {
    service & FROM_BACKEND != 0
        || frame.byte(23) == ip::TCP
            && skb.start::<READ_FLAGS>().is_none_or(|frame| frame.byte(READ_FLAGS - 1) & (SYN | ACK) == SYN)
}

#[inline(always)]
fn deliver(skb: Skb, cached: &Sent, key: &SentKey) -> Verdict {
    let [m0, m1, ..] = key.macs;
    let low = u32::from_le_bytes([0xff, 0xff, 0, 0]);
    count_as(cached.vni, Reason::ForwardedLocal, skb.segments(), skb.length());
    if m0 != cached.mac[0] || m1 & low != cached.mac[1] {
        let ([a, b, c, d], [e, f, ..]) = (cached.mac[0].to_le_bytes(), cached.mac[1].to_le_bytes());
        if skb.store(0, &[a, b, c, d, e, f]).is_err() {
            return Verdict::Drop;
        }
    }
    skb.deliver_as_is(cached.to_ifindex).unwrap_or(Verdict::Drop)
}

/// Returns the length of the IP and TCP or UDP headers of a super-packet.
#[inline(always)]
fn headers_length(skb: Skb, frame: Start<READ>) -> Option<u32> {
    if frame.byte(23) == ip::TCP {
        Some(20 + u32::from(skb.start::<READ_TCP>()?.byte(READ_TCP - 1) >> 4) * 4)
    } else {
        Some(28)
    }
}

/// Returns the flow's hash: the socket's if known, else computed from addresses, protocol and
/// ports.
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

/// Returns the hash for a packet on the slow path; the same as the fast path would use.
#[inline(never)]
pub(super) fn hash_of(skb: Skb) -> u32 {
    match skb.start::<READ>() {
        Some(frame) if frame.word(12) & !TOS == PLAIN_IPV4 => {
            hash(skb, frame, [frame.word(26), frame.word(30)])
        }
        _ => skb.hash(),
    }
}

/// Packs a MAC for [`remember_local`].
pub(super) const fn packed(Mac([a, b, c, d, e, f]): Mac) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// Caches the decision to deliver to a local endpoint. These functions are calls, not inlined, and
/// repeat lookups: the caller's stack is full, and the verifier's work would multiply.
#[inline(never)]
pub(super) fn remember_local(skb: Skb, generation: u64, ifindex: u32, mac: u64) {
    let Some(cached) = remember(skb, generation) else { return };
    // SAFETY: as in `send`; no other reference to the entry exists here.
    let cached = unsafe { &mut *cached };
    cached.to_ifindex = ifindex;
    cached.outer = [0; 2];
    cached.mac = [mac as u32, (mac >> 32) as u32];
}

/// Caches the decision to send to another node.
#[inline(never)]
pub(super) fn remember_remote(skb: Skb, generation: u64, node: u32) {
    let Some(config) = maps::config() else { return };
    let Some(local) = config.local.to_v4().map(u32::from_ne_bytes) else { return };
    let next_hop = skb.next_hop(config.underlay_ifindex, local, node);
    let Some(cached) = remember(skb, generation) else { return };
    // SAFETY: as in `send`; no other reference to the entry exists here.
    let cached = unsafe { &mut *cached };
    cached.to_ifindex = config.underlay_ifindex;
    cached.outer = [local, node];
    cached.next_hop = next_hop;
    cached.port = config.vxlan_port;
    // SAFETY: takes no arguments, returns the time.
    cached.until = unsafe { bpf_jiffies64() } + JIFFIES;
}

/// Caches the decision to send to another node through WireGuard.
#[inline(never)]
pub(super) fn remember_encrypted(skb: Skb, generation: u64, peer: u32) {
    let Some(config) = maps::config() else { return };
    let Some(cached) = remember(skb, generation) else { return };
    // SAFETY: as in `send`; no other reference to the entry exists here.
    let cached = unsafe { &mut *cached };
    cached.to_ifindex = config.wireguard_ifindex;
    cached.outer = [0; 2];
    cached.peer = peer;
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
    let cache_entry = cache_entry(&key)?;
    // SAFETY: as in `send`; no other reference to the entry exists here.
    let cached = unsafe { &mut *cache_entry };
    cached.generation = generation;
    cached.ifindex = skb.ifindex();
    cached.key = key;
    cached.vni = interface.vni;
    cached.mtu = network.mtu;
    cached.service = 0;
    let [source, destination] = cached.key.addresses.map(|word| Address::from_v4(word.to_ne_bytes()));
    if maps::is_backend(interface.vni, source) {
        cached.service |= FROM_BACKEND;
    }
    if maps::is_backend(interface.vni, destination) {
        cached.service |= TO_BACKEND;
    }
    cached.peer = 0;
    Some(cache_entry)
}
