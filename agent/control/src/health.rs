//! What nodes say about the health of their backends: kept in memory, since it is theirs to find
//! out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{BackendId, Finding, NodeId};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::broadcast;

use crate::limits;

/// Backends whose health has changed; `None`: it is unknown.
pub(crate) type HealthNews = Arc<BTreeMap<BackendId, Option<bool>>>;

/// The health of all backends whose nodes have reported since this manager began.
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
    /// A node said something about its own backends; `all`: that is everything.
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
            // Under the lock, so that what is subscribed to and what is read fit. Nobody listening
            // is no error.
            let _ = self.news.send(Arc::new(changed));
        }
    }

    /// Backends that are none any more.
    pub(crate) fn forget(&self, backends: impl IntoIterator<Item = (NodeId, BackendId)>) {
        let mut known = self.lock();
        for (node, backend) in backends {
            known.by_backend.remove(&backend);
            if let Some(of_node) = known.by_node.get_mut(&node) {
                of_node.remove(&backend);
            }
        }
    }

    /// Forgets those of nodes that are no members any more.
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

    /// Every change from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<HealthNews> {
        self.news.subscribe()
    }

    /// What is known of a backend.
    pub(crate) fn get(&self, backend: BackendId) -> Option<bool> {
        self.lock().by_backend.get(&backend)?.healthy
    }

    /// Why a backend's last check failed; empty after a success.
    pub(crate) fn error(&self, backend: BackendId) -> String {
        self.lock().by_backend.get(&backend).map(|finding| finding.error.clone()).unwrap_or_default()
    }

    /// What is known of all.
    pub(crate) fn all(&self) -> BTreeMap<BackendId, Option<bool>> {
        self.lock().by_backend.iter().map(|(id, finding)| (*id, finding.healthy)).collect()
    }

    /// Whether the node has reported since this manager began.
    pub(crate) fn has_report(&self, node: &NodeId) -> bool {
        self.lock().by_node.contains_key(node)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}
