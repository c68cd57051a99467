//! The headers at the start of a frame: Ethernet, and the parts of IPv4 or IPv6 that forwarding
//! needs.
//!
//! Fields are read in place: eBPF's stack of 512 bytes has no room for copies.

use mesh_ebpf_types::{Address, Mac};

/// Length of an Ethernet header without VLAN tag.
pub const ETHERNET: usize = 14;
/// The ethertype of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// The ethertype of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Length of a frame up to and including the IP packet's traffic class.
pub const TO_TRAFFIC_CLASS: usize = ETHERNET + 2;
/// Ethernet header and IPv4 header without options.
pub const V4: usize = ETHERNET + 20;
/// Length difference of IPv6 and IPv4 headers.
pub const V6_REST: usize = 20;
/// Ethernet header and IPv6 header.
pub const V6: usize = V4 + V6_REST;

/// Returns the type of service or traffic class of the IP packet in a frame: DSCP and ECN.
#[inline(always)]
pub const fn traffic_class(frame: &[u8; TO_TRAFFIC_CLASS]) -> u8 {
    let [.., e0, e1, b0, b1] = *frame;
    if u16::from_be_bytes([e0, e1]) == ETHERTYPE_IPV6 { b0 << 4 | b1 >> 4 } else { b1 }
}

/// The payload of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// IPv4.
    V4,
    /// ARP.
    Arp,
    /// IPv6.
    V6,
    /// Another protocol, or a VLAN tag.
    Other,
}

/// The header contradicts itself or its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Bytes of a frame, aligned so that the bytes after the Ethernet header are aligned to 16 bytes.
/// eBPF can read words only at addresses that are known to be aligned.
#[repr(C, align(16))]
pub struct Buffer<const N: usize> {
    padding: [u8; 2],
    /// The bytes.
    pub bytes: [u8; N],
}

impl<const N: usize> Buffer<N> {
    /// Returns a buffer of zeroes.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { padding: [0; 2], bytes: [0; N] }
    }

    /// Returns two bytes.
    #[inline(always)]
    pub const fn half(&self, offset: usize) -> [u8; 2] {
        [self.bytes[offset], self.bytes[offset + 1]]
    }

    /// Returns four bytes.
    #[inline(always)]
    pub const fn word(&self, offset: usize) -> [u8; 4] {
        [self.bytes[offset], self.bytes[offset + 1], self.bytes[offset + 2], self.bytes[offset + 3]]
    }

    /// Overwrites four bytes.
    #[inline(always)]
    pub const fn set_word(&mut self, offset: usize, [a, b, c, d]: [u8; 4]) {
        self.bytes[offset] = a;
        self.bytes[offset + 1] = b;
        self.bytes[offset + 2] = c;
        self.bytes[offset + 3] = d;
    }

    /// Returns a MAC.
    #[inline(always)]
    pub const fn mac(&self, offset: usize) -> Mac {
        let ([m0, m1, m2, m3], [m4, m5]) = (self.word(offset), self.half(offset + 4));
        Mac([m0, m1, m2, m3, m4, m5])
    }

    /// Overwrites a MAC.
    #[inline(always)]
    pub const fn set_mac(&mut self, offset: usize, Mac([m0, m1, m2, m3, m4, m5]): Mac) {
        self.set_word(offset, [m0, m1, m2, m3]);
        self.bytes[offset + 4] = m4;
        self.bytes[offset + 5] = m5;
    }

    /// Returns an address of 16 bytes.
    #[inline(always)]
    pub const fn address(&self, offset: usize) -> Address {
        Address::from_words([
            u32::from_ne_bytes(self.word(offset)),
            u32::from_ne_bytes(self.word(offset + 4)),
            u32::from_ne_bytes(self.word(offset + 8)),
            u32::from_ne_bytes(self.word(offset + 12)),
        ])
    }
}

impl<const N: usize> Default for Buffer<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The first bytes of a frame: [`V4`] bytes, or [`V6`] for IPv6.
pub type Headers = Buffer<V6>;

impl Headers {
    /// Returns the kind of the frame's payload.
    #[inline(always)]
    pub const fn carries(&self) -> Carries {
        match u16::from_be_bytes(self.half(12)) {
            ETHERTYPE_IPV4 => Carries::V4,
            0x0806 => Carries::Arp,
            ETHERTYPE_IPV6 => Carries::V6,
            _ => Carries::Other,
        }
    }

    /// Returns whether the frame carries IPv6. The frame must carry IPv4 or IPv6.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        matches!(self.carries(), Carries::V6)
    }

    /// Returns the frame's destination.
    #[inline(always)]
    pub const fn destination_mac(&self) -> Mac {
        self.mac(0)
    }

    /// Returns the frame's source.
    #[inline(always)]
    pub const fn source_mac(&self) -> Mac {
        self.mac(6)
    }

    /// Checks an IPv4 header. `available` is the number of bytes from the header's start to the
    /// frame's end. Super-packets (`gso`) may be longer than the length field can express.
    #[inline(always)]
    pub const fn check_v4(&self, available: u32, gso: bool) -> Result<(), Malformed> {
        let header = self.v4_header_length();
        let total = u16::from_be_bytes(self.half(16)) as u32;
        let sound = self.bytes[14] >> 4 == 4
            && header >= 20
            && header <= available
            && (gso || (total >= header && total <= available));
        if sound { Ok(()) } else { Err(Malformed) }
    }

    /// Checks an IPv6 header; parameters as in [`Headers::check_v4`].
    #[inline(always)]
    pub const fn check_v6(&self, available: u32, gso: bool) -> Result<(), Malformed> {
        let payload = u16::from_be_bytes(self.half(18)) as u32;
        let sound = self.bytes[14] >> 4 == 6 && (gso || payload + 40 <= available);
        if sound { Ok(()) } else { Err(Malformed) }
    }

    const fn v4_header_length(&self) -> u32 {
        ((self.bytes[14] & 0x0f) as u32) * 4
    }

    /// Returns the length of the IPv4 header with options, or 40.
    #[inline(always)]
    pub const fn header_length(&self) -> u32 {
        if self.is_v6() { 40 } else { self.v4_header_length() }
    }

    /// Returns the next protocol; for IPv6, this may be an extension header.
    #[inline(always)]
    pub const fn next(&self) -> u8 {
        if self.is_v6() { self.bytes[20] } else { self.bytes[23] }
    }

    /// Returns the hop limit of an IPv6 packet.
    #[inline(always)]
    pub const fn hop_limit(&self) -> u8 {
        self.bytes[21]
    }

    /// Returns whether routers must not fragment it: IPv4 with DF set, and every IPv6 packet.
    #[inline(always)]
    pub const fn dont_fragment(&self) -> bool {
        self.is_v6() || self.bytes[20] & 0x40 != 0
    }

    /// Returns whether the source address equals the one of these of the packet's family. An
    /// address of zeroes matches nothing.
    #[inline(always)]
    pub fn is_from(&self, v4: [u8; 4], v6: Address) -> bool {
        if self.is_v6() {
            !v6.is_none() && self.address(22) == v6
        } else {
            let v4 = u32::from_ne_bytes(v4);
            v4 != 0 && u32::from_ne_bytes(self.word(26)) == v4
        }
    }

    /// Returns whether it is a later fragment of an IPv4 packet, without upper-layer header.
    #[inline(always)]
    pub const fn is_later_fragment_v4(&self) -> bool {
        !self.is_v6() && (self.bytes[20] & 0x1f != 0 || self.bytes[21] != 0)
    }

    /// Returns the source address.
    #[inline(always)]
    pub const fn source(&self) -> Address {
        if self.is_v6() { self.address(22) } else { Address::from_v4(self.word(26)) }
    }

    /// Returns the destination address.
    #[inline(always)]
    pub const fn destination(&self) -> Address {
        if self.is_v6() { self.address(38) } else { Address::from_v4(self.word(30)) }
    }

    /// Returns whether the destination is a multicast or the limited broadcast address, or in
    /// IPv4's reserved class E.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v6() { self.bytes[38] == 0xff } else { self.bytes[30] >= 224 }
    }

    /// Returns whether the destination is a link-local IPv6 address, `fe80::/10`.
    #[inline(always)]
    pub const fn is_to_link_local(&self) -> bool {
        self.is_v6() && self.bytes[38] == 0xfe && self.bytes[39] & 0xc0 == 0x80
    }
}
