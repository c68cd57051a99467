//! Sends packets of the routing mesh to another node.

use mesh_ebpf::headers::{Buffer, ETHERNET, TO_TRAFFIC_CLASS, traffic_class};
use mesh_ebpf::vxlan::{self, OUTER};
use mesh_ebpf_types::{BACKEND_ENCRYPTED, Encapsulation, RETURNS_MAC, Reason, Vni};

use super::packet::Packet;
use crate::datapath::count::dropped;
use crate::datapath::encapsulate::send_by_device;
use crate::datapath::engine::pass_to_engine;
use crate::datapath::maps;
use crate::datapath::sent;
use crate::datapath::skb::Skb;
use crate::datapath::verdict::Verdict;

/// Sends a packet of a backend's flow to the node in [`super::packet::Packet`].
#[inline(never)]
pub(super) fn send(skb: Skb, packet: &mut Packet) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Pass };
    let (vni, node) = (packet.decided.tunnel_vni, packet.decided.node);
    let Some(backend) = maps::backend(packet.decided.number) else {
        return dropped(skb, Vni::NONE, Reason::NoBackend);
    };
    if backend.flags & BACKEND_ENCRYPTED != 0 {
        return through_wireguard(skb, packet, vni, node);
    }
    let Some(local) = config.local.to_v4() else { return dropped(skb, Vni::NONE, Reason::NotConfigured) };
    if packet.decided.fits != 0 && config.encapsulation == Encapsulation::Direct as u8 {
        let verdict = direct(skb, vni, node, packet.decided.returns);
        if verdict != Verdict::Pass {
            return verdict;
        }
    }
    if packet.decided.returns != 0 && skb.store(6, &RETURNS_MAC.0).is_err() {
        return dropped(skb, Vni::NONE, Reason::EncapsulationFailed);
    }
    let (local, node) = (u32::from_be_bytes(local), u32::from_be(node));
    match send_by_device(skb, vni, local, node, config.vxlan_ifindex) {
        Verdict::Pass => dropped(skb, Vni::NONE, Reason::EncapsulationFailed),
        verdict => verdict,
    }
}

/// Encodes a node that is reached through WireGuard for the `node` of a packet or entry: its number
/// after two zero bytes, with which no node's address begins.
#[inline(always)]
pub(in crate::datapath) const fn of_peer(peer: u16) -> u32 {
    let [p0, p1] = peer.to_be_bytes();
    u32::from_ne_bytes([0, 0, p0, p1])
}

/// Returns whether a packet's `node` is a number in WireGuard.
#[inline(always)]
pub(in crate::datapath) const fn is_peer(node: u32) -> bool {
    let [z0, z1, ..] = node.to_ne_bytes();
    z0 | z1 == 0
}

/// Passes the packet to the WireGuard engine, or drops it.
#[inline(never)]
fn through_wireguard(skb: Skb, packet: &mut Packet, vni: u32, node: u32) -> Verdict {
    let ifindex = maps::config().map_or(0, |config| config.wireguard_ifindex);
    let [.., p0, p1] = node.to_ne_bytes();
    let peer = u16::from_be_bytes([p0, p1]);
    if !is_peer(node) || peer == 0 || ifindex == 0 {
        return dropped(skb, Vni::NONE, Reason::NoKey);
    }
    match pass_to_engine(skb, Some(packet), Vni::new(vni), peer, ifindex) {
        Some(verdict) => verdict,
        None => dropped(skb, Vni::NONE, Reason::EncapsulationFailed),
    }
}

/// Writes the outer headers. Returns [`Verdict::Pass`], with the packet unchanged, if the kernel
/// refuses.
#[inline(never)]
fn direct(skb: Skb, vni: u32, node: u32, returns: u32) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Pass };
    let (Some(source), Ok(inner)) = (config.local.to_v4(), skb.load::<TO_TRAFFIC_CLASS>(0)) else {
        return Verdict::Pass;
    };
    let outer = vxlan::Encapsulation {
        source,
        destination: node.to_ne_bytes(),
        port: config.vxlan_port,
        vni: Vni::new(vni),
        hash: sent::hash_of(skb),
        traffic_class: traffic_class(&inner),
        length: skb.length(),
    };
    if skb.grow_outer().is_err() {
        return Verdict::Pass;
    }
    let mut frame = Buffer::<{ OUTER + ETHERNET }>::new();
    outer.write(&mut frame.bytes);
    // The inner Ethernet header names nobody: the VNI says what the packet is.
    if returns != 0 {
        frame.bytes[OUTER + 6..OUTER + 12].copy_from_slice(&RETURNS_MAC.0);
    }
    frame.bytes[OUTER + 12..].copy_from_slice(&inner[12..ETHERNET]);
    if skb.store(0, &frame.bytes).is_err() {
        return dropped(skb, Vni::NONE, Reason::EncapsulationFailed);
    }
    skb.route(config.underlay_ifindex)
}
