//! Frames for the WireGuard engine, which encrypts them.

use mesh_ebpf_types::{FrameTag, Vni, WIREGUARD_KERNEL_IFINDEX};

use super::service::packet::Packet;
use super::skb::Skb;
use super::verdict::Verdict;

/// Offset of the source MAC in a frame.
const SOURCE: u32 = 6;

/// Passes the frame to the WireGuard engine. The engine in user space gets network and node in the
/// source MAC, the kernel's engine gets VXLAN. If the engine and its device are gone, the kernel
/// drops the packet: no other device ever has this index.
#[inline(always)]
pub(super) fn pass_to_engine(
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
        return Some(kernel_wireguard(packet, vni, peer));
    }
    skb.store(SOURCE, &FrameTag { vni, peer }.mac().0).ok()?;
    Some(skb.send(ifindex))
}

/// Returns the verdict for a frame that goes to a node through the kernel's WireGuard.
#[inline(always)]
fn kernel_wireguard(packet: &mut Packet, vni: Vni, peer: u16) -> Verdict {
    packet.decided.tunnel_vni = u32::from_ne_bytes(vni.0);
    packet.decided.node = peer.into();
    Verdict::KernelWireguard
}
