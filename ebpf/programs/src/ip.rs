//! Protocol numbers, and traversal of IPv6 extension headers.

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;
/// Protocol number of IPv6's fragment header.
pub const FRAGMENT: u8 = 44;
/// Protocol number of ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// Maximum number of IPv6 extension headers that are followed.
pub const MAX_EXTENSIONS: usize = 6;

/// The header after an IPv6 extension header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// `protocol` is the upper layer, or an extension header that cannot be followed.
    Upper,
    /// Another header of this kind, this many bytes further.
    Header {
        /// Its kind.
        next: u8,
        /// Distance in bytes.
        skip: u32,
    },
    /// The payload of a later fragment, without upper-layer header.
    LaterFragment,
}

/// Steps over one header (RFC 8200, 4). `protocol` is its kind, `bytes` are its first four bytes.
#[inline(always)]
pub const fn step(protocol: u8, bytes: [u8; 4]) -> Next {
    let [next, length, o0, o1] = bytes;
    match protocol {
        // Hop-by-hop options, routing, destination options; mobility, HIP and shim6 have the same
        // layout.
        0 | 43 | 60 | 135 | 139 | 140 => Next::Header { next, skip: (length as u32 + 1) * 8 },
        44 => {
            if u16::from_be_bytes([o0, o1]) & 0xfff8 != 0 {
                Next::LaterFragment
            } else {
                Next::Header { next, skip: 8 }
            }
        }
        // Authentication header: length in units of four bytes, minus two.
        51 => Next::Header { next, skip: (length as u32 + 2) * 4 },
        _ => Next::Upper,
    }
}

/// Returns the IPv4 header's TTL, protocol and checksum, given in this order, after one more hop
/// (RFC 1624).
#[inline(always)]
pub const fn lower_ttl([ttl, protocol, c0, c1]: [u8; 4]) -> [u8; 4] {
    let sum = u16::from_be_bytes([c0, c1]) as u32 + 0x100;
    // The checksum of a valid header is never 0xffff: not all of its bytes are zero.
    let [.., c0, c1] = (sum + (sum >= 0xffff) as u32).to_be_bytes();
    [ttl.wrapping_sub(1), protocol, c0, c1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    #[test]
    fn a_header_with_decremented_ttl_has_a_valid_checksum() {
        for (ttl, identification) in
            (1..=255).flat_map(|ttl| (0..=0xffff_u16).step_by(251).map(move |id| (ttl, id)))
        {
            let [i0, i1] = identification.to_be_bytes();
            let mut header =
                [0x45, 0, 0, 28, i0, i1, 0x40, 0, ttl, UDP, 0, 0, 10, 64, 0, 5, 192, 168, 77, 11];
            let [c0, c1] = checksum::finish(checksum::add(0, &header));
            header[8..12].copy_from_slice(&lower_ttl([ttl, UDP, c0, c1]));
            assert_eq!(header[8], ttl - 1);
            assert_eq!(checksum::finish(checksum::add(0, &header)), [0, 0]);
            assert_ne!(header[10..12], [0xff; 2]);
        }
    }
}
