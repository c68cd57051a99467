//! The MTU inside networks: the underlay's MTU minus the overhead of encapsulation.

use std::net::IpAddr;

use mesh_ebpf_types::{
    VXLAN_OVERHEAD_IPV4, VXLAN_OVERHEAD_IPV6, WIREGUARD_OVERHEAD_IPV4, WIREGUARD_OVERHEAD_IPV6,
};
use mesh_model::{Desired, Mtu, Network, Observed};

/// Headers of IPv4 and UDP, in bytes.
const OUTER: u16 = 28;
/// The engine's limits for one send (`SendQueue` of `mesh-wireguard`): bytes, as many as UDP over
/// IPv4 can hold, and datagrams.
const MOST_SENT: u32 = 65507;
const MOST_DATAGRAMS: u32 = 64;
/// Length of the IP and TCP headers with timestamps, which a segment's MTU includes.
const HEADERS: u32 = 52;
/// Space that TCP leaves unused in a device's largest super-packet (`MAX_TCP_HEADER`, 257 to 321
/// bytes), and a reserve.
const FREE: u32 = 400;

/// Returns the largest TCP super-packet, in bytes, of an encrypted network with this MTU. Its
/// segments, encrypted, fit one send of the engine. A few more would need two sends, and twice the
/// work at both ends.
fn burst(mtu: u32) -> u32 {
    let datagram = mtu + u32::from(VXLAN_OVERHEAD_IPV4 + WIREGUARD_OVERHEAD_IPV4 - OUTER);
    let datagrams = (MOST_SENT / datagram).clamp(1, MOST_DATAGRAMS);
    datagrams * mtu.saturating_sub(HEADERS) + FREE
}

/// The largest possible MTUs of networks on a node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Largest {
    clear: u32,
    encrypted: u32,
}

impl Largest {
    /// Computes the smallest MTU of all nodes' data-path interfaces, minus VXLAN, or minus
    /// WireGuard and the VXLAN over IPv4 inside it.
    ///
    /// A packet must fit the underlay of both ends, and the MTU must be set before the other end is
    /// known. For this node the observed MTU counts, since its record is updated later.
    ///
    /// An MTU below [`Mtu::MIN_DATA_PATH`] counts as that value: a temporary or wrong MTU on one
    /// host must not disable IPv6 for containers or stop encrypted networks. Until it is corrected,
    /// larger packets of that host are lost.
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

    /// Returns the MTU of encrypted networks.
    pub(crate) fn encrypted(self) -> u32 {
        self.encrypted
    }

    /// Returns the MTU of a network: the largest possible, or less if the network sets less.
    pub(crate) fn network(self, network: &Network) -> u32 {
        let largest = if network.encrypted { self.encrypted } else { self.clear };
        network.mtu.map_or(largest, |mtu| mtu.get().min(largest))
    }

    /// Returns [`EndpointDevice::burst`](mesh_model::plan::EndpointDevice) of a network's
    /// endpoints.
    pub(crate) fn burst(self, network: &Network) -> Option<u32> {
        network.encrypted.then(|| burst(self.network(network)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of segments in one super-packet of an IPv4 or IPv6 connection, with or
    /// without timestamps.
    fn segments(mtu: u32, headers: u32, reserved: u32) -> u32 {
        (burst(mtu) - reserved) / (mtu - headers)
    }

    #[test]
    fn the_largest_super_packet_of_tcp_fits_one_send_of_the_engine() {
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
