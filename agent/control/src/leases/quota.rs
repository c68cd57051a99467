//! Limits the addresses that a node may hold: those that it uses, and a reserve.
//!
//! Without a limit, one stolen certificate could lease a whole network within a second.

use mesh_ipam::Family;
use mesh_model::{Network, NodeId};
use mesh_proto::{Problem, ProblemKind};

use super::subnet::LeaseSet;
use crate::core::Core;
use crate::layout::layout;

/// Minimum number of unused blocks that a node may hold.
const BLOCKS: u128 = 4;
/// Maximum number, for any size of network.
const MAX_BLOCKS: u128 = 16;
/// Between the two: this fraction 1/n of the network.
const SHARE: u128 = 8;

/// Refuses another lease to a node that holds many unused addresses.
pub(super) fn check(core: &Core, set: &LeaseSet, node: &NodeId, family: Family) -> Result<(), Problem> {
    let held: u128 = set
        .all()
        .filter(|lease| lease.node == *node && lease.prefix.family() == family)
        .fold(0, |sum, lease| sum.saturating_add(lease.prefix.size()));
    let used = core.endpoints.used(node, &set.network().id, family);
    if held.saturating_sub(used) < head_start(set.network(), family) {
        return Ok(());
    }
    let name = &set.network().name;
    Err(Problem::new(
        ProblemKind::Exhausted,
        format!(
            "this node holds {held} addresses of network {name} and uses only {used}: it must use those first"
        ),
    )
    .hint("attach endpoints, or wait until recently released addresses are available again"))
}

fn head_start(network: &Network, family: Family) -> u128 {
    let layouts = network.subnets.iter().filter(|subnet| subnet.subnet.family() == family).filter_map(layout);
    let (size, block) = layouts.fold((0u128, 1), |(size, block), layout| {
        (size.saturating_add(layout.subnet().size()), layout.block_size().max(block))
    });
    (size / SHARE).clamp(BLOCKS * block, MAX_BLOCKS * block)
}
