//! The inputs of the services' map entries and names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_model::{BackendId, Network, NetworkId, Node, NodeId, NodeState};
use mesh_planner::services::{Facts, Records, Unreachable};
use mesh_state::{DesiredTunnels, ServiceRecords, State};

fn down(state: &State) -> BTreeSet<NodeId> {
    let down = state.node_states.iter().filter(|(_, state)| **state == NodeState::Down);
    down.map(|(node, _)| node.clone()).collect()
}

fn peers(state: &State, own: &NodeId) -> BTreeMap<NodeId, u16> {
    DesiredTunnels::of(&state.view, own).map(|tunnels| tunnels.indexes()).unwrap_or_default()
}

/// All inputs of the services' map entries and names at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub(crate) revision: u64,
    /// Counts how often the programs were loaded, each time with the maps of that moment.
    pub(crate) loads: u64,
    pub(crate) services: ServiceRecords,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    pub(crate) down: BTreeSet<NodeId>,
    pub(crate) healthy: Arc<BTreeSet<BackendId>>,
    pub(crate) peers: BTreeMap<NodeId, u16>,
    pub(crate) unreachable: Unreachable,
}

/// The services that a change may affect.
pub(crate) enum Scope<'a> {
    All,
    Some(BTreeSet<&'a mesh_model::ServiceId>),
}

impl Inputs {
    pub(crate) fn of(state: &State, own: &NodeId) -> Self {
        Self {
            revision: state.view.revision,
            loads: state.loads,
            services: state.view.services.clone(),
            nodes: state.view.nodes.clone(),
            networks: state.view.networks.clone(),
            down: down(state),
            healthy: state.soft.healthy(),
            peers: peers(state, own),
            unreachable: state.paths.unreachable(),
        }
    }

    pub(crate) fn facts<'a>(&'a self, node: &'a NodeId) -> Facts<'a> {
        Facts {
            node,
            nodes: &self.nodes,
            down: &self.down,
            networks: &self.networks,
            healthy: &self.healthy,
            peers: &self.peers,
            unreachable: &self.unreachable,
        }
    }

    /// Returns the services whose entries may change.
    pub(crate) fn changed_since<'a>(&'a self, before: &'a Self) -> Scope<'a> {
        if self.nodes != before.nodes || self.peers != before.peers {
            return Scope::All;
        }
        let mut changed = self.services.changed_since(&before.services);
        let mut nodes: BTreeSet<&NodeId> = self.down.symmetric_difference(&before.down).collect();
        let (now, then) = (&self.unreachable, &before.unreachable);
        nodes.extend(now.clear.symmetric_difference(&then.clear));
        nodes.extend(now.encrypted.symmetric_difference(&then.encrypted));
        let backends: BTreeSet<&BackendId> = if Arc::ptr_eq(&self.healthy, &before.healthy) {
            BTreeSet::new()
        } else {
            self.healthy.symmetric_difference(&before.healthy).collect()
        };
        // The view has every network of the cluster, and most have no services on this node.
        let networks: BTreeSet<&NetworkId> = self
            .networks
            .keys()
            .chain(before.networks.keys())
            .filter(|id| self.networks.get(*id) != before.networks.get(*id))
            .collect();
        if !networks.is_empty() {
            let affected =
                self.services.iter().filter(|(_, records)| networks.contains(&records.service.network));
            changed.extend(affected.map(|(id, _)| id));
        }
        let affected = backends.into_iter().filter_map(|id| self.services.backend(*id));
        changed.extend(affected.map(|(records, _)| &records.service.id));
        if !nodes.is_empty() {
            let on_them = |records: &Records| records.backends.values().any(|b| nodes.contains(&b.node));
            let affected = self.services.iter().filter(|(_, records)| on_them(records));
            changed.extend(affected.map(|(id, _)| id));
        }
        Scope::Some(changed)
    }
}
