//! Reports of nodes that cannot reach other nodes.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{Node, NodeId};
use mesh_proto::v1::{UnreachableFrom, UnreachablePeer};
use parking_lot::{Mutex, MutexGuard};

/// By reporting node: the unreachable nodes, and whether through WireGuard.
type Reports = BTreeMap<NodeId, BTreeSet<(NodeId, bool)>>;

/// The last report of each node in session.
#[derive(Debug, Default)]
pub(crate) struct PathReports(Mutex<Reports>);

impl PathReports {
    /// Stores a node's report. Ignores nodes that are not members, so that its size is bounded.
    pub(crate) fn report(&self, from: &NodeId, peers: &[UnreachablePeer], members: &BTreeMap<NodeId, Node>) {
        let known = peers.iter().filter_map(|peer| Some((peer.node.parse().ok()?, peer.encrypted)));
        let known: BTreeSet<(NodeId, bool)> = known.filter(|(node, _)| members.contains_key(node)).collect();
        let mut reports = self.lock();
        if known.is_empty() {
            reports.remove(from);
        } else {
            reports.insert(from.clone(), known);
        }
    }

    /// Deletes a node's report: its session has ended.
    pub(crate) fn forget(&self, from: &NodeId) {
        self.lock().remove(from);
    }

    /// Returns which nodes cannot reach a node, sorted by name.
    pub(crate) fn of(&self, target: &NodeId, members: &BTreeMap<NodeId, Node>) -> Vec<UnreachableFrom> {
        let reports = self.lock();
        let from = reports.iter().flat_map(|(from, peers)| {
            let about = peers.iter().filter(|(peer, _)| peer == target);
            about.filter_map(move |(_, encrypted)| {
                let node = members.get(from)?.name.to_string();
                Some(UnreachableFrom { node, encrypted: *encrypted })
            })
        });
        let mut from: Vec<_> = from.collect();
        from.sort_by(|a, b| (&a.node, a.encrypted).cmp(&(&b.node, b.encrypted)));
        from
    }

    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.0.lock()
    }
}
