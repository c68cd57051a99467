//! Addresses in the form that packets and maps use: network-order bytes.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form `::ffff:a.b.c.d` (RFC 4291,
/// 2.5.5.2).
///
/// All zero means "none".
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, Eq, PartialOrd, Ord)]
pub struct Address(
    /// The bytes, network order. Aligned to four, so that eBPF reads words.
    pub [u8; 16],
);

impl Address {
    /// No address.
    pub const NONE: Self = Self([0; 16]);

    /// Returns the IPv4-mapped form of the address `[a, b, c, d]`.
    #[inline]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self::from_words([0, 0, u32::from_be(0xffff), u32::from_ne_bytes(v4)])
    }

    /// Returns the address from four words; the inverse of [`Address::words`].
    #[inline]
    pub const fn from_words([first, second, third, last]: [u32; 4]) -> Self {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (first.to_ne_bytes(), second.to_ne_bytes());
        let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (third.to_ne_bytes(), last.to_ne_bytes());
        Self([a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3])
    }

    /// Returns the IPv4 address, if this is one in IPv4-mapped form.
    #[inline]
    pub const fn to_v4(self) -> Option<[u8; 4]> {
        let [first, second, third, last] = self.words();
        if first | second == 0 && third == u32::from_be(0xffff) { Some(last.to_ne_bytes()) } else { None }
    }

    /// Returns the address as four words. In eBPF, a comparison of bytes would need a loop.
    #[inline]
    pub const fn words(self) -> [u32; 4] {
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = self.0;
        [
            u32::from_ne_bytes([a0, a1, a2, a3]),
            u32::from_ne_bytes([b0, b1, b2, b3]),
            u32::from_ne_bytes([c0, c1, c2, c3]),
            u32::from_ne_bytes([d0, d1, d2, d3]),
        ]
    }

    /// Returns whether this is "none".
    #[inline]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Returns the address as a standard library type; IPv4-mapped addresses become IPv4 addresses.
    pub const fn to_ip(self) -> IpAddr {
        match self.to_v4() {
            Some([a, b, c, d]) => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            None => IpAddr::V6(Ipv6Addr::from_octets(self.0)),
        }
    }

    /// Returns how many bits of an [`Address`] a prefix of `length` bits of this family covers.
    /// IPv4 lengths include the 96 bits of the mapped form.
    pub const fn prefix_bits(ip: IpAddr, length: u8) -> u8 {
        match ip {
            IpAddr::V4(_) => 96 + length,
            IpAddr::V6(_) => length,
        }
    }
}

impl PartialEq for Address {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (self.words(), other.words());
        (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3) == 0
    }
}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        Self(ip.octets())
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() { f.write_str("none") } else { fmt::Display::fmt(&self.to_ip(), f) }
    }
}

/// An Ethernet address.
#[repr(transparent)]
#[derive(Clone, Copy, Default, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Returns whether this is a group (broadcast or multicast) address: bit 0 of the first byte.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl PartialEq for Mac {
    /// Compares two words: a comparison of bytes would be a loop in eBPF.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let ([a0, a1, a2, a3, a4, a5], [b0, b1, b2, b3, b4, b5]) = (self.0, other.0);
        u32::from_ne_bytes([a0, a1, a2, a3]) == u32::from_ne_bytes([b0, b1, b2, b3])
            && u16::from_ne_bytes([a4, a5]) == u16::from_ne_bytes([b4, b5])
    }
}

impl Hash for Mac {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A VXLAN network identifier: 24 bits, in the low three of four network-order bytes. 0 means "no
/// network".
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(pub [u8; 4]);

impl Vni {
    /// "No network": the network of packets that cannot be assigned to one.
    pub const NONE: Self = Self([0; 4]);

    /// Returns the VNI of this number; drops bits above the 24th.
    #[inline]
    pub const fn new(number: u32) -> Self {
        Self((number & 0x00FF_FFFF).to_be_bytes())
    }

    /// Returns the VNI as a number, 0 to 2^24-1.
    #[inline]
    pub const fn number(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}
