//! Offsets of the layers in an inner Ethernet frame. No length is used before it is checked.

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// IP protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// IP protocol number of UDP.
pub(crate) const UDP: u8 = 17;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
/// More extension headers than any legitimate packet has.
const MAX_EXTENSIONS: usize = 8;

/// A frame that holds one whole, unfragmented TCP segment or UDP datagram over IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layers {
    /// Whether it is IPv6.
    pub(crate) v6: bool,
    /// [`TCP`] or [`UDP`].
    pub(crate) protocol: u8,
    /// Offset of the TCP or UDP header in the frame; the IP header is at [`ETHERNET`].
    pub(crate) l4: usize,
    /// Offset of the payload in the frame: headers end here.
    pub(crate) payload: usize,
}

impl Layers {
    /// Finds the layers; `None` unless it is a whole TCP or UDP packet. Checks that all headers are
    /// present, but not that the packet's lengths agree with the frame's.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        let ethertype = [frame[12], frame[13]];
        let (v6, protocol, l4) = match (ethertype, ip.first()? >> 4) {
            (IPV4, 4) => {
                let header = usize::from(ip[0] & 15) * 4;
                // Every fragment, including the first, has MF or an offset.
                if header < 20 || ip.len() < header || ip[6] & 0x3f != 0 || ip[7] != 0 {
                    return None;
                }
                (false, ip[9], ETHERNET + header)
            }
            (IPV6, 6) if ip.len() >= 40 => {
                let (protocol, l4) = skip_extensions(frame, ip[6], ETHERNET + 40)?;
                (true, protocol, l4)
            }
            _ => return None,
        };
        let header = match protocol {
            TCP => usize::from(frame.get(l4 + 12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let payload = l4 + header;
        let least = if protocol == TCP { 20 } else { 8 };
        (header >= least && payload <= frame.len()).then_some(Self { v6, protocol, l4, payload })
    }

    /// Returns the range of the addresses for the pseudo-header.
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        if self.v6 { ETHERNET + 8..ETHERNET + 40 } else { ETHERNET + 12..ETHERNET + 20 }
    }

    /// Offset of the checksum from the layer 4 header.
    pub(crate) fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// Returns the frame's length according to the IP header.
    pub(crate) fn stated_len(&self, frame: &[u8]) -> usize {
        let at = if self.v6 { ETHERNET + 4 } else { ETHERNET + 2 };
        let stated = usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        ETHERNET + stated + if self.v6 { 40 } else { 0 }
    }

    /// Writes the IP header's length for a frame of `len` bytes; the caller updates the IPv4
    /// checksum. Returns `None` if the length does not fit.
    pub(crate) fn set_len(&self, header: &mut [u8], len: usize) -> Option<()> {
        let (at, base) = if self.v6 { (ETHERNET + 4, 40) } else { (ETHERNET + 2, 0) };
        let stated = u16::try_from(len.checked_sub(ETHERNET + base)?).ok()?;
        header[at..at + 2].copy_from_slice(&stated.to_be_bytes());
        Some(())
    }
}

/// Follows IPv6 extension headers to the upper layer. Fragments are not followed.
fn skip_extensions(frame: &[u8], first: u8, mut at: usize) -> Option<(u8, usize)> {
    let mut next = first;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let header = frame.get(at..at + 8)?;
                next = header[0];
                at += 8 + usize::from(header[1]) * 8;
            }
            _ => return Some((next, at)),
        }
    }
    None
}

/// Returns a hash that is equal for all packets of a flow, to spread flows over source ports (RFC
/// 7348, section 5).
pub(crate) fn flow_hash(frame: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut mix = |bytes: &[u8]| {
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            hash = (hash ^ u32::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b1).rotate_left(13);
        }
        for byte in rest {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x9e37_79b1).rotate_left(13);
        }
    };
    match Layers::of(frame) {
        Some(layers) => {
            mix(&frame[layers.addresses()]);
            mix(&frame[layers.l4..layers.l4 + 4]);
            mix(&[layers.protocol]);
        }
        // Other IP packets, including fragments: hash the addresses, so that all fragments of a
        // packet take one path.
        None if frame.get(12..14) == Some(&IPV4) && frame.len() >= ETHERNET + 20 => {
            mix(&frame[ETHERNET + 12..ETHERNET + 20]);
        }
        None if frame.get(12..14) == Some(&IPV6) && frame.len() >= ETHERNET + 40 => {
            mix(&frame[ETHERNET + 8..ETHERNET + 40]);
        }
        None => mix(&frame[..frame.len().min(12)]),
    }
    hash ^ hash >> 15
}
