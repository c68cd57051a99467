//! The header that precedes each frame on a TAP device with `IFF_VNET_HDR`: `struct virtio_net_hdr`
//! (`linux/virtio_net.h`), in the machine's byte order.

/// Bytes of the header.
pub(crate) const LEN: usize = mesh_sys::tap::HEADER;

/// The checksum at `csum_start + csum_offset` is incomplete: the field holds the pseudo-header's
/// sum.
pub(crate) const NEEDS_CSUM: u8 = 1;

/// One packet of at most the MTU.
pub(crate) const GSO_NONE: u8 = 0;
/// A TCP super-packet over IPv4.
pub(crate) const GSO_TCPV4: u8 = 1;
/// A TCP super-packet over IPv6.
pub(crate) const GSO_TCPV6: u8 = 4;
/// UDP datagrams of one flow.
pub(crate) const GSO_UDP_L4: u8 = 5;
/// Flag in the type: only the first segment may carry CWR.
pub(crate) const GSO_ECN: u8 = 0x80;

/// A decoded header. Its lengths are claims of the sender; the packet itself is authoritative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    /// [`NEEDS_CSUM`] or 0.
    pub(crate) flags: u8,
    /// One of the `GSO_` values, perhaps with [`GSO_ECN`].
    pub(crate) gso_type: u8,
    /// Length of the headers up to the payload.
    pub(crate) hdr_len: u16,
    /// Payload bytes per segment.
    pub(crate) gso_size: u16,
    /// Start of the checksummed range, from the frame's first byte.
    pub(crate) csum_start: u16,
    /// Offset of the checksum field from `csum_start`.
    pub(crate) csum_offset: u16,
}

impl VnetHeader {
    /// Splits data read from the device into header and frame.
    pub(crate) fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (h, frame) = bytes.split_first_chunk::<LEN>()?;
        let word = |i: usize| u16::from_ne_bytes([h[i], h[i + 1]]);
        Some((
            Self {
                flags: h[0],
                gso_type: h[1],
                hdr_len: word(2),
                gso_size: word(4),
                csum_start: word(6),
                csum_offset: word(8),
            },
            frame,
        ))
    }

    /// Returns the header's bytes.
    pub(crate) fn bytes(&self) -> [u8; LEN] {
        let mut h = [0; LEN];
        h[0] = self.flags;
        h[1] = self.gso_type;
        for (i, word) in
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].into_iter().enumerate()
        {
            h[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_ne_bytes());
        }
        h
    }

    /// Returns the GSO type without its flags.
    pub(crate) fn kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}
