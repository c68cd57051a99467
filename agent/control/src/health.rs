//! The nodes' reports of the health of their backends. They are kept in memory, since the nodes
//! determine them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{BackendId, Finding, NodeId};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::broadcast;

use crate::limits;

/// Backends whose health has changed; `None` if it is unknown.
pub(crate) type HealthNews = Arc<BTreeMap<BackendId, Option<bool>>>;

/// The health of all backends whose nodes have reported since this manager started.
#[derive(Debug)]
pub(crate) struct Health {
    known: Mutex<Known>,
    news: broadcast::Sender<HealthNews>,
}

#[derive(Debug, Default)]
struct Known {
    by_node: BTreeMap<NodeId, BTreeSet<BackendId>>,
    by_backend: BTreeMap<BackendId, Finding>,
}

impl Default for Health {
    fn default() -> Self {
        Self { known: Mutex::default(), news: broadcast::Sender::new(limits::FEED_BACKLOG) }
    }
}

impl Health {
    /// Handles a node's report about its own backends; `all` means that it is complete.
    pub(crate) fn report(&self, node: &NodeId, put: BTreeMap<BackendId, Finding>, all: bool) {
        let mut known = self.lock();
        let of_node = known.by_node.entry(node.clone()).or_default();
        let mut gone: Vec<BackendId> = Vec::new();
        if all {
            gone.extend(of_node.iter().filter(|id| !put.contains_key(id)));
            of_node.retain(|id| put.contains_key(id));
        }
        of_node.extend(put.keys());
        let mut changed = BTreeMap::new();
        for id in gone {
            if known.by_backend.remove(&id).is_some_and(|finding| finding.healthy.is_some()) {
                changed.insert(id, None);
            }
        }
        for (id, finding) in put {
            let healthy = finding.healthy;
            let before = known.by_backend.insert(id, finding).and_then(|finding| finding.healthy);
            if before != healthy {
                changed.insert(id, healthy);
            }
        }
        if !changed.is_empty() {
            // Under the lock, so that a subscriber's first read and news are consistent. It is no
            // error if there are no subscribers.
            let _ = self.news.send(Arc::new(changed));
        }
    }

    /// Deletes removed backends.
    pub(crate) fn forget(&self, backends: impl IntoIterator<Item = (NodeId, BackendId)>) {
        let mut known = self.lock();
        for (node, backend) in backends {
            known.by_backend.remove(&backend);
            if let Some(of_node) = known.by_node.get_mut(&node) {
                of_node.remove(&backend);
            }
        }
    }

    /// Deletes the backends of removed nodes.
    pub(crate) fn retain(&self, members: &BTreeSet<NodeId>) {
        let mut known = self.lock();
        let gone: Vec<NodeId> =
            known.by_node.keys().filter(|node| !members.contains(*node)).cloned().collect();
        for node in gone {
            for backend in known.by_node.remove(&node).unwrap_or_default() {
                known.by_backend.remove(&backend);
            }
        }
    }

    /// Returns a receiver of every change from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<HealthNews> {
        self.news.subscribe()
    }

    /// Returns the health of a backend, if known.
    pub(crate) fn get(&self, backend: BackendId) -> Option<bool> {
        self.lock().by_backend.get(&backend)?.healthy
    }

    /// Returns why a backend's last check failed; empty after a success.
    pub(crate) fn error(&self, backend: BackendId) -> String {
        self.lock().by_backend.get(&backend).map(|finding| finding.error.clone()).unwrap_or_default()
    }

    /// Returns the health of all backends.
    pub(crate) fn all(&self) -> BTreeMap<BackendId, Option<bool>> {
        self.lock().by_backend.iter().map(|(id, finding)| (*id, finding.healthy)).collect()
    }

    /// Returns whether the node has reported since this manager started.
    pub(crate) fn has_report(&self, node: &NodeId) -> bool {
        self.lock().by_node.contains_key(node)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}
