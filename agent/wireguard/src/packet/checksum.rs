//! The Internet checksum (RFC 1071) in memory order: sums, folds and stored fields all use the
//! machine's byte order, which the arithmetic allows.

use multiversion::multiversion;

/// Returns the unfolded sum of `bytes` as 16-bit words. Adds long runs in lanes, so that the
/// compiler can use the CPU's widest vectors.
#[multiversion(targets("x86_64+avx2"))]
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 16];
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (words, odd) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// Folds a sum to 16 bits (ones' complement).
#[expect(clippy::cast_possible_truncation, reason = "after four folds the value has 16 bits")]
pub(crate) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Returns the sum of a TCP or UDP pseudo-header: both addresses, the protocol, and the layer-4
/// length (RFC 9293, RFC 8200). IPv6 has a 32-bit length field, but the sum is the same for lengths
/// up to 16 bits.
pub(crate) fn pseudo_header(addresses: &[u8], protocol: u8, length: u16) -> u64 {
    sum(addresses) + u64::from(u16::from(protocol).to_be()) + u64::from(length.to_be())
}

/// Writes an IPv4 header's checksum. `header` is the whole header with options, at least 20 bytes.
pub(crate) fn set_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !fold(sum(header));
    header[10..12].copy_from_slice(&checksum.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_in_lanes_equals_the_sum_word_by_word_for_every_length() {
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * 151 + 7).to_le_bytes()[0]).collect();
        for len in 0..bytes.len() {
            let plain: u64 = bytes[..len]
                .chunks(2)
                .map(|w| u64::from(u16::from_ne_bytes([w[0], w.get(1).copied().unwrap_or(0)])))
                .sum();
            assert_eq!(fold(sum(&bytes[..len])), fold(plain), "length {len}");
        }
    }

    #[test]
    fn a_known_ipv4_header_gets_its_known_checksum() {
        let mut header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xff, 0xff, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        set_ipv4(&mut header);
        assert_eq!(header[10..12], [0xb8, 0x61]);
    }
}
