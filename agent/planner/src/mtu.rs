//! The MTU inside networks: what the underlay carries, less what encapsulation adds.

use std::net::IpAddr;

use mesh_ebpf_types::{
    VXLAN_OVERHEAD_IPV4, VXLAN_OVERHEAD_IPV6, WIREGUARD_OVERHEAD_IPV4, WIREGUARD_OVERHEAD_IPV6,
};
use mesh_model::{Desired, Mtu, Network, Observed};

/// Headers of IPv4 and UDP, in bytes.
const OUTER: u16 = 28;
/// What the engine puts into one send (`SendQueue` of `mesh-wireguard`): bytes, as many as UDP over
/// IPv4 can hold, and datagrams.
const MOST_SENT: u32 = 65507;
const MOST_DATAGRAMS: u32 = 64;
/// What IP, TCP and its timestamps leave of a packet, less than of its MTU.
const HEADERS: u32 = 52;
/// What TCP leaves free of what a device takes at once (`MAX_TCP_HEADER`, 257 to 321 bytes), and
/// some to spare.
const FREE: u32 = 400;

/// Most bytes that TCP is to hand over at once in an encrypted network with this MTU: so many
/// segments that the engine's datagrams of them go out in one send. A few more would make it two
/// sends, and as much work twice at both ends.
fn burst(mtu: u32) -> u32 {
    let datagram = mtu + u32::from(VXLAN_OVERHEAD_IPV4 + WIREGUARD_OVERHEAD_IPV4 - OUTER);
    let datagrams = (MOST_SENT / datagram).clamp(1, MOST_DATAGRAMS);
    datagrams * mtu.saturating_sub(HEADERS) + FREE
}

/// The largest MTUs that networks may have on a node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Largest {
    clear: u32,
    encrypted: u32,
}

impl Largest {
    /// The least of all nodes' data-path interfaces, less VXLAN, or less WireGuard and the VXLAN
    /// over IPv4 inside it.
    ///
    /// A packet must fit on both ends' underlay, and which end it goes to is not known where the
    /// MTU is told. For this node what is observed counts, not what its record says: the record
    /// follows later.
    ///
    /// An MTU below [`Mtu::MIN_DATA_PATH`] counts as that: one host's mistake, or a moment's, must
    /// not take IPv6 from containers or stop encrypted networks. Until it is corrected, larger
    /// packets of that host are lost.
    pub(crate) fn of(desired: &Desired, observed: &Observed) -> Self {
        let (vxlan, wireguard) = match desired.underlay.address {
            IpAddr::V4(_) => (VXLAN_OVERHEAD_IPV4, WIREGUARD_OVERHEAD_IPV4),
            IpAddr::V6(_) => (VXLAN_OVERHEAD_IPV6, WIREGUARD_OVERHEAD_IPV6),
        };
        let own = observed.underlay.as_ref().map(|link| link.mtu);
        let least = desired
            .nodes
            .iter()
            .filter(|(node, _)| own.is_none() || **node != desired.node)
            .map(|(_, peer)| peer.mtu.get())
            .chain(own)
            .min()
            .unwrap_or(Mtu::MAX)
            .max(Mtu::MIN_DATA_PATH);
        let less = |overhead: u16| least.saturating_sub(overhead.into()).max(Mtu::MIN);
        Self { clear: less(vxlan), encrypted: less(wireguard + VXLAN_OVERHEAD_IPV4) }
    }

    /// Of encrypted networks.
    pub(crate) fn encrypted(self) -> u32 {
        self.encrypted
    }

    /// The MTU of a network: the largest possible, or less where the network says so.
    pub(crate) fn network(self, network: &Network) -> u32 {
        let largest = if network.encrypted { self.encrypted } else { self.clear };
        network.mtu.map_or(largest, |mtu| mtu.get().min(largest))
    }

    /// [`EndpointDevice::burst`](mesh_model::plan::EndpointDevice) of a network's endpoints.
    pub(crate) fn burst(self, network: &Network) -> Option<u32> {
        network.encrypted.then(|| burst(self.network(network)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of an IPv4 or IPv6 connection, with timestamps or without, that TCP hands over at
    /// once.
    fn segments(mtu: u32, headers: u32, reserved: u32) -> u32 {
        (burst(mtu) - reserved) / (mtu - headers)
    }

    #[test]
    fn what_tcp_hands_over_at_once_is_one_send_of_the_engine() {
        for mtu in [1280, 1380, 1400, 8900] {
            let most = (65507 / (mtu + 82)).min(64);
            for reserved in [257, 321] {
                assert_eq!(segments(mtu, 52, reserved), most, "IPv4 with timestamps, MTU {mtu}");
                for headers in [40, 60, 72] {
                    let segments = segments(mtu, headers, reserved);
                    assert!((most - 1..=most).contains(&segments), "{segments} of {most}, MTU {mtu}");
                }
            }
        }
    }
}
