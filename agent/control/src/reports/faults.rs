//! What is wrong with the nodes' reports, as the nodes and the managers show it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::NodeId;
use tokio::sync::watch;
use tracing::warn;

/// Most faults of one node that are kept.
const MAX_FAULTS: usize = 32;

/// The faults of each node: what they are about, and one line each.
type ByNode = BTreeMap<NodeId, BTreeMap<String, String>>;

/// Faults of the nodes' reports, apart from endpoints that are refused.
#[derive(Debug, Default)]
pub(crate) struct Faults(watch::Sender<ByNode>);

impl Faults {
    /// A node begins anew: what it reported before is void.
    pub(crate) fn begin(&self, node: &NodeId) {
        self.0.send_if_modified(|faults| faults.remove(node).is_some());
    }

    /// Records or takes back what is wrong with one thing that a node reports.
    pub(crate) fn set(&self, node: &NodeId, about: &str, fault: Option<String>) {
        self.0.send_if_modified(|faults| {
            let Some(fault) = fault else {
                return faults.get_mut(node).is_some_and(|of_node| of_node.remove(about).is_some());
            };
            let of_node = faults.entry(node.clone()).or_default();
            let is_known = of_node.get(about) == Some(&fault);
            if is_known || (of_node.len() >= MAX_FAULTS && !of_node.contains_key(about)) {
                return false;
            }
            warn!(%node, ?fault, "a node's report is refused");
            of_node.insert(about.to_owned(), fault);
            true
        });
    }

    /// What is wrong with a node's reports, a line each.
    pub(crate) fn of(&self, node: &NodeId) -> Vec<String> {
        self.0.borrow().get(node).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Wakes on every change.
    pub(crate) fn changes(&self) -> watch::Receiver<ByNode> {
        self.0.subscribe()
    }

    /// Forgets those of nodes that are no members any more.
    pub(crate) fn retain(&self, members: &BTreeSet<NodeId>) {
        self.0.send_if_modified(|faults| {
            let before = faults.len();
            faults.retain(|node, _| members.contains(node));
            faults.len() != before
        });
    }
}
