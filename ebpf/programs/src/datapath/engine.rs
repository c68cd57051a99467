//! Frames for the WireGuard engine, which encrypts them.

use mesh_ebpf_types::{FrameTag, Vni, WIREGUARD_KERNEL_IFINDEX};

use super::service::packet::Packet;
use super::skb::Skb;
use super::verdict::Verdict;

/// Where the source MAC is in a frame.
const SOURCE: u32 = 6;

/// Gives the frame to the engine: with network and node in its source MAC to the one in user space,
/// in VXLAN to the kernel's. The engine may be gone by now and its device with it: then the kernel
/// drops the packet, since no other device ever has this index.
#[inline(always)]
pub(super) fn hand_over(
    skb: Skb,
    packet: Option<&mut Packet>,
    vni: Vni,
    peer: u16,
    ifindex: u32,
) -> Option<Verdict> {
    if ifindex == WIREGUARD_KERNEL_IFINDEX {
        let packet = match packet {
            Some(packet) => packet,
            // SAFETY: no reference to it exists yet.
            None => unsafe { Packet::take() }?,
        };
        return Some(comes_next(packet, vni, peer));
    }
    skb.store(SOURCE, &FrameTag { vni, peer }.mac().0).ok()?;
    Some(skb.send(ifindex))
}

/// Verdict for a frame that is to go to that node through the kernel's WireGuard.
#[inline(always)]
fn comes_next(packet: &mut Packet, vni: Vni, peer: u16) -> Verdict {
    packet.decided.tunnel_vni = u32::from_ne_bytes(vni.0);
    packet.decided.node = peer.into();
    Verdict::KernelWireguard
}
