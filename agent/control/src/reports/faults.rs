//! Faults in the nodes' reports, as nodes and managers show them.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::NodeId;
use tokio::sync::watch;
use tracing::warn;

/// Maximum number of faults of one node that are kept.
const MAX_FAULTS: usize = 32;

/// The faults of each node: their subject, and one line each.
type ByNode = BTreeMap<NodeId, BTreeMap<String, String>>;

/// Faults in the nodes' reports, except refused endpoints.
#[derive(Debug, Default)]
pub(crate) struct Faults(watch::Sender<ByNode>);

impl Faults {
    /// Deletes a node's earlier faults: it starts a new session.
    pub(crate) fn begin(&self, node: &NodeId) {
        self.0.send_if_modified(|faults| faults.remove(node).is_some());
    }

    /// Records or clears the fault in one subject of a node's reports.
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

    /// Returns the faults in a node's reports, one line each.
    pub(crate) fn of(&self, node: &NodeId) -> Vec<String> {
        self.0.borrow().get(node).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Returns a receiver that wakes on every change.
    pub(crate) fn changes(&self) -> watch::Receiver<ByNode> {
        self.0.subscribe()
    }

    /// Deletes the faults of removed nodes.
    pub(crate) fn retain(&self, members: &BTreeSet<NodeId>) {
        self.0.send_if_modified(|faults| {
            let before = faults.len();
            faults.retain(|node, _| members.contains(node));
            faults.len() != before
        });
    }
}
