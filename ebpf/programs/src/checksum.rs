//! The Internet checksum (RFC 1071).

/// The one's-complement sum of `bytes` as 16-bit words, added to `sum`; an odd last byte is padded
/// with zero.
#[inline(always)]
pub fn add(mut sum: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    for word in words {
        sum += u32::from(u16::from_be_bytes(*word));
    }
    if let [last] = rest {
        sum += u32::from(*last) << 8;
    }
    sum
}

/// Returns the checksum for a header from a sum of at most 65535 words.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "twice folded, the sum has 16 bits")]
pub const fn finish(sum: u32) -> [u8; 2] {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}

/// Converts a sum that the kernel computed in its own byte order (`bpf_csum_diff`) for [`add`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "twice folded, the sum has 16 bits")]
pub const fn from_native(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::from_be(sum as u16) as u32
}
