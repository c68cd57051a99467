//! The nodes inside WireGuard, and the two kinds of device that lead there.

/// Interface index of `meshwg0` where the engine in user space serves it: a device of frames, which carry a
/// [`crate::FrameTag`]. No other device ever gets it.
pub const WIREGUARD_USERSPACE_IFINDEX: u32 = 0x3FFF_FF03;

/// Interface index of `meshwg0` where it is the kernel's WireGuard: a device of IP packets, VXLAN between tunnel
/// addresses. Another index than the other's, so that nobody can take one for the other. No other device ever gets it.
pub const WIREGUARD_KERNEL_IFINDEX: u32 = 0x3FFF_FF04;

/// Where tunnel addresses are taken from: 198.18.0.0/16, of the block for tests of devices (RFC 2544), which no network
/// has. They stand only inside WireGuard.
const TUNNELS: [u8; 2] = [198, 18];

/// The address of the node with that number inside the tunnels.
#[inline]
pub const fn tunnel_address(peer: u16) -> [u8; 4] {
    let ([t0, t1], [p0, p1]) = (TUNNELS, peer.to_be_bytes());
    [t0, t1, p0, p1]
}

/// The number of the node with that tunnel address; `None` if it is no node's.
#[inline]
pub const fn tunnel_peer([a0, a1, p0, p1]: [u8; 4]) -> Option<u16> {
    match u16::from_be_bytes([p0, p1]) {
        0 => None,
        peer if a0 == TUNNELS[0] && a1 == TUNNELS[1] => Some(peer),
        _ => None,
    }
}
