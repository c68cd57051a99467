//! To another node of an encrypted network: into the WireGuard engine's device, or nowhere.

use mesh_ebpf_types::{FrameTag, Reason, Vni, WIREGUARD_KERNEL_IFINDEX};

use super::count::count;
use super::encapsulate::packet_length;
use super::endpoint::Sending;
use super::service::packet::Packet;
use super::skb::Skb;
use super::{Verdict, maps, sent, too_big, wireguard_kernel};

/// Where the source MAC is in a frame.
const SOURCE: u32 = 6;

#[inline(always)]
pub(super) fn encrypt(packet: &mut Packet, sending: &Sending<'_>, peer: u16) -> Result<Verdict, Reason> {
    let Sending { skb, generation, vni, config, network, headers } = *sending;
    if peer == 0 || config.wireguard_ifindex == 0 {
        return Err(Reason::NoKey);
    }
    if packet_length(sending) > network.mtu && headers.dont_fragment() {
        let verdict = too_big::answer(skb, u32::from_ne_bytes(vni.0), network.mtu);
        return if verdict == Verdict::Pass { Err(Reason::TooBig) } else { Ok(verdict) };
    }
    sent::remember_encrypted(skb, generation, peer.into());
    count(skb, vni, Reason::ForwardedRemote);
    hand_over(skb, Some(packet), vni, peer, config.wireguard_ifindex).ok_or(Reason::EncapsulationFailed)
}

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
            None => unsafe { maps::packet() }?,
        };
        return Some(wireguard_kernel::comes_next(packet, vni, peer));
    }
    skb.store(SOURCE, &FrameTag { vni, peer }.mac().0).ok()?;
    Some(skb.send(ifindex))
}
