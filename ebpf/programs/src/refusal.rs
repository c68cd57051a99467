//! Answers to packets that no receiver accepts: a TCP reset, or "port unreachable".

use crate::checksum;
use crate::transport::{ACK, FIN, RST, SYN};

/// Quoted length of an IPv4 packet without options: its header and eight bytes (RFC 792).
pub const QUOTE_V4: usize = 28;
/// Quoted length of an IPv6 packet: its header and eight bytes.
pub const QUOTE_V6: usize = 48;
/// Length of a TCP header without options.
pub const TCP_HEADER: usize = 20;

/// Returns the reset that answers a segment (RFC 9293, 3.10.7.1), with checksum zero. `payload` is
/// the segment's payload length. Returns `None` if the segment is a reset itself.
#[inline(always)]
pub fn reset(segment: [u8; TCP_HEADER], payload: u32) -> Option<[u8; TCP_HEADER]> {
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, _, flags, ..] = segment;
    if flags & RST != 0 {
        return None;
    }
    if flags & ACK != 0 {
        return Some([d0, d1, s0, s1, a0, a1, a2, a3, 0, 0, 0, 0, 0x50, RST, 0, 0, 0, 0, 0, 0]);
    }
    let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let next = u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(payload).wrapping_add(control);
    let [n0, n1, n2, n3] = next.to_be_bytes();
    Some([d0, d1, s0, s1, 0, 0, 0, 0, n0, n1, n2, n3, 0x50, RST | ACK, 0, 0, 0, 0, 0, 0])
}

/// Returns the sum of a pseudo header; `addresses` are the bytes of both addresses, in either
/// order.
#[inline(always)]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: u32) -> u32 {
    checksum::add(length + u32::from(protocol), addresses)
}

/// Returns whether a transport checksum is only the pseudo header's sum, which a network card or
/// the receiver's kernel completes (`CHECKSUM_PARTIAL`).
#[inline(always)]
pub fn is_partial(field: [u8; 2], pseudo_sum: u32) -> bool {
    let [a, b] = checksum::finish(pseudo_sum);
    field == [!a, !b]
}

/// Returns an IPv4 header for the answer to a packet; `addresses` are the packet's own, source
/// first.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
pub fn ipv4(addresses: [u8; 8], protocol: u8, payload: u32) -> [u8; 20] {
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    let [l0, l1] = ((payload + 20) as u16).to_be_bytes();
    let header = [0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, protocol, 0, 0, d0, d1, d2, d3, s0, s1, s2, s3];
    let [c0, c1] = checksum::finish(checksum::add(0, &header));
    [0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, protocol, c0, c1, d0, d1, d2, d3, s0, s1, s2, s3]
}

/// Why a packet does not reach its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No receiver accepts packets to the port.
    Port,
    /// There is no route to the destination.
    Network,
    /// The hop limit is too low.
    HopLimit,
}

/// Returns the ICMP header of "destination unreachable" or "time exceeded" for a quote with this
/// sum; `pseudo_sum` is 0 for IPv4.
#[inline(always)]
pub fn unreachable(why: Unreachable, v6: bool, quote_sum: u32, pseudo_sum: u32) -> [u8; 8] {
    let (kind, code) = match (why, v6) {
        (Unreachable::Port, false) => (3, 3),
        (Unreachable::Network, false) | (Unreachable::HopLimit, true) => (3, 0),
        (Unreachable::Port, true) => (1, 4),
        (Unreachable::Network, true) => (1, 0),
        (Unreachable::HopLimit, false) => (11, 0),
    };
    let [c0, c1] = checksum::finish(checksum::add(quote_sum + pseudo_sum, &[kind, code]));
    [kind, code, c0, c1, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::TCP;

    fn segment(flags: u8) -> [u8; TCP_HEADER] {
        [0x9c, 0x40, 0, 80, 0, 0, 0, 10, 0, 0, 1, 0, 0x50, flags, 1, 1, 0, 0, 0, 0]
    }

    #[test]
    fn the_segments_sender_accepts_the_reset() {
        // Answers a SYN by acknowledging it.
        let answer = reset(segment(SYN), 0).unwrap();
        assert_eq!(answer[..4], [0, 80, 0x9c, 0x40]);
        assert_eq!((&answer[8..12], answer[13]), (&[0, 0, 0, 11][..], RST | ACK));
        // Answers a segment with ACK by continuing from there.
        let answer = reset(segment(ACK), 100).unwrap();
        assert_eq!((&answer[4..8], answer[13]), (&[0, 0, 1, 0][..], RST));
        // Counts data and a FIN without ACK.
        assert_eq!(reset(segment(FIN), 5).unwrap()[8..12], [0, 0, 0, 16]);
    }

    #[test]
    fn a_reset_is_never_answered() {
        assert_eq!(reset(segment(RST), 0), None);
        assert_eq!(reset(segment(RST | ACK), 0), None);
    }

    #[test]
    fn an_incomplete_checksum_is_distinguished_from_a_complete_one() {
        let sum = pseudo_header(&[10, 64, 0, 5, 10, 64, 3, 9], TCP, 20);
        let [a, b] = checksum::finish(sum);
        assert!(is_partial([!a, !b], sum));
        assert!(!is_partial([a, b], sum));
    }

    #[test]
    fn headers_of_answers_have_valid_checksums() {
        let header = ipv4([10, 64, 0, 5, 10, 64, 3, 9], 6, 20);
        assert_eq!(checksum::finish(checksum::add(0, &header)), [0, 0]);
        assert_eq!(header[12..], [10, 64, 3, 9, 10, 64, 0, 5]);
        let quote = [7; QUOTE_V4];
        let icmp = unreachable(Unreachable::Port, false, checksum::add(0, &quote), 0);
        assert_eq!(checksum::finish(checksum::add(checksum::add(0, &icmp), &quote)), [0, 0]);
    }
}
