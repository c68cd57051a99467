//! Removes backends when their endpoint or their node is removed.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_model::{Backend, EndpointId, NodeId};
use mesh_store::{Op, Txn};
use tracing::{info, warn};

use crate::core::Core;
use crate::keys;
use crate::records::RecordError;

/// Backends in one transaction: a store may limit its size.
const AT_ONCE: usize = 256;

/// Handles a complete report of a node: removes backends whose endpoints are not in it.
pub(crate) fn follow_hello(core: &Arc<Core>, node: &NodeId) {
    let of_node = core.feed.view().services.backends_on(node).cloned().collect();
    spawn(core, node.clone(), of_node);
}

/// Removes the backends of a node's removed endpoints.
pub(crate) fn follow_removals(core: &Arc<Core>, node: &NodeId, endpoints: Vec<EndpointId>) {
    if endpoints.is_empty() {
        return;
    }
    let (core, node) = (core.clone(), node.clone());
    tokio::spawn(async move {
        // Backends that were added before the removal was reported are in the view by now.
        if let Err(error) = core.catch_up().await {
            warn!(%node, %error, "cannot remove the backends of endpoints that are gone");
            return;
        }
        let backends = {
            let view = core.feed.view();
            let at = endpoints.iter().flat_map(|endpoint| view.services.backends_at(endpoint));
            at.filter(|backend| backend.node == node).cloned().collect()
        };
        remove_gone(&core, &node, backends).await;
    });
}

fn spawn(core: &Arc<Core>, node: NodeId, backends: Vec<Arc<Backend>>) {
    if !backends.is_empty() {
        let core = core.clone();
        tokio::spawn(async move { remove_gone(&core, &node, backends).await });
    }
}

/// Removes those of the node's backends whose endpoints do not exist.
async fn remove_gone(core: &Core, node: &NodeId, mut backends: Vec<Arc<Backend>>) {
    backends.retain(|backend| !core.endpoints.has(node, &backend.endpoint));
    if let Err(error) = remove_all(core, backends).await {
        warn!(%node, %error, "cannot remove the backends of endpoints that are gone");
    }
}

/// Removes backends.
pub(super) async fn remove_all(core: &Core, backends: Vec<Arc<Backend>>) -> Result<(), RecordError> {
    for some in backends.chunks(AT_ONCE) {
        let deletions =
            some.iter().map(|backend| Op::delete(keys::backend(&backend.service, &backend.endpoint)));
        core.records.commit(Txn::always(deletions)).await?;
        for backend in some {
            info!(backend = %backend.name, id = %backend.id, "a backend's endpoint is gone");
        }
        core.health.forget(some.iter().map(|backend| (backend.node.clone(), backend.id)));
    }
    Ok(())
}

/// Removes the backends of a removed node. No new ones can be added to it.
pub(crate) async fn forget_node(core: &Core, node: &NodeId) -> Result<(), RecordError> {
    core.catch_up().await?;
    let backends = core.feed.view().services.backends_on(node).cloned().collect();
    remove_all(core, backends).await
}

/// Removes backends that a manager left when it ended while removing a node.
pub(crate) async fn sweep(core: &Core) -> Result<(), RecordError> {
    let gone: BTreeSet<NodeId> = {
        let view = core.feed.view();
        let nodes = view.services.nodes_with_backends();
        nodes.filter(|node| !view.nodes.contains_key(*node)).cloned().collect()
    };
    for node in gone {
        forget_node(core, &node).await?;
    }
    Ok(())
}
