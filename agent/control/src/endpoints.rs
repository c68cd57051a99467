//! What nodes report about their endpoints: kept in memory, since it is the nodes' own.
//!
//! Names of endpoints are the nodes' to choose, so that attaching works without any manager. Two nodes can therefore
//! choose the same name in one network; the later report is logged, and both stay reachable by id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_model::{EndpointId, Name, NetworkId, NodeId};
use mesh_proto::v1;
use tracing::warn;

/// The endpoints of all nodes that have reported since this manager began.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    by_node: Mutex<BTreeMap<NodeId, BTreeMap<EndpointId, v1::Endpoint>>>,
}

impl Endpoints {
    /// A node told all that it has.
    pub(crate) fn replace(&self, node: &NodeId, endpoints: Vec<v1::Endpoint>) {
        self.lock().insert(node.clone(), BTreeMap::new());
        self.update(node, endpoints, &[]);
    }

    /// A node told what has changed.
    pub(crate) fn update(&self, node: &NodeId, put: Vec<v1::Endpoint>, removed: &[String]) {
        let mut by_node = self.lock();
        for mut endpoint in put {
            let Some(id) = checked(&endpoint) else {
                warn!(%node, id = endpoint.id, "left out an endpoint that makes no sense");
                continue;
            };
            // A node speaks for itself only.
            endpoint.node_id = node.to_string();
            if let Some((other, twin)) = same_name(&by_node, &id, &endpoint) {
                warn!(
                    name = endpoint.name, network = endpoint.network_id, first = %other, first_id = twin, second = %node, second_id = %id,
                    "two endpoints of one network have the same name"
                );
            }
            by_node.entry(node.clone()).or_default().insert(id, endpoint);
        }
        if let Some(endpoints) = by_node.get_mut(node) {
            for id in removed.iter().filter_map(|id| id.parse().ok()) {
                endpoints.remove::<EndpointId>(&id);
            }
        }
    }

    /// Forgets those of nodes that are no members any more.
    pub(crate) fn retain(&self, members: &BTreeSet<NodeId>) {
        self.lock().retain(|node, _| members.contains(node));
    }

    /// Those of a network, or all, in order of node and id.
    pub(crate) fn list(&self, network: Option<&NetworkId>) -> Vec<v1::Endpoint> {
        let by_node = self.lock();
        let all = by_node.values().flat_map(BTreeMap::values);
        all.filter(|endpoint| network.is_none_or(|id| endpoint.network_id == id.as_str())).cloned().collect()
    }

    /// The addresses of a network that each node uses.
    pub(crate) fn addresses(&self, network: &NetworkId) -> BTreeMap<NodeId, BTreeSet<IpAddr>> {
        let by_node = self.lock();
        let addresses = |endpoints: &BTreeMap<EndpointId, v1::Endpoint>| {
            let those = endpoints.values().filter(|endpoint| endpoint.network_id == network.as_str());
            let texts = those.flat_map(|endpoint| [&endpoint.ipv4, &endpoint.ipv6]);
            texts.filter_map(|text| text.parse().ok()).collect()
        };
        by_node.iter().map(|(node, endpoints)| (node.clone(), addresses(endpoints))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, BTreeMap<EndpointId, v1::Endpoint>>> {
        // Each change is made whole under the lock.
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id of an endpoint whose fields are what they should be.
fn checked(endpoint: &v1::Endpoint) -> Option<EndpointId> {
    let is_address = |text: &str| text.is_empty() || text.parse::<IpAddr>().is_ok();
    endpoint.name.parse::<Name>().ok()?;
    endpoint.network_id.parse::<NetworkId>().ok()?;
    (is_address(&endpoint.ipv4) && is_address(&endpoint.ipv6)).then_some(())?;
    endpoint.id.parse().ok()
}

fn same_name(
    by_node: &BTreeMap<NodeId, BTreeMap<EndpointId, v1::Endpoint>>,
    id: &EndpointId,
    endpoint: &v1::Endpoint,
) -> Option<(NodeId, String)> {
    by_node.iter().find_map(|(node, endpoints)| {
        let twin = endpoints.iter().find(|(other_id, other)| {
            *other_id != id && other.name == endpoint.name && other.network_id == endpoint.network_id
        });
        twin.map(|(id, _)| (node.clone(), id.to_string()))
    })
}
