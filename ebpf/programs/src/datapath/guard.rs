//! Tunnels' packets that arrive where no node is. Whoever is behind an interface of the host may
//! write a node's address into a packet: a container of another runtime, on a bridge of its own.
//!
//! A node's packets arrive at the data-path device, whose own program looks at them, or at an
//! interface that the kernel has a route to that node by.

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

/// An interface with Ethernet headers, where published ports are not answered.
#[inline(always)]
pub(super) fn ethernet(skb: Skb) -> Verdict {
    // A tag without a number does not keep the stack from taking the packet.
    if skb.vlan() != 0 || skb.is_for_another_host() {
        return Verdict::Pass;
    }
    verdict(skb, skb.start::<READ_FRAME>(), 14)
}

/// Likewise, one whose packets begin with the IP header.
#[inline(always)]
pub(super) fn layer3(skb: Skb) -> Verdict {
    verdict(skb, skb.start::<READ>(), 0)
}

/// [`Verdict::Pass`], or drops the packet. `start` is its first bytes, as far as they lie in one
/// piece, and the IP header is at `at`.
#[inline(always)]
fn verdict<const N: usize>(skb: Skb, start: Option<Start<N>>, at: u32) -> Verdict {
    if skb.ethertype() != ETHERTYPE_IPV4 || start.is_some_and(|start| start.byte(at as usize + 9) != ip::UDP)
    {
        return Verdict::Pass;
    }
    if is_foreign(skb, at) { dropped(skb, Vni::NONE, Reason::ForeignTunnel) } else { Verdict::Pass }
}

/// Whether an IPv4 packet is for a tunnel's port, and says that a node sent it which is not there.
#[inline(never)]
fn is_foreign(skb: Skb, at: u32) -> bool {
    let Some(config) = maps::config() else { return false };
    let Ok(header) = skb.load::<20>(at) else { return false };
    let [version, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    // Later fragments come to nothing without the first.
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
    !skb.is_way(&mut Route::new(skb.ifindex(), ip::UDP, here, there))
}
