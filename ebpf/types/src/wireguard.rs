//! Addresses of nodes inside WireGuard, and the two kinds of WireGuard device.

/// Interface index of `meshwg0` if the engine in user space serves it. This device carries frames
/// with a [`crate::FrameTag`]. No other device ever gets this index.
pub const WIREGUARD_USERSPACE_IFINDEX: u32 = 0x3FFF_FF03;

/// Interface index of `meshwg0` if it is the kernel's WireGuard. This device carries IP packets:
/// VXLAN between tunnel addresses. The index differs from the other kind's, so that the two are
/// never confused. No other device ever gets it.
pub const WIREGUARD_KERNEL_IFINDEX: u32 = 0x3FFF_FF04;

/// The range of tunnel addresses: 198.18.0.0/16, of the block for device tests (RFC 2544), which no
/// network may use. They occur only inside WireGuard.
const TUNNELS: [u8; 2] = [198, 18];

/// The range of source addresses in tunnels for keys of even generations: 100.64.0.0/16, of the
/// shared block (RFC 6598). Keys of odd generations use the next /16. They occur only inside
/// WireGuard.
const SOURCES: [u8; 2] = [100, 64];

/// Returns the tunnel address of the node with this number: the destination of packets to it.
#[inline]
pub const fn tunnel_address(peer: u16) -> [u8; 4] {
    let ([t0, t1], [p0, p1]) = (TUNNELS, peer.to_be_bytes());
    [t0, t1, p0, p1]
}

/// Returns the source address inside the tunnels of packets that the node with this number encrypts
/// with a key of an odd or even generation. A node's old and new key differ in this. The kernel's
/// WireGuard accepts from a key only packets with that key's source address.
#[inline]
pub const fn tunnel_source(peer: u16, odd: bool) -> [u8; 4] {
    let ([s0, s1], [p0, p1]) = (SOURCES, peer.to_be_bytes());
    [s0, s1 | odd as u8, p0, p1]
}

/// Returns the number of the node that sends from this address with either key; `None` if there is
/// none.
#[inline]
pub const fn tunnel_sender([a0, a1, p0, p1]: [u8; 4]) -> Option<u16> {
    match u16::from_be_bytes([p0, p1]) {
        0 => None,
        peer if a0 == SOURCES[0] && a1 & !1 == SOURCES[1] => Some(peer),
        _ => None,
    }
}
