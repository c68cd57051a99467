//! "Fragmentation needed" (RFC 1191) and "packet too big" (RFC 4443, 3.2), built in place of the
//! packet.

use crate::checksum;
use crate::ip::ICMPV6;

/// Quoted length of the packet: enough for the longest IPv4 header and 36 bytes more. The kernel
/// does not truncate a packet before its own checksum field, which for TCP ends 18 bytes into the
/// segment.
pub const QUOTE: usize = 96;
/// Bytes between the Ethernet header and the quoted packet, for IPv4.
pub const V4_HEADERS: usize = 28;
/// Bytes between the Ethernet header and the quoted packet, for IPv6.
pub const V6_HEADERS: usize = 48;

/// Returns the IPv4 and ICMP headers before the quote, from the packet's destination to its source.
/// `addresses` are the packet's own, source first; `quote_sum` is the quote's sum
/// ([`checksum::add`]).
#[inline(always)]
pub fn v4(addresses: [u8; 8], mtu: u16, quote_sum: u32) -> [u8; V4_HEADERS] {
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    let [m0, m1] = mtu.to_be_bytes();
    #[expect(clippy::cast_possible_truncation, reason = "a constant below 256")]
    let total = (V4_HEADERS + QUOTE) as u8;
    let ip = [0x45, 0, 0, total, 0, 0, 0, 0, 64, 1, 0, 0, d0, d1, d2, d3, s0, s1, s2, s3];
    let [i0, i1] = checksum::finish(checksum::add(0, &ip));
    let icmp = [3, 4, 0, 0, 0, 0, m0, m1];
    let [c0, c1] = checksum::finish(checksum::add(quote_sum, &icmp));
    [0x45, 0, 0, total, 0, 0, 0, 0, 64, 1, i0, i1, d0, d1, d2, d3, s0, s1, s2, s3, 3, 4, c0, c1, 0, 0, m0, m1]
}

/// Writes the IPv6 and ICMP headers before the quote into zeroes; parameters as in [`v4`].
#[inline(always)]
pub fn v6(addresses: &[u8; 32], mtu: u16, quote_sum: u32, bytes: &mut [u8; V6_HEADERS]) {
    #[expect(clippy::cast_possible_truncation, reason = "a constant below 256")]
    let payload = (8 + QUOTE) as u8;
    bytes[0] = 0x60;
    bytes[5] = payload;
    bytes[6] = ICMPV6;
    bytes[7] = 64;
    bytes[8..24].copy_from_slice(&addresses[16..]);
    bytes[24..40].copy_from_slice(&addresses[..16]);
    bytes[40] = 2;
    bytes[46..48].copy_from_slice(&mtu.to_be_bytes());
    let pseudo_header = u32::from(ICMPV6) + u32::from(payload);
    let sum = checksum::add(quote_sum + pseudo_header, &bytes[8..]);
    bytes[42..44].copy_from_slice(&checksum::finish(sum));
}
