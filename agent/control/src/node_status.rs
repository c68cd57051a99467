//! The status of nodes.

use mesh_model::{Node, NodeState};
use mesh_proto::Problem;
use mesh_proto::v1::NodeStatus;

use crate::core::Core;

/// Returns a node with its current status.
pub(crate) fn status(core: &Core, node: &Node) -> NodeStatus {
    let state = core.states().borrow().get(&node.id).copied().unwrap_or(NodeState::Unknown);
    NodeStatus {
        node: Some(node.into()),
        state: mesh_proto::v1::NodeState::from(state).into(),
        // The only manager decides.
        leader: node.id == *core.node_id(),
        last_seen: core.sessions.last_seen(&node.id).map(|at| at.to_string()).unwrap_or_default(),
        unreachable_from: core.paths.of(&node.id, &core.feed.view().nodes),
    }
}

/// Returns every node, sorted by name.
pub(crate) async fn list(core: &Core) -> Result<Vec<NodeStatus>, Problem> {
    let mut nodes: Vec<Node> = core.records.nodes().await?.into_iter().map(|node| node.value).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes.iter().map(|node| status(core, node)).collect())
}
