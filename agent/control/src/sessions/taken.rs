//! Consequences of a node's endpoint reports.

use std::sync::Arc;

use mesh_model::NodeId;

use crate::core::Core;
use crate::endpoints::Taken;
use crate::services;

/// Handles the changes of an endpoint report, or of a later check of it.
pub(crate) fn follow_taken(core: &Arc<Core>, node: &NodeId, taken: Taken) {
    for (endpoint, withheld) in taken.withheld {
        core.faults.set(node, endpoint.as_str(), withheld);
    }
    services::follow_removals(core, node, taken.gone);
}
