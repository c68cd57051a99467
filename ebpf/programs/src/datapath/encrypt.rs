//! Sends to another node of an encrypted network, only through the WireGuard engine's device.

use mesh_ebpf_types::Reason;

use super::count::count;
use super::engine::pass_to_engine;
use super::sending::{Sending, packet_length};
use super::service::packet::Packet;
use super::verdict::Verdict;
use super::{sent, too_big};

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
    pass_to_engine(skb, Some(packet), vni, peer, config.wireguard_ifindex).ok_or(Reason::EncapsulationFailed)
}
