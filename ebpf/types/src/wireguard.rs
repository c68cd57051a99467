//! The nodes inside WireGuard, and the two kinds of device that lead there.

/// Interface index of `meshwg0` where the engine in user space serves it: a device of frames, which
/// carry a [`crate::FrameTag`]. No other device ever gets it.
pub const WIREGUARD_USERSPACE_IFINDEX: u32 = 0x3FFF_FF03;

/// Interface index of `meshwg0` where it is the kernel's WireGuard: a device of IP packets, VXLAN
/// between tunnel addresses. Another index than the other's, so that nobody can take one for the
/// other. No other device ever gets it.
pub const WIREGUARD_KERNEL_IFINDEX: u32 = 0x3FFF_FF04;

/// Where tunnel addresses are taken from: 198.18.0.0/16, of the block for tests of devices (RFC
/// 2544), which no network has. They stand only inside WireGuard.
const TUNNELS: [u8; 2] = [198, 18];

/// Where the sources of packets in the tunnels are taken from, for keys of even generations:
/// 100.64.0.0/16, of the block that is shared between carriers (RFC 6598). For odd ones it is the
/// next. They stand only inside WireGuard.
const SOURCES: [u8; 2] = [100, 64];

/// The address of the node with that number inside the tunnels: where packets to it go.
#[inline]
pub const fn tunnel_address(peer: u16) -> [u8; 4] {
    let ([t0, t1], [p0, p1]) = (TUNNELS, peer.to_be_bytes());
    [t0, t1, p0, p1]
}

/// Where packets come from inside the tunnels that the node with that number encrypts with a key of
/// an odd generation, or of an even one. Two keys that a node has at a time are of either kind: the
/// kernel's WireGuard takes from a key only what comes from that key's address.
#[inline]
pub const fn tunnel_source(peer: u16, odd: bool) -> [u8; 4] {
    let ([s0, s1], [p0, p1]) = (SOURCES, peer.to_be_bytes());
    [s0, s1 | odd as u8, p0, p1]
}

/// The number of the node that sends from there, by whichever key; `None` if no node does.
#[inline]
pub const fn tunnel_sender([a0, a1, p0, p1]: [u8; 4]) -> Option<u16> {
    match u16::from_be_bytes([p0, p1]) {
        0 => None,
        peer if a0 == SOURCES[0] && a1 & !1 == SOURCES[1] => Some(peer),
        _ => None,
    }
}
