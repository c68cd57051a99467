//! WireGuard between the nodes: what a node announces, and how the nodes are numbered inside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiff::Timestamp;

use crate::NodeId;
use crate::fnv::fnv1a;

/// UDP port of WireGuard when none is given.
pub const DEFAULT_PORT: u16 = 51820;

/// Numbers of nodes: 1 to 65534, so that a tunnel address never ends its range.
const INDEXES: u32 = 65534;

/// A number for each node, by which the engine and the datapath name it, and which decides its
/// tunnel address.
///
/// The same on every host that knows the same nodes, and nearly always whatever other nodes there
/// are: it comes from the node's id. Where two nodes would have the same number, the one that
/// joined later takes the next free one. Of more than 65534 nodes the last have none.
pub fn peer_indexes<'a>(nodes: impl Iterator<Item = (&'a NodeId, Timestamp)>) -> BTreeMap<NodeId, u16> {
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_by_key(|(id, joined)| (*joined, *id));
    let mut taken = BTreeSet::new();
    let mut indexes = BTreeMap::new();
    for (id, _) in nodes {
        let preferred = preferred(id);
        let mut candidates = (0..INDEXES).map(|step| (preferred + step) % INDEXES + 1);
        let free = candidates.find_map(|number| u16::try_from(number).ok().filter(|n| !taken.contains(n)));
        if let Some(index) = free {
            taken.insert(index);
            indexes.insert(id.clone(), index);
        }
    }
    indexes
}

/// Where the search for a node's number begins.
fn preferred(id: &NodeId) -> u32 {
    let hash = fnv1a(id.as_str().as_bytes());
    (hash ^ (hash >> 16)) % INDEXES
}

/// The address of the node with that number inside the tunnels: where packets to it go.
pub fn tunnel_address(index: u16) -> Ipv4Addr {
    mesh_ebpf_types::tunnel_address(index).into()
}

/// Where its packets come from there, by keys of odd generations or of even ones.
pub fn tunnel_source(index: u16, odd: bool) -> Ipv4Addr {
    mesh_ebpf_types::tunnel_source(index, odd).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u32) -> NodeId {
        format!("{number:024x}").parse().unwrap()
    }

    fn joined(second: u32) -> Timestamp {
        Timestamp::from_second(second.into()).unwrap()
    }

    #[test]
    fn every_node_has_a_number_of_its_own_whatever_the_order_it_is_heard_of_in() {
        let nodes: Vec<_> = (0..2000).map(|n| (node(n), joined(n))).collect();
        let indexes = peer_indexes(nodes.iter().map(|(id, at)| (id, *at)));
        assert_eq!(indexes.len(), 2000);
        assert_eq!(indexes.values().collect::<BTreeSet<_>>().len(), 2000);
        assert!(indexes.values().all(|index| (1..=65534).contains(index)));
        assert_eq!(peer_indexes(nodes.iter().rev().map(|(id, at)| (id, *at))), indexes);
    }

    #[test]
    fn a_node_that_joins_changes_no_other_nodes_number() {
        let nodes: Vec<_> = (0..2000).map(|n| (node(n), joined(n))).collect();
        let before = peer_indexes(nodes[..1999].iter().map(|(id, at)| (id, *at)));
        let after = peer_indexes(nodes.iter().map(|(id, at)| (id, *at)));
        assert!(before.iter().all(|(id, index)| after[id] == *index));
    }

    #[test]
    fn tunnel_addresses_are_of_the_block_for_tests() {
        assert_eq!(tunnel_address(1), Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!(tunnel_address(65534), Ipv4Addr::new(198, 18, 255, 254));
    }

    #[test]
    fn a_nodes_sources_are_its_own_and_tell_the_node() {
        assert_eq!(tunnel_source(1, false), Ipv4Addr::new(100, 64, 0, 1));
        assert_eq!(tunnel_source(65534, true), Ipv4Addr::new(100, 65, 255, 254));
        let all = [1, 2, 65534].into_iter().flat_map(|index| [false, true].map(|odd| (index, odd)));
        let sources: BTreeSet<_> = all.clone().map(|(index, odd)| tunnel_source(index, odd)).collect();
        assert_eq!(sources.len(), 6);
        for (index, odd) in all {
            let sender = mesh_ebpf_types::tunnel_sender(tunnel_source(index, odd).octets());
            assert_eq!(sender, Some(index));
            assert_eq!(mesh_ebpf_types::tunnel_sender(tunnel_address(index).octets()), None);
        }
        for foreign in [[100, 64, 0, 0], [100, 65, 0, 0], [100, 66, 0, 1], [100, 63, 0, 1], [10, 64, 0, 1]] {
            assert_eq!(mesh_ebpf_types::tunnel_sender(foreign), None);
        }
    }
}
