//! The MTU inside networks: what the underlay carries, less what encapsulation adds.

use std::net::IpAddr;

use mesh_ebpf_types::{
    VXLAN_OVERHEAD_IPV4, VXLAN_OVERHEAD_IPV6, WIREGUARD_OVERHEAD_IPV4, WIREGUARD_OVERHEAD_IPV6,
};
use mesh_model::{Desired, Mtu, Network, Observed};

/// The largest MTUs that networks may have on a node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Largest {
    clear: u32,
    encrypted: u32,
}

impl Largest {
    /// The least of all nodes' data-path interfaces, less VXLAN, or less WireGuard and the VXLAN over IPv4 inside it.
    ///
    /// A packet must fit on both ends' underlay, and which end it goes to is not known where the MTU is told. For this
    /// node what is observed counts, not what its record says: the record follows later.
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
            .unwrap_or(Mtu::MAX);
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
}
