//! Address prefixes whose host bits are zero, and the arithmetic on them.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::ranges::Range;

/// Which Internet Protocol an address or a prefix belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4, addresses of 32 bits.
    Ipv4,
    /// IPv6, addresses of 128 bits.
    Ipv6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// The number of bits in an address: 32 or 128. It is also the length of a single address's
    /// prefix.
    pub const fn width(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }

    /// The address with this value; for IPv4 only the low 32 bits count.
    pub(crate) const fn address(self, bits: u128) -> IpAddr {
        match self {
            #[expect(clippy::cast_possible_truncation, reason = "an IPv4 address is the low 32 bits")]
            Self::Ipv4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// The address as a number, so that ranges of both families are handled alike.
pub(crate) const fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits() as u128,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Why a text or a pair of values is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The text is not `ADDRESS/LENGTH`.
    #[error("{text} is not a prefix; write ADDRESS/LENGTH, for example 10.1.2.0/24")]
    Syntax {
        /// The text as given.
        text: String,
    },
    /// The length is greater than the number of bits in the address.
    #[error("prefix length {len} of {address} is out of range: at most {max} for {family}")]
    Length {
        /// The address as given.
        address: IpAddr,
        /// The length as given.
        len: u8,
        /// The greatest length, 32 or 128.
        max: u8,
        /// The address's family.
        family: Family,
    },
    /// Bits after the prefix length are set, so it may be a host's address rather than a prefix.
    #[error("{address}/{len} has host bits set; did you mean {corrected}")]
    HostBits {
        /// The address as given.
        address: IpAddr,
        /// The length as given.
        len: u8,
        /// The prefix that contains the address.
        corrected: Prefix,
    },
}

/// An IPv4 or IPv6 prefix. Its host bits are zero.
///
/// Ordered by family, first address, then length: a prefix sorts before those which it covers.
/// As text and in serde it is `ADDRESS/LENGTH`; parsing rejects set host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(IpNetwork);

impl Prefix {
    /// The prefix of `len` bits that contains `address`; host bits are cleared.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let family = Family::of(address);
        let masked = family.address(bits(address) & !host_mask(family, len));
        IpNetwork::new(masked, len).map(Self).map_err(|_| PrefixError::Length {
            address,
            len,
            max: family.width(),
            family,
        })
    }

    /// The prefix that holds exactly one address: a /32 or a /128.
    pub fn single(address: IpAddr) -> Self {
        Self(IpNetwork::from(address))
    }

    /// Reads `ADDRESS/LENGTH` and refuses set host bits, naming the prefix that was probably meant.
    pub fn parse_strict(text: &str) -> Result<Self, PrefixError> {
        let syntax = || PrefixError::Syntax { text: text.to_owned() };
        let (address, len) = text.split_once('/').ok_or_else(syntax)?;
        // `u8::from_str` takes a sign, which no notation of prefixes has.
        if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(syntax());
        }
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let len: u8 = len.parse().map_err(|_| syntax())?;
        let corrected = Self::new(address, len)?;
        if corrected.first() == address {
            Ok(corrected)
        } else {
            Err(PrefixError::HostBits { address, len, corrected })
        }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.0.ip())
    }

    /// Its length in bits: 0 to 32 or 0 to 128.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the length of a prefix counts bits, and no prefix is empty"
    )]
    pub fn len(&self) -> u8 {
        self.0.prefix()
    }

    /// Whether it is a single address, a /32 or a /128.
    pub fn is_single(&self) -> bool {
        self.len() == self.family().width()
    }

    /// The number of bits after the prefix: 0 for a single address.
    pub fn host_bits(&self) -> u8 {
        self.family().width() - self.len()
    }

    /// Its first address. For IPv4 this is the network address, for IPv6 the subnet-router anycast
    /// address (RFC 4291, 2.6.1).
    pub fn first(&self) -> IpAddr {
        self.0.ip()
    }

    /// Its last address. For IPv4 this is the broadcast address.
    pub fn last(&self) -> IpAddr {
        self.family().address(self.range().last())
    }

    /// The number of addresses, `u128::MAX` for `::/0`, whose size is one more.
    pub fn size(&self) -> u128 {
        self.range().size()
    }

    /// Whether the address is inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family() == Family::of(address) && self.range().contains(bits(address))
    }

    /// Whether every address of `other` is inside; a prefix covers itself.
    pub fn covers(&self, other: &Self) -> bool {
        self.len() <= other.len() && self.contains(other.first())
    }

    /// Whether any address is in both. Of two prefixes that overlap, one covers the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The address at this distance from the first, or `None` past the last.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        let range = self.range();
        (index <= range.last() - range.first()).then(|| self.family().address(range.first() + index))
    }

    /// The prefix one bit shorter that covers this one; `None` for length 0.
    pub fn parent(&self) -> Option<Self> {
        self.resized(self.len().checked_sub(1)?)
    }

    /// Its two halves, or `None` for a single address.
    pub fn split(&self) -> Option<(Self, Self)> {
        let mut halves = self.subnets(self.len().checked_add(1)?)?;
        Some((halves.next()?, halves.next()?))
    }

    /// All its subnets of this length, in order, made one by one as they are asked for. `None` when
    /// `len` is shorter than this prefix's own or longer than an address.
    pub fn subnets(&self, len: u8) -> Option<Subnets> {
        (len >= self.len() && len <= self.family().width()).then(|| Subnets {
            family: self.family(),
            len,
            next: Some(self.range().first()),
            last: self.range().last(),
        })
    }

    /// Its addresses as numbers.
    pub(crate) fn range(&self) -> Range {
        let first = bits(self.first());
        Range::new(first, first | host_mask(self.family(), self.len()))
    }

    /// The prefix of this length with the same first address, host bits cleared; `None` when `len`
    /// is too long.
    pub(crate) fn resized(&self, len: u8) -> Option<Self> {
        Self::new(self.first(), len).ok()
    }

    /// The prefix of `len` bits around the address with this value. A `len` past the family's width
    /// means a single address.
    pub(crate) fn around(family: Family, value: u128, len: u8) -> Self {
        let address = family.address(value);
        Self::new(address, len).unwrap_or_else(|_| Self::single(address))
    }
}

/// The mask of the bits after a prefix of this length; none for a length that is out of range.
const fn host_mask(family: Family, len: u8) -> u128 {
    match family.width().checked_sub(len) {
        None | Some(0) => 0,
        Some(host_bits) => u128::MAX >> (128 - host_bits as u32),
    }
}

impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.first(), self.len()).cmp(&(other.first(), other.len()))
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// As [`Prefix::parse_strict`].
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        Self::parse_strict(text)
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        Self::parse_strict(&text)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl From<Prefix> for IpNetwork {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self::single(address)
    }
}

/// The subnets of a prefix, from [`Prefix::subnets`].
#[derive(Debug, Clone)]
pub struct Subnets {
    family: Family,
    len: u8,
    next: Option<u128>,
    last: u128,
}

impl Iterator for Subnets {
    type Item = Prefix;

    fn next(&mut self) -> Option<Prefix> {
        let subnet = Prefix::around(self.family, self.next?, self.len);
        let end = subnet.range().last();
        self.next = if end < self.last { end.checked_add(1) } else { None };
        Some(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn set_host_bits_are_refused_with_the_corrected_prefix() {
        let error = Prefix::parse_strict("10.1.2.3/24").unwrap_err();
        assert_eq!(error.to_string(), "10.1.2.3/24 has host bits set; did you mean 10.1.2.0/24");
        let error = Prefix::parse_strict("fd00::1/64").unwrap_err();
        assert_eq!(error.to_string(), "fd00::1/64 has host bits set; did you mean fd00::/64");
    }

    #[test]
    fn a_length_out_of_range_is_refused_with_the_limit() {
        let error = Prefix::parse_strict("10.0.0.0/33").unwrap_err();
        assert_eq!(error.to_string(), "prefix length 33 of 10.0.0.0 is out of range: at most 32 for IPv4");
        assert!(Prefix::new("fd00::".parse().unwrap(), 129).is_err());
    }

    #[test]
    fn what_is_not_address_and_length_is_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/255.0.0.0",
            "10.0/8",
            "x/8",
            "10.0.0.0/999",
        ] {
            assert!(matches!(Prefix::parse_strict(text), Err(PrefixError::Syntax { .. })), "{text}");
        }
    }

    #[test]
    fn the_extremes_have_their_sizes_and_ends() {
        assert_eq!(prefix("::/0").size(), u128::MAX);
        assert_eq!(
            prefix("::/0").last(),
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse::<IpAddr>().unwrap()
        );
        assert_eq!(prefix("0.0.0.0/0").size(), 1 << 32);
        assert_eq!(prefix("10.0.0.1/32").size(), 1);
        assert_eq!(prefix("::/0").split().map(|(_, high)| high), Some(prefix("8000::/1")));
        assert_eq!(prefix("10.0.0.1/32").split(), None);
    }

    #[test]
    fn subnets_come_in_order_and_end() {
        let all: Vec<String> = prefix("10.0.0.0/30").subnets(31).unwrap().map(|p| p.to_string()).collect();
        assert_eq!(all, ["10.0.0.0/31", "10.0.0.2/31"]);
        assert_eq!(prefix("255.255.255.254/31").subnets(32).unwrap().count(), 2);
        assert_eq!(prefix("::/0").subnets(64).unwrap().nth(2), Some(prefix("0:0:0:2::/64")));
        assert!(prefix("10.0.0.0/24").subnets(23).is_none());
        assert!(prefix("10.0.0.0/24").subnets(33).is_none());
    }

    #[test]
    fn the_families_never_overlap() {
        assert!(!prefix("0.0.0.0/0").overlaps(&prefix("::/0")));
        assert!(!prefix("::/0").contains("10.0.0.1".parse().unwrap()));
    }
}
