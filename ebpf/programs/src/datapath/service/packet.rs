//! Parsing of packets for balancing.

use aya_ebpf::maps::PerCpuArray;
use core::ptr;

use mesh_ebpf::headers::{Buffer, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use mesh_ebpf::ip::{self, FRAGMENT, ICMP, ICMPV6};
use mesh_ebpf::transport::{Role, ports, role, swapped};
use mesh_ebpf_types::{Address, Connection, ConnectionKey, Mac, Vni};

use super::memo::Memo;
use crate::datapath::ipv6::upper_layer;
use crate::datapath::maps::FRAGMENTS;
use crate::datapath::maps::map;
use crate::datapath::skb::Skb;

/// [`Parsed::class`]: cannot be balanced.
pub(in crate::datapath) const OTHER: u32 = 0;
/// [`Parsed::class`]: a packet of a flow.
pub(in crate::datapath) const FLOW: u32 = 1;
/// [`Parsed::class`]: a fragment without ports of its own; the key has those of the first.
pub(in crate::datapath) const LATER: u32 = 2;
/// [`Parsed::class`]: as [`LATER`], but the first fragment was not seen, so the key has no ports.
pub(in crate::datapath) const LOST: u32 = 3;
/// [`Parsed::class`]: an ICMP error; the key is that of the quoted packet, reversed, which is the
/// error's own direction.
pub(in crate::datapath) const ERROR: u32 = 4;

/// Value in `FRAGMENTS`, in place of ports, while a packet's fragments go to the kernel.
const IN_REASSEMBLY: [u8; 4] = [0xff; 4];

/// The current packet. Its frame begins at offset 0.
#[repr(C)]
pub(in crate::datapath) struct Packet {
    pub(in crate::datapath) parsed: Parsed,
    pub(in crate::datapath) decided: Decided,
    pub(in crate::datapath) scratch: Scratch,
}

/// The packet's contents. Written only by [`read`], except for the key of a translated packet.
#[repr(C)]
pub(in crate::datapath) struct Parsed {
    /// The flow, in the direction of the packet.
    pub(in crate::datapath) key: ConnectionKey,
    /// The IP header's source address.
    pub(in crate::datapath) source: Address,
    /// The IP header's destination address.
    pub(in crate::datapath) destination: Address,
    /// [`FLOW`], [`LATER`], [`LOST`], [`ERROR`] or [`OTHER`].
    pub(in crate::datapath) class: u32,
    /// Offset of the upper layer's header in the frame.
    pub(in crate::datapath) upper: u32,
    /// Offset of the upper layer's header of the packet that an ICMP error quotes.
    pub(in crate::datapath) quoted_upper: u32,
    /// Whether it is IPv6.
    pub(in crate::datapath) v6: u32,
    /// Whether it begins a flow, whatever came before.
    pub(in crate::datapath) starts: u32,
    /// Flags of a TCP segment.
    pub(in crate::datapath) tcp_flags: u32,
    /// Whether it is the first fragment of a packet.
    pub(in crate::datapath) first_fragment: u32,
    /// Identification of a packet in fragments.
    pub(in crate::datapath) identification: u32,
    /// Whether routers must not fragment it.
    pub(in crate::datapath) dont_fragment: u32,
    /// Hop limit on arrival.
    pub(in crate::datapath) hop_limit: u32,
    /// Source MAC of the frame.
    pub(in crate::datapath) source_mac: Mac,
    /// Destination MAC of the frame.
    pub(in crate::datapath) destination_mac: Mac,
}

/// Decisions of the parts so far. Fields "as they lie in memory" are in network order.
#[repr(C)]
pub(in crate::datapath) struct Decided {
    /// The address that [`super::translate`] writes.
    pub(in crate::datapath) to: Address,
    /// Number of the backend.
    pub(in crate::datapath) number: u32,
    /// The node where the client's packets arrive, or to which the packet goes, as it lies in
    /// memory; 0 for this node.
    pub(in crate::datapath) node: u32,
    /// The VNI that the packet is sent with, as a number.
    pub(in crate::datapath) tunnel_vni: u32,
    /// Whether the packet fits the tunnel without fragmentation.
    pub(in crate::datapath) fits: u32,
    /// Interface index of the endpoint's device.
    pub(in crate::datapath) ifindex: u32,
    /// Interface index of the device where an outside client's packet arrived; 0 for other clients.
    pub(in crate::datapath) arrived_at: u32,
    /// Whether earlier packets of the flow arrived at another device.
    pub(in crate::datapath) moved: u32,
    /// Whether replies return through the node that the client spoke to in any case.
    pub(in crate::datapath) returns: u32,
    /// How much [`super::hops`] has taken from the hop limit.
    pub(in crate::datapath) hops: u32,
    /// The service's backend table: first entry, size, flags.
    pub(in crate::datapath) table: [u32; 3],
    /// The destination MAC of the frame inside the tunnel: a word and a halfword.
    pub(in crate::datapath) tunnel_mac: [u32; 2],
    /// The backends' port, as it lies in memory; 0 if it is the flow's own.
    pub(in crate::datapath) target: [u8; 2],
    /// The port that replaces the client's, as it lies in memory; 0 if it is unchanged.
    pub(in crate::datapath) client_port: [u8; 2],
    /// The network of the replies, as in keys.
    pub(in crate::datapath) reply_vni: [u8; 3],
    pub(in crate::datapath) padding: [u8; 1],
}

/// Memory for values that do not fit on the stack.
#[repr(C)]
pub(in crate::datapath) struct Scratch {
    /// Facts about the flow for the fast path.
    pub(in crate::datapath) memo: Memo,
    /// A key of another entry, under construction.
    pub(in crate::datapath) other: ConnectionKey,
    /// The entry that [`super::replies::back`] found.
    pub(in crate::datapath) found: Connection,
}

// Values that do not fit on the stack.
map!(PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0));

/// Reads a packet of a network (the bytes of a [`Vni`]), and returns its class.
#[inline(never)]
pub(in crate::datapath) fn read(skb: Skb, packet: &mut Packet, vni: u32) -> u32 {
    let class = headers(skb, packet, vni);
    let class = match class {
        FLOW => transport(skb, packet),
        LATER => fragment(packet),
        class => class,
    };
    packet.parsed.class = class;
    class
}

#[inline(never)]
fn headers(skb: Skb, packet: &mut Packet, vni: u32) -> u32 {
    packet.scratch.memo.forget();
    let mut ethernet = Buffer::<14>::new();
    if skb.read(0, &mut ethernet.bytes).is_err() {
        return OTHER;
    }
    packet.parsed.destination_mac = ethernet.mac(0);
    packet.parsed.source_mac = ethernet.mac(6);
    let [_, v0, v1, v2] = vni.to_ne_bytes();
    packet.parsed.key.vni = [v0, v1, v2];
    packet.decided.reply_vni = [v0, v1, v2];
    packet.parsed.first_fragment = 0;
    packet.parsed.starts = 0;
    packet.parsed.tcp_flags = 0;
    packet.decided.target = [0; 2];
    packet.decided.client_port = [0; 2];
    packet.decided.arrived_at = 0;
    packet.decided.moved = 0;
    packet.decided.hops = 0;
    packet.decided.returns = 0;
    match u16::from_be_bytes(ethernet.half(12)) {
        ETHERTYPE_IPV4 => headers_v4(skb, packet),
        ETHERTYPE_IPV6 => headers_v6(skb, packet),
        _ => OTHER,
    }
}

/// Reads an IPv4 header.
#[inline(never)]
fn headers_v4(skb: Skb, packet: &mut Packet) -> u32 {
    let mut header = Buffer::<20>::new();
    if skb.read(14, &mut header.bytes).is_err() {
        return OTHER;
    }
    let length = u32::from(header.bytes[0] & 0x0f) * 4;
    let total = u32::from(u16::from_be_bytes(header.half(2)));
    let available = skb.length() - 14;
    let sound = header.bytes[0] >> 4 == 4
        && length >= 20
        && length <= available
        && (skb.is_gso() || total >= length && total <= available);
    if !sound || header.bytes[16] >= 224 {
        return OTHER;
    }
    let (source, destination) = (header.word(12), header.word(16));
    packet.parsed.source = Address::from_v4(source);
    packet.parsed.destination = Address::from_v4(destination);
    packet.parsed.key.source = Address::from_v4(source);
    packet.parsed.key.destination = Address::from_v4(destination);
    packet.parsed.v6 = 0;
    let [f0, f1] = header.half(6);
    packet.parsed.dont_fragment = u32::from(f0 & 0x40);
    let later = f0 & 0x1f != 0 || f1 != 0;
    packet.parsed.first_fragment = u32::from(!later && f0 & 0x20 != 0);
    packet.parsed.identification = u32::from(u16::from_ne_bytes(header.half(4)));
    packet.parsed.hop_limit = header.bytes[8].into();
    packet.parsed.upper = 14 + length;
    class_of(packet, header.bytes[9], later)
}

/// Reads an IPv6 header, and finds what follows it.
#[inline(never)]
fn headers_v6(skb: Skb, packet: &mut Packet) -> u32 {
    let Ok([version, _, _, _, l0, l1, next, hop_limit]) = skb.load::<8>(14) else { return OTHER };
    let payload = u32::from(u16::from_be_bytes([l0, l1]));
    if version >> 4 != 6
        || skb.length() < 54
        || !skb.is_gso() && payload + 54 > skb.length()
        || skb.read(22, &mut packet.parsed.source.0).is_err()
        || skb.read(38, &mut packet.parsed.destination.0).is_err()
        || skb.read(22, &mut packet.parsed.key.source.0).is_err()
        || skb.read(38, &mut packet.parsed.key.destination.0).is_err()
        || packet.parsed.destination.0[0] == 0xff
    {
        return OTHER;
    }
    packet.parsed.v6 = 1;
    packet.parsed.hop_limit = hop_limit.into();
    packet.parsed.dont_fragment = 1;
    if next == FRAGMENT {
        let Ok([next, _, o0, o1, i0, i1, i2, i3]) = skb.load::<8>(54) else { return OTHER };
        let later = o0 != 0 || o1 & 0xf8 != 0;
        packet.parsed.first_fragment = u32::from(!later && o1 & 1 != 0);
        packet.parsed.identification = u32::from_ne_bytes([i0, i1, i2, i3]);
        packet.parsed.upper = 62;
        return class_of(packet, next, later);
    }
    let Some(found) = upper_layer(skb, next) else { return OTHER };
    packet.parsed.upper = found.offset;
    class_of(packet, found.protocol, false)
}

#[inline(always)]
fn class_of(packet: &mut Packet, protocol: u8, later: bool) -> u32 {
    packet.parsed.key.protocol = protocol;
    match protocol {
        ip::TCP | ip::UDP | ip::SCTP | ICMP | ICMPV6 if later => LATER,
        ip::TCP | ip::UDP | ip::SCTP | ICMP | ICMPV6 => FLOW,
        _ => OTHER,
    }
}

/// Reads the upper layer's header.
#[inline(never)]
fn transport(skb: Skb, packet: &mut Packet) -> u32 {
    let protocol = packet.parsed.key.protocol;
    let header;
    if let Ok(whole) = skb.load::<16>(packet.parsed.upper) {
        header = whole;
    } else if let Ok(start) = skb.load::<8>(packet.parsed.upper)
        && matches!(protocol, ip::UDP | ICMP | ICMPV6)
    {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = start;
        header = [b0, b1, b2, b3, b4, b5, b6, b7, 0, 0, 0, 0, 0, 0, 0, 0];
    } else {
        return OTHER;
    }
    packet.parsed.key.ports = ports(protocol, header);
    if protocol == ip::TCP {
        packet.parsed.tcp_flags = header[13].into();
    }
    match role(protocol, header) {
        Role::None => OTHER,
        Role::Any => FLOW,
        Role::Starts => {
            packet.parsed.starts = 1;
            FLOW
        }
        Role::Error => quoted(skb, packet),
    }
}

/// Reads the quoted packet of an ICMP error.
#[inline(never)]
fn quoted(skb: Skb, packet: &mut Packet) -> u32 {
    let quote = packet.parsed.upper + 8;
    let (protocol, upper);
    if packet.parsed.v6 == 0 {
        let Ok([version, _, _, _, _, _, _, offset, .., next, _, _]) = skb.load::<12>(quote) else {
            return OTHER;
        };
        let Ok(addresses) = skb.load::<8>(quote + 12) else { return OTHER };
        if version >> 4 != 4 || offset != 0 {
            return OTHER;
        }
        let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
        packet.parsed.key.source = Address::from_v4([d0, d1, d2, d3]);
        packet.parsed.key.destination = Address::from_v4([s0, s1, s2, s3]);
        (protocol, upper) = (next, quote + u32::from(version & 0x0f) * 4);
    } else {
        let Ok([_, _, _, _, _, _, next, _]) = skb.load::<8>(quote) else { return OTHER };
        if skb.read(quote + 8, &mut packet.parsed.key.destination.0).is_err()
            || skb.read(quote + 24, &mut packet.parsed.key.source.0).is_err()
        {
            return OTHER;
        }
        (protocol, upper) = (next, quote + 40);
    }
    packet.parsed.quoted_upper = upper;
    packet.parsed.key.protocol = protocol;
    let Ok([b0, b1, b2, b3, b4, b5, b6, b7]) = skb.load::<8>(upper) else { return OTHER };
    let header = [b0, b1, b2, b3, b4, b5, b6, b7, 0, 0, 0, 0, 0, 0, 0, 0];
    match protocol {
        ip::TCP | ip::UDP | ip::SCTP => packet.parsed.key.ports = swapped([b0, b1, b2, b3]),
        ICMP | ICMPV6 => packet.parsed.key.ports = swapped(ports(protocol, header)),
        _ => return OTHER,
    }
    ERROR
}

/// Finds the ports of a fragment without ports.
#[inline(never)]
fn fragment(packet: &mut Packet) -> u32 {
    packet.parsed.key.ports = packet.parsed.identification.to_ne_bytes();
    // SAFETY: the value is copied at once. If the entry is reused meanwhile, the ports are another
    // packet's, and the fragment is dropped or misdelivered.
    if let Some(ports) = unsafe { FRAGMENTS.get(&packet.parsed.key) }
        && *ports != IN_REASSEMBLY
    {
        packet.parsed.key.ports = *ports;
        return LATER;
    }
    LOST
}

/// Assigns a network to the current packet, which was read without one.
#[inline(always)]
pub(in crate::datapath) fn in_network(packet: &mut Packet, vni: Vni) {
    let [_, v0, v1, v2] = vni.0;
    packet.parsed.key.vni = [v0, v1, v2];
}

/// Records that the fragments of the current packet go to the kernel for reassembly, because a
/// later one arrived first.
#[inline(never)]
pub(in crate::datapath) fn note_reassembly(packet: &mut Packet) {
    packet.scratch.other = packet.parsed.key;
    packet.scratch.other.ports = packet.parsed.identification.to_ne_bytes();
    let _ = FRAGMENTS.insert(&packet.scratch.other, &IN_REASSEMBLY, 0);
}

/// Returns whether [`note_reassembly`] recorded the packet.
#[inline(never)]
pub(in crate::datapath) fn is_in_reassembly(packet: &mut Packet) -> bool {
    packet.scratch.other = packet.parsed.key;
    packet.scratch.other.ports = packet.parsed.identification.to_ne_bytes();
    // SAFETY: as in `fragment`.
    unsafe { FRAGMENTS.get(&packet.scratch.other) }.is_some_and(|ports| *ports == IN_REASSEMBLY)
}

/// Deletes the record of [`note_reassembly`]: the first fragment came back from the kernel.
#[inline(never)]
pub(in crate::datapath) fn end_reassembly(packet: &mut Packet) {
    if is_in_reassembly(packet) {
        let _ = FRAGMENTS.remove(&packet.scratch.other);
    }
}

/// Records the ports of a packet for its other fragments.
#[inline(never)]
pub(in crate::datapath) fn remember_fragment(packet: &mut Packet) {
    if packet.parsed.first_fragment == 0 {
        return;
    }
    packet.scratch.other = packet.parsed.key;
    packet.scratch.other.ports = packet.parsed.identification.to_ne_bytes();
    // A full map evicts the record of another packet.
    let _ = FRAGMENTS.insert(&packet.scratch.other, &packet.parsed.key.ports, 0);
}

/// Records that a fragmented packet is for no service: its later fragments get a port that is not
/// published.
#[inline(never)]
pub(in crate::datapath) fn remember_unserved(packet: &mut Packet) {
    if packet.parsed.first_fragment == 0 {
        return;
    }
    packet.scratch.other = packet.parsed.key;
    packet.scratch.other.ports = packet.parsed.identification.to_ne_bytes();
    let _ = FRAGMENTS.insert(&packet.scratch.other, &[0; 4], 0);
}

/// Returns whether two addresses are equal, compared as words in place: a copy would be made byte
/// by byte.
#[inline(always)]
pub(in crate::datapath) fn is_same(one: &Address, other: &Address) -> bool {
    // SAFETY: an address has sixteen bytes and the alignment of words.
    let (one, other) =
        unsafe { (&*ptr::from_ref(one).cast::<[u32; 4]>(), &*ptr::from_ref(other).cast::<[u32; 4]>()) };
    (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]) == 0
}

impl Packet {
    /// Returns the memory for the current packet. It always exists: the array has one entry.
    ///
    /// # Safety
    ///
    /// No other reference to it may be alive. The entry belongs to this CPU, and programs do not
    /// interrupt each other on one CPU. So it suffices that a caller of the function holds no
    /// reference.
    #[inline(always)]
    pub(in crate::datapath) unsafe fn take<'a>() -> Option<&'a mut Self> {
        // SAFETY: the entry is always memory of the map, and all zeroes is a valid packet.
        PACKET.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
    }

    /// The network.
    #[inline(always)]
    pub(in crate::datapath) const fn vni(&self) -> Vni {
        let [v0, v1, v2] = self.parsed.key.vni;
        Vni([0, v0, v1, v2])
    }

    /// Returns the client for which a reply, or an error about one, is.
    #[inline(always)]
    pub(in crate::datapath) const fn client(&self) -> Address {
        if self.parsed.class == ERROR { self.parsed.destination } else { self.parsed.key.destination }
    }
}
