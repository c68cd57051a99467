//! Drops tunnel packets that arrive on interfaces where no node is. Machines behind an interface of
//! the host (a container of another runtime on its bridge, say) can forge a node's address.
//!
//! Genuine tunnel packets arrive at the data-path device, whose own program checks them, or at an
//! interface through which the kernel routes to that node.

use mesh_ebpf::headers::ETHERTYPE_IPV4;
use mesh_ebpf::ip;
use mesh_ebpf_types::{Address, Reason, Vni};

use super::count::dropped;
use super::maps;
use super::route::Route;
use super::skb::Skb;
use super::start::Start;
use super::verdict::Verdict;

/// IPv4 without options, and ports.
const READ: usize = 24;
/// The same after an Ethernet header.
const READ_FRAME: usize = READ + 14;

/// Handles an interface with Ethernet headers on which published ports are not answered.
#[inline(always)]
pub(super) fn ethernet(skb: Skb) -> Verdict {
    // The stack also accepts a packet with VLAN tag 0.
    if skb.vlan() != 0 || skb.is_for_another_host() {
        return Verdict::Pass;
    }
    verdict(skb, skb.start::<READ_FRAME>(), 14)
}

/// As [`ethernet`], for an interface whose packets begin with the IP header.
#[inline(always)]
pub(super) fn layer3(skb: Skb) -> Verdict {
    verdict(skb, skb.start::<READ>(), 0)
}

/// Returns [`Verdict::Pass`], or drops the packet. `start` holds its first bytes, if they are
/// contiguous. The IP header is at `at`.
#[inline(always)]
fn verdict<const N: usize>(skb: Skb, start: Option<Start<N>>, at: u32) -> Verdict {
    if skb.ethertype() != ETHERTYPE_IPV4 || start.is_some_and(|start| start.byte(at as usize + 9) != ip::UDP)
    {
        return Verdict::Pass;
    }
    if is_foreign(skb, at) { dropped(skb, Vni::NONE, Reason::ForeignTunnel) } else { Verdict::Pass }
}

/// Returns whether an IPv4 packet is for a tunnel port, with the source address of a node that is
/// not behind this interface.
#[inline(never)]
fn is_foreign(skb: Skb, at: u32) -> bool {
    let Some(config) = maps::config() else { return false };
    let Ok(header) = skb.load::<20>(at) else { return false };
    let [version, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    // Later fragments have no port, and are useless without the first.
    if protocol != ip::UDP || f0 & 0x1f != 0 || f1 != 0 {
        return false;
    }
    let Ok(port) = skb.load::<2>(at + u32::from(version & 0x0f) * 4 + 2) else { return false };
    if port != config.vxlan_port && port != config.wireguard_port || port == [0; 2] {
        return false;
    }
    let (source, destination) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
    if !maps::is_member(Address::from_v4(source)) {
        return false;
    }
    let (there, here) = (u32::from_ne_bytes(source), u32::from_ne_bytes(destination));
    !skb.certainly_routes_out(&mut Route::new(skb.ifindex(), ip::UDP, here, there))
}
