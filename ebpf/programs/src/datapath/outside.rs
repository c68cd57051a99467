//! Packets from a container to the host, and through it to the outside.

use mesh_ebpf::headers::{Headers, V4};
use mesh_ebpf::ip;
use mesh_ebpf_types::{Config, Reason, Vni};

use super::count::{count, dropped};
use super::ipv6::upper_layer;
use super::maps;
use super::skb::Skb;
use super::verdict::Verdict;

/// Passes a packet with valid headers to the host. Not inlined, with lookups of its own, as in
/// `neighbour`.
#[inline(never)]
pub(super) fn to_host(skb: Skb) -> Verdict {
    let (Some(interface), Some(config)) = (maps::interface(skb.ifindex()), maps::config()) else {
        return dropped(skb, Vni::NONE, Reason::UnknownNetwork);
    };
    let vni = interface.vni;
    if config.host_ifindex == 0 {
        return dropped(skb, vni, Reason::NotConfigured);
    }
    if is_to_tunnel(skb, config) {
        return dropped(skb, vni, Reason::Isolated);
    }
    if skb.store(0, &config.host_mac.0).is_err() {
        return dropped(skb, vni, Reason::Malformed);
    }
    count(skb, vni, Reason::ToHost);
    skb.send(config.host_ifindex)
}

/// Returns whether it is UDP to the VXLAN port of any address. Masqueraded, it would come from a
/// member's address, and a container could write packets into any network. Later fragments have no
/// port, and are useless without the first.
#[inline(always)]
fn is_to_tunnel(skb: Skb, config: &Config) -> bool {
    let mut headers = Headers::new();
    if skb.read_at::<V4>(0, &mut headers.bytes, 0).is_err() {
        return false;
    }
    let (protocol, offset) = if headers.is_v6() {
        let Some(upper) = upper_layer(skb, headers.next()) else { return false };
        (upper.protocol, upper.offset)
    } else {
        (headers.next(), 14 + headers.header_length())
    };
    if protocol != ip::UDP || headers.is_later_fragment_v4() {
        return false;
    }
    skb.load(offset + 2).is_ok_and(|port: [u8; 2]| port == config.vxlan_port)
}
