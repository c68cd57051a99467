//! The MTU inside networks: what the underlay carries, less what encapsulation adds.

use std::net::IpAddr;

use mesh_ebpf_types::{VXLAN_OVERHEAD_IPV4, VXLAN_OVERHEAD_IPV6};
use mesh_model::{Desired, Network, Observed};

/// The largest MTU that a network may have on this node: the least of all nodes' data-path interfaces, less VXLAN.
///
/// A packet must fit on both ends' underlay, and which end it goes to is not known where the MTU is told. For this
/// node what is observed counts, not what its record says: the record follows later.
pub(crate) fn largest(desired: &Desired, observed: &Observed) -> u32 {
    let overhead = match desired.underlay.address {
        IpAddr::V4(_) => VXLAN_OVERHEAD_IPV4,
        IpAddr::V6(_) => VXLAN_OVERHEAD_IPV6,
    };
    let own = observed.underlay.as_ref().map(|link| link.mtu);
    let least = desired
        .nodes
        .iter()
        .filter(|(node, _)| own.is_none() || **node != desired.node)
        .map(|(_, peer)| peer.mtu.get())
        .chain(own)
        .min()
        .unwrap_or(mesh_model::Mtu::MAX);
    least.saturating_sub(overhead.into()).max(mesh_model::Mtu::MIN)
}

/// The MTU of a network: the largest possible, or less where the network says so.
pub(crate) fn of(network: &Network, largest: u32) -> u32 {
    network.mtu.map_or(largest, |mtu| mtu.get().min(largest))
}
