//! Lengths of packets, and of the segments of super-packets.

use mesh_ebpf::ip;

use super::skb::Skb;

/// The segment size of a super-packet with segments of different sizes: SCTP's, made of chunks that
/// fit the sender's device.
const GSO_BY_FRAGS: u32 = 0xffff;

/// Returns the length of the IP packet; of a super-packet, that of its largest segment; 0 if its
/// segments differ. `upper` returns protocol and offset of the upper layer, which only
/// super-packets need.
#[inline(always)]
pub(super) fn length(skb: Skb, upper: impl FnOnce() -> (u8, u32)) -> u32 {
    let payload = match skb.gso_size() {
        0 => return skb.length() - 14,
        GSO_BY_FRAGS => return 0,
        payload => payload,
    };
    let (protocol, offset) = upper();
    let header = if protocol == ip::TCP {
        let [data_offset] = skb.load::<1>(offset + 12).unwrap_or([0x50]);
        u32::from(data_offset >> 4) * 4
    } else {
        8
    };
    payload + offset - 14 + header
}
