//! The headers of an IPv6 packet.

use mesh_ebpf::ip;

use super::skb::Skb;

/// The upper layer of an IPv6 packet.
pub(super) struct UpperLayer {
    /// Its protocol. A later fragment has none, given as 59 ("no next header").
    pub(super) protocol: u8,
    /// Offset of its header in the frame.
    pub(super) offset: u32,
}

/// Finds the upper layer of an IPv6 packet. Returns `None` if there are too many extension headers,
/// or they are truncated.
#[inline(always)]
pub(super) fn upper_layer(skb: Skb, first: u8) -> Option<UpperLayer> {
    if matches!(first, ip::TCP | ip::UDP | ip::ICMPV6) {
        return Some(UpperLayer { protocol: first, offset: 54 });
    }
    match follow_extensions(skb, first) {
        0 => None,
        found => Some(UpperLayer { protocol: (found & 0xff) as u8, offset: found >> 8 }),
    }
}

/// Returns the offset of the upper layer's header, above 8 bits of its protocol; 0 if it cannot be
/// found.
#[inline(never)]
fn follow_extensions(skb: Skb, first: u8) -> u32 {
    let (mut protocol, mut offset) = (first, 54);
    for _ in 0..=ip::MAX_EXTENSIONS {
        // An upper layer may be shorter than four bytes; an extension header may not.
        let (bytes, whole) = skb.load(offset).map_or(([0; 4], false), |bytes| (bytes, true));
        match ip::step(protocol, bytes) {
            ip::Next::Upper => return offset << 8 | u32::from(protocol),
            _ if !whole => return 0,
            ip::Next::LaterFragment => return offset << 8 | 59,
            ip::Next::Header { next, skip } => {
                protocol = next;
                offset += skip;
            }
        }
    }
    0
}
