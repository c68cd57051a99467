//! Sends to another node: writes the outer headers, or leaves that to the VXLAN device.

use mesh_ebpf::headers::{Buffer, ETHERNET, TO_TRAFFIC_CLASS, traffic_class};
use mesh_ebpf::vxlan::{self, OUTER};
use mesh_ebpf_types::{Block, ENCRYPTED, Encapsulation, Reason, Vni};

use super::count::count;
use super::sending::{Sending, packet_length};
use super::service::packet::Packet;
use super::skb::{Refused, Skb, TunnelKey};
use super::verdict::Verdict;
use super::{encrypt, maps, sent, too_big};

const FRAME: usize = OUTER + ETHERNET;

#[inline(always)]
pub(super) fn encapsulate(
    packet: &mut Packet,
    sending: &Sending<'_>,
    block: &Block,
) -> Result<Verdict, Reason> {
    let Sending { skb, generation, vni, config, network, headers } = *sending;
    if network.flags & ENCRYPTED != 0 {
        return encrypt::encrypt(packet, sending, block.peer);
    }
    let (Some(local), Some(remote)) = (config.local.to_v4(), block.tunnel.to_v4()) else {
        return Err(Reason::NotConfigured);
    };
    let mut direct = config.encapsulation == Encapsulation::Direct as u8;
    if packet_length(sending) > network.mtu {
        if headers.dont_fragment() {
            let verdict = too_big::answer(skb, u32::from_ne_bytes(vni.0), network.mtu);
            if verdict != Verdict::Pass {
                return Ok(verdict);
            }
        }
        // The device can fragment; this program cannot.
        direct = false;
    }
    count(skb, vni, Reason::ForwardedRemote);
    if direct {
        let remote = u32::from_ne_bytes(remote);
        sent::remember_remote(skb, generation, remote);
        match encapsulate_here(skb, u32::from_ne_bytes(vni.0), remote, sent::hash_of(skb)) {
            Verdict::Pass => {}
            Verdict::Drop => return Err(Reason::EncapsulationFailed),
            verdict => return Ok(verdict),
        }
    }
    let (local, remote) = (u32::from_be_bytes(local), u32::from_be_bytes(remote));
    match send_by_device(skb, vni.number(), local, remote, config.vxlan_ifindex) {
        Verdict::Pass => Err(Reason::EncapsulationFailed),
        verdict => Ok(verdict),
    }
}

/// Lets the VXLAN device encapsulate. Returns [`Verdict::Pass`] if the kernel refuses.
#[inline(never)]
pub(super) fn send_by_device(skb: Skb, vni: u32, local_ipv4: u32, remote_ipv4: u32, ifindex: u32) -> Verdict {
    let mut key = TunnelKey {
        tunnel_id: vni,
        remote_ipv4,
        remote_rest: [0; 3],
        tos: 0,
        ttl: 64,
        extension: 0,
        label: 0,
        local_ipv4,
        local_rest: [0; 3],
    };
    match skb.set_tunnel(&mut key) {
        Ok(()) => {
            // The device keeps the mark on the packet that it sends.
            skb.mark();
            skb.send(ifindex)
        }
        Err(Refused) => Verdict::Pass,
    }
}

/// Writes the outer headers. Returns [`Verdict::Pass`], with the packet unchanged, if the kernel
/// refuses. It does so on old kernels, and for a packet that still counts as encapsulated since it
/// was received (sent by a container that routes). Returns [`Verdict::Drop`] if it refuses the
/// headers after making room for them.
///
/// A leaf function: before 6.8 the kernel counts each call's stack in steps of 32 bytes, and the
/// caller's stack frame is large.
#[inline(never)]
fn encapsulate_here(skb: Skb, vni: u32, remote: u32, hash: u32) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Pass };
    let (Some(source), Ok(inner)) = (config.local.to_v4(), skb.load::<TO_TRAFFIC_CLASS>(0)) else {
        return Verdict::Pass;
    };
    let outer = vxlan::Encapsulation {
        source,
        destination: remote.to_ne_bytes(),
        port: config.vxlan_port,
        vni: Vni(vni.to_ne_bytes()),
        hash,
        traffic_class: traffic_class(&inner),
        length: skb.length(),
    };
    if skb.grow_outer().is_err() {
        return Verdict::Pass;
    }
    let mut frame = Buffer::<FRAME>::new();
    outer.write(&mut frame.bytes);
    frame.bytes[OUTER..].copy_from_slice(&inner[..ETHERNET]);
    if skb.store(0, &frame.bytes).is_err() {
        return Verdict::Drop;
    }
    skb.route(config.underlay_ifindex)
}
